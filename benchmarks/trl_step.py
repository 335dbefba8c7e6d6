"""Processor seconds of a training step on answers beside TRL's SFTTrainer on the same batches, in one process, one thread:

    pip install --no-deps --target TRL trl==1.16.0
    OMP_NUM_THREADS=1 PYTHONPATH=TRL python benchmarks/trl_step.py [float32 | bf16]
    OMP_NUM_THREADS=1 PYTHONPATH=TRL BLOCKS=30 TURNS=2 python benchmarks/trl_step.py bf16      # SmolLM2-135M's depth; some 6 GB

A random model of 4 blocks (BLOCKS) of SmolLM2-135M's size (49,152 words), LoRA of rank 8 on query and value, AdamW, batches of 8 texts of
256 tokens of which a quarter are labelled. Both sides take turns of some steps each; a step is forward pass, backward pass and update. Both
train on the token mean; the losses of the first step are compared, so that it is the same work.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, TrainerCallback
from trl import SFTConfig, SFTTrainer

from fibecfed.core.rng import Key
from fibecfed.local.optimise import fit
from fibecfed.local.options import TrainingOptions
from fibecfed.models.adapted_model import AdaptedModel
from fibecfed.models.answers import Answers
from fibecfed.models.base_models import find
from fibecfed.models.options import ModelOptions
from fibecfed.models.precision import store_frozen_maps_in_bf16
from fibecfed.models.tokenizers import load_tokenizer

SIZE, LENGTH, LABELLED = 8, 256, 64
TURNS, STEPS, BLOCKS = int(os.environ.get("TURNS", "4")), 3, int(os.environ.get("BLOCKS", "4"))
RATE = 1e-3


def adapted() -> Any:
    """The same random model each time."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=BLOCKS, num_attention_heads=9, num_key_value_heads=3,
        max_position_embeddings=512, tie_word_embeddings=True, pad_token_id=0, eos_token_id=2, bos_token_id=1,
    )  # fmt: skip
    lora = LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"])
    return get_peft_model(AutoModelForCausalLM.from_config(config), lora)


def texts(turn: int) -> torch.Tensor:
    """Tokens of a turn's batches, (step, text, token)."""
    return torch.randint(3, 49152, (STEPS, SIZE, LENGTH), generator=torch.Generator().manual_seed(turn))


class Clock(TrainerCallback):
    """Processor seconds of each step, and the first loss."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.losses: list[float] = []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._began = time.process_time()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.seconds.append(time.process_time() - self._began)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        self.losses += [logs["loss"]] if logs and "loss" in logs else []


def by_trl(turn: int, precision: str, tokenizer: Any) -> tuple[float, float]:
    """Median seconds of a turn's steps, and the first loss."""
    rows = [row.tolist() for batch in texts(turn) for row in batch]
    before = [-100] * (LENGTH - LABELLED)
    data = Dataset.from_list([{"input_ids": row, "labels": before + row[LENGTH - LABELLED :]} for row in rows])
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        arguments = SFTConfig(
            folder, per_device_train_batch_size=SIZE, max_steps=STEPS, learning_rate=RATE, optim="adamw_torch", weight_decay=0.01,
            lr_scheduler_type="constant", max_grad_norm=0.0, logging_steps=1, report_to=[], use_cpu=True, save_strategy="no",
            disable_tqdm=True, gradient_checkpointing=False, bf16=precision == "bf16", max_length=None,
            train_sampling_strategy="sequential", dataset_kwargs={"skip_prepare_dataset": True},
        )  # fmt: skip
        trainer = SFTTrainer(adapted(), arguments, train_dataset=data, processing_class=tokenizer, callbacks=[clock])
        trainer.train()
    return statistics.median(clock.seconds), clock.losses[0]


def by_fibecfed(turn: int, precision: str) -> tuple[float, float]:
    """Seconds of a step, the mean over a turn's: its loop has no other hook; and the first loss."""
    model = adapted()
    task = AdaptedModel(model, objective=Answers(), precision=precision)
    if precision == "bf16":  # as a run does
        store_frozen_maps_in_bf16(task.model, but=[model.get_base_model().lm_head])
        task.use_plain_attention_for_gradients()
    batches = []
    for ids in texts(turn):
        labels = ids.clone()
        labels[:, : LENGTH - LABELLED] = -100
        batches.append({"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels})
    params, options = task.params(), TrainingOptions(learning_rate=RATE, batch_size=SIZE, precision="float32")
    first = float(task.losses(params, batches[0]).sum() / (SIZE * LABELLED))
    began = time.process_time()
    fit(task, params, [batches], options, Key(0))
    return (time.process_time() - began) / STEPS, first


if __name__ == "__main__":
    torch.set_num_threads(1)
    chosen = sys.argv[1] if len(sys.argv) > 1 else "float32"
    words: Any = load_tokenizer(find(ModelOptions(name="smollm2-135m")), LlamaConfig())
    found: dict[str, list[float]] = {"TRL": [], "fibecfed": []}
    for number in range(TURNS):
        theirs, their_loss = by_trl(number, chosen, words)
        ours, our_loss = by_fibecfed(number, chosen)
        assert abs(their_loss - our_loss) < 0.01 * our_loss, (their_loss, our_loss)
        found["TRL"].append(theirs)
        found["fibecfed"].append(ours)
    theirs, ours = (statistics.median(found[name]) for name in ("TRL", "fibecfed"))
    print(f"{chosen}, {BLOCKS} blocks: TRL {theirs:.2f} s, fibecfed {ours:.2f} s a step, ratio {ours / theirs:.2f}; turns: {found}")

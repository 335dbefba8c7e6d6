"""Peak memory of a training step on answers, beside that of the same step without a head: `python benchmarks/answer_memory.py`.

A random model of SmolLM2-135M's shape (49,152 words), LoRA on query and value, 8 texts of 256 tokens, each in a process of its own:
"head": half of the tokens are labelled; "all": every token is; "logits": half are, with the scores of all words at all positions, as a
model's own call makes them; "none": the sum of the last hidden states in place of a loss.
"""

from __future__ import annotations

import resource
import subprocess
import sys

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig

from fibecfed.models.adapted_model import AdaptedModel
from fibecfed.models.answers import Answers

KINDS = ("none", "head", "all", "logits")


def peak(kind: str) -> float:
    """MB at the peak of a step."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3,
        max_position_embeddings=512, tie_word_embeddings=True, pad_token_id=0,
    )  # fmt: skip
    model = get_peft_model(AutoModelForCausalLM.from_config(config), LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"]))
    task = AdaptedModel(model, objective=Answers())
    ids = torch.randint(1, 49152, (8, 256))
    labels = ids.clone()
    labels[:, : 1 if kind == "all" else 128] = -100
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    params = {name: value.requires_grad_() for name, value in task.params().items()}
    if kind == "none":
        loss = task.hidden_states(params, {**batch, "labels": torch.full_like(ids, -100)})[-1].sum()
    elif kind == "logits":
        loss = model(**batch).loss
        params = dict(task.model.named_parameters())
        params = {name: params[name] for name in task.names}
    else:
        loss = task.losses(params, batch).sum() / (labels >= 0).sum()
    torch.autograd.grad(loss, list(params.values()), allow_unused=True)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(peak(sys.argv[1]))
    else:
        found = {
            kind: float(subprocess.run([sys.executable, __file__, kind], capture_output=True, text=True, check=True).stdout)
            for kind in KINDS
        }
        for kind, megabytes in found.items():
            print(f"{kind:8} {megabytes:7.0f} MB  {megabytes / found['none']:.2f} of the step without a head")

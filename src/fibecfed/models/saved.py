"""Models that runs saved: the base model with an adapter from a folder, as weights of plain transformers where they can be."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase, TextClassificationPipeline, TextGenerationPipeline
from transformers.utils import logging as transformers_logging

from ..core.errors import UserError
from ..core.rng import Key
from ..core.types import Batch
from .answer_task import AnswerTask
from .answers import Answers
from .base_models import Source, load_config, load_model
from .export import add_delta
from .objectives import ClassObjective
from .own_adapters import TABLE, fill, load_adapter
from .tokenizers import load_tokenizer
from .transformer_task import TransformerTask


def saved_tokenizer(source: Source, folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in an adapter's folder; that of the base model beside adapters of version 0.1, which have none."""
    if (folder / "tokenizer_config.json").is_file():
        return AutoTokenizer.from_pretrained(folder, padding_side="right", local_files_only=True)
    return load_tokenizer(source, load_config(source))


def can_merge(folder: Path) -> bool:
    """Whether an adapter can become part of the base model's weights: LoRA can; bottlenecks, prefixes and prompts cannot."""
    return not (folder / TABLE).is_file()


def load_task(
    source: Source, folder: Path, objective: ClassObjective, *, pad_token_id: int, dropout: float, device: torch.device
) -> TransformerTask:
    """The base model with the adapter of a folder, as a task in float32; LoRA is merged into the weights.

    Raises:
        UserError: a base model that cannot be had, or an adapter that is damaged or does not fit it.
    """
    model, _ = load_model(source, objective=objective, pad_token_id=pad_token_id, dropout=dropout, key=Key(0))
    if not can_merge(folder):
        return TransformerTask(load_adapter(model, folder).model, device=device)
    with _damaged(source, folder):
        adapted = PeftModel.from_pretrained(model, folder, local_files_only=True)
        add_delta(adapted, folder)
        merged: Any = adapted.merge_and_unload()
    # a task needs something to train; nothing is
    merged.requires_grad_(False)
    min(merged.parameters(), key=Tensor.numel).requires_grad_(True)
    return TransformerTask(merged, objective=objective, device=device)


@contextlib.contextmanager
def _damaged(source: Source, folder: Path) -> Iterator[None]:
    """What PEFT says of an adapter that it cannot load, as one sentence."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        said = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"{folder}: the adapter could not be loaded into {source.published} ({said}), expected one that fibecfed saved for this model; "
            "restore the folder from a backup, or resume the run without its summary.json"
        ) from error


def load_answer_task(source: Source, folder: Path, *, pad_token_id: int, device: torch.device) -> AnswerTask:
    """The base model with the adapter of a folder beside its weights, as a task that writes answers, in float32.

    Raises:
        UserError: as `load_task`.
    """
    model, _ = load_model(source, objective=Answers(), pad_token_id=pad_token_id, dropout=0.0, key=Key(0))
    if not can_merge(folder):
        fill(model, folder, head=None)
        return AnswerTask(model, objective=Answers(), device=device)
    with _damaged(source, folder):
        adapted = PeftModel.from_pretrained(model, folder, is_trainable=True, local_files_only=True)
        add_delta(adapted, folder)
        return AnswerTask(adapted, objective=Answers(), device=device)


def merged_answers(source: Source, folder: Path, *, pad_token_id: int) -> Any:
    """The causal language model with the adapter of a folder merged into its weights, float32; embeddings that were tied still are.

    Raises:
        UserError: as `load_task`.
    """
    model, _ = load_model(source, objective=Answers(), pad_token_id=pad_token_id, dropout=0.0, key=Key(0))
    with _damaged(source, folder):
        adapted = PeftModel.from_pretrained(model, folder, local_files_only=True)
        add_delta(adapted, folder)
        merged: Any = adapted.merge_and_unload()
    return merged.eval()


def with_names(task: TransformerTask, labels: Sequence[str]) -> Any:
    """The merged model of a task as transformers has it, with the names of the classes in its configuration."""
    model: Any = task.model
    model.requires_grad_(False)
    model.config.id2label = dict(enumerate(labels))
    model.config.label2id = {name: place for place, name in enumerate(labels)}
    model.config.problem_type = "single_label_classification"
    return model.eval()


@torch.no_grad()
def differs(task: TransformerTask, batch: Batch) -> float:
    """The largest difference between the class probabilities of a task and those of its model's own call on a batch of texts."""
    model: Any = task.model
    inputs = {name: value.to(task.device) for name, value in batch.items()}
    ours, own = task.logits(task.params(), batch), model(**inputs).logits.float()
    return float((ours.softmax(-1) - own.softmax(-1)).abs().max())


def pipeline_of(model: Any, tokenizer: PreTrainedTokenizerBase, max_length: int, device: torch.device) -> Any:
    """A text-classification pipeline that cuts texts where training did."""
    cut: dict[str, Any] = {"truncation": True, "max_length": max_length}
    return TextClassificationPipeline(model=model, tokenizer=tokenizer, device=device, **cut)


def answers_pipeline(model: Any, tokenizer: PreTrainedTokenizerBase, stop_ids: Sequence[int], device: torch.device) -> Any:
    """A text-generation pipeline that always takes the most likely next token, up to one of `stop_ids`."""
    tokenizer.padding_side = "left"
    model.generation_config = GenerationConfig(eos_token_id=list(stop_ids), pad_token_id=tokenizer.pad_token_id, do_sample=False)
    return TextGenerationPipeline(model=model, tokenizer=tokenizer, device=device)


def save_plain(model: Any, folder: Path) -> None:
    """Write a model's weights and configuration, as files that whoever may read the folder can read."""
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        model.save_pretrained(folder)
    finally:
        if bars:
            transformers_logging.enable_progress_bar()
    for path in folder.glob("*.safetensors"):  # safetensors' writer lets only the owner read them, whatever the umask says
        path.chmod((folder / "config.json").stat().st_mode)

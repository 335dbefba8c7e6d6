"""Adapters on disk: LoRA in PEFT's own format, so that plain `PeftModel.from_pretrained` loads it on the same base model, head included;
the others as `own_adapters` says."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from peft import PeftModel
from torch import nn
from transformers import GenerationConfig

from ..core.errors import RunFailed
from ..core.files import is_aside, write_atomically
from ..core.json_text import to_json
from ..core.task import DELTA
from ..core.types import Params
from .adapted_model import AdaptedModel
from .own_adapters import TABLE, TENSORS, save_own_adapter

DELTA_FILE = "delta.safetensors"
"""What is added to frozen weights beside the adapter, since no adapter of low rank can hold it: (d_out, d_in) by the weight's name."""


@torch.no_grad()
def add_delta(model: nn.Module, folder: str | Path) -> int:
    """Add what delta.safetensors of an adapter's folder holds to the weights of a PEFT model that the adapter was loaded into, once.

    Returns:
        How many weights were changed; 0 where there is no such file.

    Raises:
        KeyError: a weight that the model does not have.
    """
    path = Path(folder) / DELTA_FILE
    deltas = safetensors.torch.load_file(path) if path.is_file() else {}
    weights = dict(model.named_parameters())
    if unknown := sorted(deltas.keys() - weights.keys()):
        raise KeyError(f"{path} has weights that the model does not have: {unknown[:3]}; load the adapter into it first")
    for name, delta in deltas.items():
        layer: Any = model.get_submodule(name.removesuffix(".base_layer.weight"))
        weights[name].add_((delta.T if layer.fan_in_fan_out else delta).to(weights[name]))
    return len(deltas)


def save_adapter(
    task: AdaptedModel,
    params: Params,
    folder: Path,
    *,
    base: str,
    revision: str | None,
    labels: Sequence[str] | Mapping[str, Any] | None,
    card: str,
) -> None:
    """Write `params` as an adapter, with the label names and a model card; differences to frozen weights as delta.safetensors.

    Args:
        params: the task's tensors, and beside them what is added to some of its adapted weights (names ending in `DELTA`).
        base: published id of the base model, written as the adapter's base model.
        labels: class names in order, or these with the template and the words that stand for them; written to labels.json. None: it
            predicts no classes.
        card: text of the folder's README.md.

    Raises:
        TypeError: the task's model is neither PEFT's nor has an adapter of ours.
    """
    model: Any = task.model
    with task.lock:  # during a call of another thread that thread's tensors stand in the module
        if hasattr(model, "adapter"):
            save_own_adapter(model, params, folder, base=base, revision=revision)
        elif isinstance(model, PeftModel):
            _save_lora(model, params, folder, base=base, revision=revision)
        else:
            raise TypeError(f"got {type(model).__name__}, expected a PeftModel")
    if labels is not None:
        names = dict(labels) if isinstance(labels, Mapping) else list(labels)
        write_atomically(folder / "labels.json", (to_json(names, ensure_ascii=False) + "\n").encode())
    write_atomically(folder / "README.md", card.encode())


def _save_lora(model: Any, params: Params, folder: Path, *, base: str, revision: str | None) -> None:
    state = {name: value for name, value in model.state_dict().items() if "lora_" in name or "modules_to_save" in name}
    state.update({name: value.detach() for name, value in params.items() if not name.endswith(DELTA)})
    deltas = {name.removesuffix(DELTA): value.detach().contiguous() for name, value in params.items() if name.endswith(DELTA)}
    folder.mkdir(parents=True, exist_ok=True)
    # Asking for no embeddings keeps PEFT from looking the base up on the hub
    model.save_pretrained(str(folder), state_dict=state, save_embedding_layers=False)
    for path in folder.glob("*.safetensors"):  # safetensors' writer lets only the owner read them, whatever the umask says
        path.chmod((folder / "adapter_config.json").stat().st_mode)
    if deltas:
        write_atomically(folder / DELTA_FILE, safetensors.torch.save(deltas))
    path = folder / "adapter_config.json"
    table = json.loads(path.read_text(encoding="utf-8"))
    table.update(base_model_name_or_path=base, revision=revision, inference_mode=True)
    if isinstance(table["target_modules"], list):
        table["target_modules"].sort()  # PEFT writes a set
    # patterns in the order in which they are tried; PEFT sorts them
    table.update({name: getattr(model.peft_config["default"], name) for name in ("rank_pattern", "alpha_pattern")})
    write_atomically(path, (to_json(dict(sorted(table.items())), indent=2) + "\n").encode())


_OF_ADAPTER = (
    "adapter_config.json",
    "adapter_model.safetensors",
    TABLE,
    TENSORS,
    DELTA_FILE,
    "labels.json",
    "README.md",
    "generation_config.json",
)


def save_generation(folder: Path, stop_ids: Sequence[int], pad_id: int) -> None:
    """Write the tokens at which an answer ends, where serving programs look for them."""
    GenerationConfig(eos_token_id=list(stop_ids), pad_token_id=pad_id).save_pretrained(folder)


def save_tokenizer(tokenizer: Any, folder: Path, max_length: int | None) -> None:
    """Write a tokenizer that cuts a text to `max_length` tokens where it is asked to cut; None: where it did.

    Raises:
        RunFailed: the disk is full.
    """
    before = tokenizer.model_max_length
    tokenizer.model_max_length = before if max_length is None else max_length
    try:
        tokenizer.save_pretrained(folder)
    except OSError:
        raise
    except Exception as error:  # the tokenizers library has no exception of its own for a full disk
        raise RunFailed(f"{folder}: the tokenizer could not be written: {error}") from error
    finally:
        tokenizer.model_max_length = before


def tokenizer_files(folder: Path) -> list[Path]:
    """The files of an adapter's folder that are its tokenizer's: all that nothing else writes, since each kind has files of its own."""
    found = sorted(folder.iterdir()) if folder.is_dir() else []
    return [path for path in found if path.is_file() and path.name not in _OF_ADAPTER and not is_aside(path.name)]


def link_tokenizer(source: Path, folder: Path) -> bool:
    """Give an adapter's folder the tokenizer of another one, as further names of the same files, or copies where there are no such.

    Returns:
        False if there is none in `source`.
    """
    paths = tokenizer_files(source)
    for path in paths:
        target = folder / path.name
        target.unlink(missing_ok=True)
        try:
            os.link(path, target)
        except OSError:
            shutil.copyfile(path, target)
    return bool(paths)

"""Adapters on disk: LoRA in PEFT's own format, so that plain `PeftModel.from_pretrained` loads it on the same backbone, head included;
the others as `own_adapters` says."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from peft import PeftModel

from ..core.files import write_atomically
from ..core.types import Params
from .own_adapters import save_own_adapter
from .transformer_task import TransformerTask


def save_adapter(
    task: TransformerTask,
    params: Params,
    folder: Path,
    *,
    base: str,
    revision: str | None,
    labels: Sequence[str] | Mapping[str, Any],
    card: str,
) -> None:
    """Write `params` as an adapter, with the label names and a model card.

    Args:
        base: published id of the backbone, written as the adapter's base model.
        labels: class names in order, or these with the template and the words that stand for them; written to labels.json.
        card: text of the folder's README.md.

    Raises:
        TypeError: the task's model is neither PEFT's nor has an adapter of ours.
    """
    model: Any = task.model
    if hasattr(model, "adapter"):
        save_own_adapter(model, params, folder, base=base, revision=revision)
    elif isinstance(model, PeftModel):
        _save_lora(model, params, folder, base=base, revision=revision)
    else:
        raise TypeError(f"got {type(model).__name__}, expected a PeftModel")
    names = dict(labels) if isinstance(labels, Mapping) else list(labels)
    write_atomically(folder / "labels.json", (json.dumps(names, ensure_ascii=False) + "\n").encode())
    write_atomically(folder / "README.md", card.encode())


def _save_lora(model: Any, params: Params, folder: Path, *, base: str, revision: str | None) -> None:
    state = {name: value for name, value in model.state_dict().items() if "lora_" in name or "modules_to_save" in name}
    state.update({name: value.detach() for name, value in params.items()})
    folder.mkdir(parents=True, exist_ok=True)
    # Asking for no embeddings keeps PEFT from looking the base up on the hub
    model.save_pretrained(str(folder), state_dict=state, save_embedding_layers=False)
    path = folder / "adapter_config.json"
    table = json.loads(path.read_text(encoding="utf-8"))
    table.update(base_model_name_or_path=base, revision=revision, inference_mode=True)
    write_atomically(path, (json.dumps(table, indent=2, sort_keys=True) + "\n").encode())

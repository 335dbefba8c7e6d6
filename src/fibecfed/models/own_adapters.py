"""Adapters that are not PEFT's: beside a classifier in memory, and in a folder.

The folder holds adapter.safetensors (what was trained, the whole head, source prompts) and adapter.json (kind, options, base model).
PEFT's formats are not used: on encoders its classifiers read the class from the first soft token, so they would compute something else.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from ..adapters.make import attach
from ..adapters.options import ADAPTERS, called
from ..core.errors import UserError
from ..core.files import write_atomically
from ..core.json_text import from_json, to_json
from ..core.options import Options
from ..core.rng import Key
from ..core.types import Params
from .answer_task import AnswerTask
from .answers import Answers
from .heads import head_modules, last_linear
from .transformer_task import TransformerTask

TENSORS, TABLE = "adapter.safetensors", "adapter.json"
_SOURCES = "adapter.sources"


def add_adapter(
    model: Any,
    options: Options,
    *,
    head: Literal["full", "last"] | None = "full",
    drawn: Sequence[str] = (),
    key: Key,
    sources: Tensor | None = None,
) -> None:
    """Freeze a Hugging Face model, give it an adapter drawn from `key`, and let the linear maps of its head be trained.

    Args:
        options: one of `adapters.options`.
        head: the whole head, or its last linear map alone; None: a model that answers, whose head stays as it is.
        drawn: paths of modules that the model's file had no weights for; whatever of them is no part of the head is treated as if it were.
        sources: source prompts of a mixed prompt, (sources, tokens, hidden).

    Raises:
        UserError: sources that do not fit, or a model with two widths.
        UnsupportedModel: a classifier whose head is not known.
    """
    beside = () if head is None else tuple(dict.fromkeys([*head_modules(model), *drawn]))
    attach(model, options, key=key, sources=sources)
    model.adapter.beside = beside
    for path in [last_linear(model)] if head == "last" else beside:
        for module in model.get_submodule(path).modules():
            if isinstance(module, nn.Linear):  # a norm in the head stays as it is, as with LoRA
                module.requires_grad_(True)


def save_own_adapter(model: Any, params: Params, folder: Path, *, base: str, revision: str | None) -> None:
    """Write `params` and all else that the frozen base model lacks."""
    state = model.state_dict()
    kept = {name: state[name] for name in state if name.startswith(tuple(f"{path}." for path in model.adapter.beside)) or name == _SOURCES}
    tensors = {name: value.detach().to("cpu").contiguous() for name, value in {**kept, **params}.items()}
    options: Options = model.adapter.options
    table = {"format": 1, "kind": called(options), "options": options.model_dump(), "base": base, "revision": revision}
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / TENSORS, save_tensors(tensors))
    write_atomically(folder / TABLE, (to_json(table, indent=2, sort_keys=True) + "\n").encode())


def load_adapter(model: Any, folder: str | Path) -> TransformerTask:
    """A classifier with an adapter that a run saved: `task.predict(task.params(), batch)`.

    Args:
        model: the classifier of the adapter's base model, as transformers loads it, with as many classes; it is changed.
        folder: of the adapter.

    Raises:
        UserError: the folder holds no such adapter, or one that does not fit the model.
    """
    fill(model, folder, head="full")
    return TransformerTask(model)


def load_answers(model: Any, folder: str | Path) -> AnswerTask:
    """A causal language model with an adapter that a run saved: `task.generate(task.params(), prompts, ...)`.

    Args:
        model: the adapter's base model, as transformers loads it; it is changed.
        folder: of the adapter.

    Raises:
        UserError: as `load_adapter`.
    """
    fill(model, folder, head=None)
    return AnswerTask(model, objective=cast("Any", Answers()))


def fill(model: Any, folder: str | Path, *, head: Literal["full"] | None) -> None:
    """Give a model the adapter of a folder.

    Args:
        head: as in `add_adapter`.

    Raises:
        UserError: as `load_adapter`.
    """
    folder = Path(folder)
    try:
        table = from_json((folder / TABLE).read_bytes())
        options = ADAPTERS[table["kind"]].model_validate(table["options"])
        tensors = load_file(folder / TENSORS)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        said = str(error).splitlines()[0]
        raise UserError(f"{folder}: got no adapter that fibecfed saved ({said}), expected {TABLE} and {TENSORS}") from error
    if hasattr(model, "adapter"):
        raise UserError(f"got a {type(model).__name__} that has an adapter, expected one as transformers loads it; load it again")
    add_adapter(model, options, head=head, key=Key(0), sources=tensors.get(_SOURCES))
    state = model.state_dict()
    misfits = [name for name, value in tensors.items() if name not in state or state[name].shape != value.shape]
    missing = [name for name in state if name.startswith("adapter.") and name not in tensors]
    if misfits or missing:
        raise UserError(
            f"{folder}: got tensors that do not fit this {type(model).__name__}: {', '.join([*misfits, *missing][:3])}; expected those of "
            f"an adapter for {table['base']}; load that model" + (", with the same number of classes" if head else "")
        )
    with torch.no_grad():
        for name, value in tensors.items():
            state[name].copy_(value)

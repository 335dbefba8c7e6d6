"""A sequence classifier as an ONNX file. Needs the extra `onnx`."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..core.errors import UserError

FILE = "model.onnx"
_MODULES = ("onnxruntime", "onnxscript")
_LARGEST = 1_500_000_000
"""Bytes of weights in the file itself, which protobuf limits to 2 GB; more lie beside it."""


def reject_without_onnx() -> None:
    """Say what to install.

    Raises:
        UserError: the extra is missing.
    """
    if missing := [name for name in _MODULES if importlib.util.find_spec(name) is None]:
        raise UserError(f"--onnx: the packages {' and '.join(missing)} are missing; run in a clone of fibecfed: pip install '.[onnx]'")


class _Logits(nn.Module):
    def __init__(self, model: Any, names: tuple[str, ...]) -> None:
        super().__init__()
        self._model = model
        self._names = names

    def forward(self, *inputs: Tensor) -> Tensor:
        return self._model(**dict(zip(self._names, inputs, strict=True))).logits


@torch.no_grad()
def save_onnx(model: Any, batch: Mapping[str, Tensor], folder: Path) -> None:
    """Write a model for any number of texts of any length: from int64 (batch, token) to the class scores `logits`, (batch, classes).

    Args:
        batch: two texts of different length, all inputs of the model by name; the model is traced on them.

    Raises:
        UserError: the model cannot be written so.
    """
    names = tuple(batch)
    inputs = tuple(value.cpu() for value in batch.values())
    whole = _Logits(model.cpu(), names).eval()
    axes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("token")}
    large = sum(value.numel() * value.element_size() for value in model.parameters()) > _LARGEST
    try:
        with _quiet():
            torch.onnx.export(
                whole, inputs, folder / FILE, input_names=list(names), output_names=["logits"], dynamo=True,
                dynamic_shapes=(tuple(axes for _ in names),), external_data=large, verbose=False,
            )  # fmt: skip
    except Exception as error:  # the exporter has a kind of its own for each stage
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise UserError(f"--onnx: {type(model).__name__} could not be written as ONNX ({said}); take --merged") from error


def onnx_logits(folder: Path, batch: Mapping[str, Tensor]) -> Tensor:
    """What the file in a folder computes of a batch, by onnxruntime on the CPU."""
    import onnxruntime

    session: Any = onnxruntime.InferenceSession(str(folder / FILE), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {name: value.cpu().numpy() for name, value in batch.items()})[0])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Inside, the exporter says nothing of its own workings."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [one.level for one in loggers]
    for one in loggers:
        one.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for one, level in zip(loggers, levels, strict=True):
            one.setLevel(level)

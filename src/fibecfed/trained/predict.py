"""Predicting the classes of the texts in a file."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..core.errors import RunFailed, UserError
from ..core.files import expanded, write_new
from ..core.streams import write_output
from ..data.rows import FileRows, packed_like, read_rows
from ..data.user_files import extension_of
from .model import TrainedModel, Watch

PREDICTED, PROBABILITY = "predicted_label", "probability_{}"
"""Names of the columns that are written."""


@dataclass(frozen=True)
class TextColumns:
    """Which columns hold the texts and their labels; None: as the run's configuration says."""

    text: str | None = None
    pair: str | None = None
    label: str | None = None


def read_texts(model: TrainedModel, file: str, columns: TextColumns) -> tuple[FileRows, list[str], list[str] | None]:
    """A file's rows, their texts, and their second texts where the model reads two.

    Raises:
        UserError: a file that cannot be read, has no such column, or rows without a text.
    """
    named = names_of(model, columns)
    rows = read_rows(file, named[0])
    texts = rows.texts(named[0], "--text-column")
    return rows, texts, None if named[1] is None else rows.texts(named[1], "--pair-column")


def names_of(model: TrainedModel, columns: TextColumns) -> tuple[str, str | None]:
    """The columns of the first and of the second text.

    Raises:
        UserError: the second one is not known, or given for a model that reads one text.
    """
    options = model.found.config.data
    if not model.pair and columns.pair is not None:
        raise UserError(f"--pair-column: got {columns.pair!r}, but this model reads one text; leave it out")
    pair = columns.pair or options.pair_column
    if model.pair and pair is None:
        raise UserError("--pair-column: got none, but this model reads two texts; name the column of the second")
    return columns.text or options.text_column, pair if model.pair else None


def predicted(labels: Sequence[str], probabilities: Tensor) -> dict[str, list[Any]]:
    """The columns that are written: the most probable class of each row, and the probability of each class."""
    columns: dict[str, list[Any]] = {PREDICTED: [labels[place] for place in probabilities.argmax(-1).tolist()]}
    for place, name in enumerate(labels):
        columns[PROBABILITY.format(name)] = probabilities[:, place].tolist()
    return columns


def reject_taken(out: Path | None, file: str) -> None:
    """Reject an output that exists, or of another kind than the input.

    Raises:
        UserError: either.
    """
    if out is None:
        return
    if out.exists() or out.is_symlink():
        raise UserError(f"--out: {out} exists already, and nothing is overwritten; choose another name")
    if file != "-" and extension_of(out) != extension_of(expanded(file)):
        raise UserError(
            f"--out: got {out.name!r} for {file}, expected a name ending in {extension_of(expanded(file))}; rows stay as they are"
        )


def predict_file(model: TrainedModel, file: str, out: Path | None, columns: TextColumns, watch: Watch) -> tuple[str, ...]:
    """Write a file's rows again, with the predicted class and the probabilities.

    Args:
        out: a new file; None: standard output.

    Returns:
        What the user has to be told about how the file was read.

    Raises:
        UserError: see `read_texts`; or the output exists, or cannot be written.
    """
    reject_taken(out, file)
    rows, texts, pairs = read_texts(model, file, columns)
    if rows.form == "parquet" and out is None and sys.stdout.isatty():
        raise UserError(f"{file}: parquet is not text for a terminal; give a file with --out, or a pipe")
    data = rows.with_columns(predicted(model.labels, model.probabilities(texts, pairs, watch)))
    if out is None:
        try:
            write_output(data)
        except OSError as error:
            raise RunFailed(f"standard output could not be written ({error.strerror})") from error
    else:
        write_out(out, packed_like(out, data))
    return (*rows.notes, *rows.changed())


def write_out(out: Path, data: bytes) -> None:
    """Write a new file.

    Raises:
        UserError: it exists, or its folder cannot be written.
        RunFailed: the disk is full.
    """
    try:
        write_new(out, data)
    except FileExistsError:
        raise UserError(f"--out: {out} exists already, and nothing is overwritten; choose another name") from None
    except (FileNotFoundError, NotADirectoryError, PermissionError) as error:
        raise UserError(f"--out: {out} cannot be written ({error.strerror}); choose another place") from None
    except OSError as error:
        raise RunFailed(f"--out: {out} could not be written ({error.strerror}); nothing is left of it") from error


__all__ = ["PREDICTED", "PROBABILITY", "TextColumns", "predict_file", "predicted", "read_texts", "write_out"]

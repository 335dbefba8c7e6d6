"""The texts of the examples that a report names: read again from the data of a simulation, and only where they were asked for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ....build import read_inputs
from ....config import load
from ....core.errors import UserError
from ....core.files import CONFIG, FLOWER
from ..results import ComparisonResults
from .examples import listed

_MOST = 300
"""Characters of a text that are shown."""


def with_texts(comparison: ComparisonResults) -> ComparisonResults:
    """The same with the texts of the easiest and the hardest training examples, as the model reads them.

    Raises:
        UserError: it is not of a single run, its data lie on other machines, they are no longer the same, or it has scored no examples.
    """
    files = comparison.files
    if files is None:
        raise UserError("--texts: got the folder of a comparison, expected that of one run; name one of its runs")
    if (files.folder / FLOWER).is_file() or files.header["configuration"]["federation"].get("partition") == "machines":
        raise UserError("--texts: the texts of this run lie on its clients' machines; leave the option out")
    places = listed(files)
    if not places:
        raise UserError("--texts: this run recorded no difficulty of examples (methods with a curriculum by Fisher information do)")
    inputs = read_inputs(load(files.folder / CONFIG).config)
    known = files.header.get("data", {}).get("sha256")
    if known is not None and inputs.data.checksum() != known:
        raise UserError(
            f"--texts: the data of {files.folder} are no longer those that it was trained on; put them back, or leave the option out"
        )
    names = inputs.data.label_names or ()
    texts: dict[tuple[str, int], tuple[str, str]] = {}
    for client, place in places:
        train: Any = inputs.data.client(client).train
        row = int(train.indices[place])
        start, end = (int(offset) for offset in train.table.offsets[row : row + 2])
        text = str(inputs.tokenizer.decode(train.table.ids[start:end].tolist(), skip_special_tokens=True))
        label = "-" if train.labels is None else names[int(train.labels[place])]
        texts[client, place] = label, text if len(text) <= _MOST else f"{text[: _MOST - 1]}…"
    return replace(comparison, files=replace(files, texts=texts))

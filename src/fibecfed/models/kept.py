"""The weights of the base model that was loaded last, for a process that makes many runs with it: in memory once."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel


class KeptWeights:
    """One model's weights in memory, which they share with the models that were made of them: a task never leaves its module written.

    Loading from them gives the same bits as loading from the files: heads and whatever else the files lack are initialised again each time.
    """

    def __init__(self) -> None:
        self._kept: tuple[Any, Any, dict[str, Tensor]] | None = None

    def find(self, name: object, files: Sequence[Path]) -> tuple[Any, dict[str, Tensor]] | None:
        """Class and weights of the model kept under `name`, if its files are still what they were."""
        if self._kept is None or self._kept[0] != _identity(name, files):
            return None
        return self._kept[1], dict(self._kept[2])

    def keep(self, name: object, files: Sequence[Path], model: PreTrainedModel, drawn: Collection[str]) -> None:
        """Keep the weights of a model just loaded, without those that were drawn, in place of any kept before."""
        weights = {key: value.detach() for key, value in model.state_dict().items() if key not in drawn}
        self._kept = _identity(name, files), type(model), weights


def _identity(name: object, files: Sequence[Path]) -> tuple[object, list[object]]:
    return name, [(path, (stat := path.stat()).st_mtime_ns, stat.st_size) for path in files]

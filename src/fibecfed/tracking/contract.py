"""What a tracker is: it is opened once for a run and takes the values of one step after the other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True)
class TrackedRun:
    """The run that is tracked.

    Attributes:
        folder: the run's own; a tracker writes into the folder in it that is called after the tracker.
        settings: dotted key of the configuration -> its value.
        completed: rounds completed so far; above 0, the run is resumed.
    """

    folder: Path
    settings: Mapping[str, Any]
    completed: int

    @property
    def name(self) -> str:
        """What a user knows the run by."""
        return self.folder.absolute().name


class Tracker(Protocol):
    """Where the values of a run are written. Whatever it raises ends the tracking and not the run."""

    @property
    def last(self) -> int:
        """The last step that an earlier process wrote and a kill cannot have taken; -1: none. Steps up to it are not given again."""
        ...

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write all values of one step.

        Args:
            step: rounds completed over all phases; 0 is the untrained model. It only grows.
            values: name -> value, which need not be finite; "/" in a name separates a group from what is in it.
        """
        ...

    def close(self, *, finished: bool) -> None:
        """Nothing comes any more; `finished`: the run came to its end."""
        ...

"""TensorBoard: event files in RUN/tensorboard; `tensorboard --logdir RUN` shows them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from .contract import TrackedRun


class _Events:
    def __init__(self, run: TrackedRun) -> None:
        folder = run.folder / "tensorboard"
        before = sorted(folder.glob("events.out.tfevents.*"))
        _wait_for_later_name(before)
        self.last = run.completed if before and run.completed else -1
        # A process that was killed may have left steps behind the checkpoint: TensorBoard drops those from `purge_step` on.
        self._writer = SummaryWriter(str(folder), purge_step=self.last + 1 if before else None)
        if self.last < 0:
            text = "\n".join(f"    {key} = {value}" for key, value in run.settings.items())  # four spaces: code in Markdown
            self._writer.add_text("configuration", text, 0)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def close(self, *, finished: bool) -> None:
        self._writer.close()


def _wait_for_later_name(files: list[Path]) -> None:
    """TensorBoard reads files in the order of their names: the second in which they were begun, then host and process."""
    newest = max((int(second) for file in files if (second := file.name.split(".")[3]).isdigit()), default=0)
    while newest - 1 <= int(time.time()) <= newest:
        time.sleep(0.02)


def start(run: TrackedRun) -> _Events:
    """A tracker that writes event files."""
    return _Events(run)

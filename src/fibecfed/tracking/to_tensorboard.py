"""TensorBoard: event files in RUN/tensorboard; `tensorboard --logdir RUN` shows them."""

from __future__ import annotations

from collections.abc import Mapping

from torch.utils.tensorboard import SummaryWriter

from .contract import TrackedRun


class _Events:
    def __init__(self, run: TrackedRun) -> None:
        folder = run.folder / "tensorboard"
        before = folder.is_dir() and any(folder.glob("events.out.tfevents.*"))
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


def start(run: TrackedRun) -> _Events:
    """A tracker that writes event files."""
    return _Events(run)

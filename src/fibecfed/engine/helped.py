"""Whose masks a helper has added up in which round: a file that is only ever appended to, so that no restart lets it forget one."""

from __future__ import annotations

import os
from pathlib import Path

from ..core.errors import UserError
from ..core.files import sync_folder, write_all
from ..core.json_text import from_json, to_json
from ..secure.helper import Answered

HELPED = "helped.jsonl"

NEW_KEY = (
    "an older copy of it would let it add them up again, so give the helper a new --folder, have `fibecfed helper --show-key` make a new "
    "key there, and pin that in place of this one"
)


class HelpedSums:
    """The sums, by run and round.

    Args:
        folder: the helper's.

    Raises:
        UserError: the file is missing or damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / HELPED
        if not self.path.exists():
            raise UserError(f"{self.path}: is missing, and says which sums this helper must not add up again; {NEW_KEY}")
        self._known: dict[tuple[str, int], Answered] = {}
        whole, self._end = self._lines()
        for number, line in enumerate(whole, start=1):
            self._read(number, line)

    @staticmethod
    def begin(folder: Path) -> None:
        """Make the file of a helper that has not answered yet. It lies there before the helper's key does, so that one without the other
        is a loss."""
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        (folder / HELPED).touch(mode=0o600)
        sync_folder(folder)

    def of(self, run: str, round_number: int) -> Answered | None:
        """The sum of a round; None: there was none."""
        return self._known.get((run, round_number))

    def add(self, run: str, round_number: int, answered: Answered) -> None:
        """Add a sum; returns once it is on the disk. One that is there already is not written again."""
        if self.of(run, round_number) == answered:
            return
        assert self.of(run, round_number) is None, "another sum of a round is rejected before"
        line = to_json({"run": run, "round": round_number, "sum": answered.sum, "survivors": list(answered.survivors)}) + "\n"
        file = os.open(self.path, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            os.ftruncate(file, self._end)  # half a line, whose sum never left
            write_all(file, line.encode(), self._end)
            os.fsync(file)
        finally:
            os.close(file)
        self._end += len(line.encode())
        self._known[run, round_number] = answered

    def _lines(self) -> tuple[list[bytes], int]:
        """The whole lines, and where they end: behind them there may be half a line, of when the helper was killed."""
        blob = self.path.read_bytes()
        end = blob.rfind(b"\n") + 1
        return blob[:end].splitlines(), end

    def _read(self, number: int, line: bytes) -> None:
        try:
            table = from_json(line)
            place = str(table["run"]), int(table["round"])
            self._known[place] = Answered(str(table["sum"]), tuple(map(str, table["survivors"])))
        except (KeyError, TypeError, ValueError):
            raise UserError(
                f"{self.path}: line {number} is damaged, and says which sums this helper must not add up again; {NEW_KEY}"
            ) from None

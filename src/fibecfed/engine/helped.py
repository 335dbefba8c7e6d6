"""Whose masks a helper has added up in which round: a file that is only ever appended to, so that no restart lets it forget one."""

from __future__ import annotations

import os
from pathlib import Path

from ..core.errors import UserError
from ..core.files import sync_folder, write_all
from ..core.json_text import from_json, to_json
from ..secure.helper import Answered

HELPED = "helped.jsonl"


class HelpedSums:
    """The sums, by run and round.

    Args:
        folder: the helper's.

    Raises:
        UserError: the file is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / HELPED
        self._known: dict[tuple[str, int], Answered] = {}
        whole, self._end = self._lines()
        for number, line in enumerate(whole, start=1):
            self._read(number, line)

    def of(self, run: str, round_number: int) -> Answered | None:
        """The sum of a round; None: there was none."""
        return self._known.get((run, round_number))

    def add(self, run: str, round_number: int, answered: Answered) -> None:
        """Add a sum; returns once it is on the disk. One that is there already is not written again."""
        if self.of(run, round_number) == answered:
            return
        assert self.of(run, round_number) is None, "another sum of a round is rejected before"
        line = to_json({"run": run, "round": round_number, "sum": answered.sum, "survivors": list(answered.survivors)}) + "\n"
        new = not self.path.exists()
        file = os.open(self.path, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            os.ftruncate(file, self._end)  # half a line, whose sum never left
            write_all(file, line.encode(), self._end)
            os.fsync(file)
        finally:
            os.close(file)
        if new:
            sync_folder(self.path.parent)
        self._end += len(line.encode())
        self._known[run, round_number] = answered

    def _lines(self) -> tuple[list[bytes], int]:
        """The whole lines, and where they end: behind them there may be half a line, of when the helper was killed."""
        blob = self.path.read_bytes() if self.path.exists() else b""
        end = blob.rfind(b"\n") + 1
        return blob[:end].splitlines(), end

    def _read(self, number: int, line: bytes) -> None:
        try:
            table = from_json(line)
            place = str(table["run"]), int(table["round"])
            self._known[place] = Answered(str(table["sum"]), tuple(map(str, table["survivors"])))
        except (KeyError, TypeError, ValueError):
            raise UserError(
                f"{self.path}: line {number} is damaged, and says which sums this helper must not add up again; restore the file from a "
                "backup, or give the helper another --folder with a new key, and pin that in place of this one"
            ) from None

"""A client's states on its own disk: the one after each round in which it trained, so that a server can go back to a checkpoint."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ...core.files import write_atomically
from ...core.types import ClientId
from ...core.wire import WireError, decode

_NAME = re.compile(r"state-(\d{8})\.safetensors")


class RoundStates:
    """One client's states of one run.

    `now` is the number of the round under way: `get` gives the state before it, `put` keeps the one after it.

    Args:
        folder: made when there is something to keep.
        keep: states that are kept, the newest ones.
        kind: message class of a state, which a damaged file does not have; None: not looked at.
    """

    def __init__(self, folder: Path, keep: int, kind: type[Any] | None = None) -> None:
        self.folder = folder
        self.now = 0
        self._keep = keep
        self._kind = kind

    def get(self, client: ClientId) -> bytes | None:
        """The state after the last round before `now` in which the client trained; None: it never did.

        Raises:
            WireError: the file is damaged.
        """
        before = [number for number in self.numbers() if number < self.now]
        if not before:
            return None
        path = self._path(max(before))
        blob = path.read_bytes()
        try:
            if self._kind is not None:
                decode(self._kind, blob)
        except WireError as error:
            raise WireError(f"{path}: {error}; restore it from a backup, or remove it: the client then has its state before that") from None
        return blob

    def begin(self, number: int) -> None:
        """The round `number` is under way from now on."""
        self.now = number

    def before(self, client: ClientId) -> bytes | None:
        """As `get`."""
        return self.get(client)

    def put(self, client: ClientId, blob: bytes) -> None:
        """Keep the state after the round `now`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self._path(self.now), blob)
        for number in sorted(self.numbers())[: -self._keep]:
            self._path(number).unlink(missing_ok=True)

    def forget_from(self, number: int) -> None:
        """Remove the states after the round `number` and later ones: the server went back to before it."""
        for later in self.numbers():
            if later >= number:
                self._path(later).unlink(missing_ok=True)

    def numbers(self) -> list[int]:
        """Rounds after which there is a state."""
        names = [path.name for path in self.folder.iterdir()] if self.folder.is_dir() else []
        return [int(found[1]) for name in names if (found := _NAME.fullmatch(name))]

    def _path(self, number: int) -> Path:
        return self.folder / f"state-{number:08d}.safetensors"

"""What was charged to whom: `privacy.jsonl` in the run's folder, one line a release, flushed to the disk before the release is made.

Every line ends in a code (HMAC) over it and the one before, made with the run's secret, so that a line which was changed, taken out or
put in is noticed. The secret lies in the folder of checkpoints, which nobody is given, and goes when the run is done: with it the noise
could be subtracted. The sum of a release stands in its line as a code with the secret, not as a plain hash, by which somebody who knows all
other updates could try out guesses of one.
"""

from __future__ import annotations

import hmac
import os
import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..core.errors import UserError
from ..core.files import CHECKPOINTS, sync_folder
from ..core.json_text import from_json, to_json
from ..core.types import ClientId
from .gaussian import epsilon_of
from .noise import key_of

LEDGER, SECRET = "privacy.jsonl", "noise.secret"
LEDGERS, SECRETS = "ledgers", "secrets"
"""In a simulation: the folder with one for each client's own ledger, and the one in that of checkpoints with their secrets."""
VERSION = 1
EVALUATION = "evaluation"
"""The phase of a release that is no round's, but its scores'."""
_SIZE = 32
_CODE = "code"


class BudgetSpent(Exception):
    """One more release would pass the budget; nothing was charged."""


@dataclass(frozen=True)
class Terms:
    """What a ledger is kept for; every resumed run must have the same.

    Attributes:
        unit: what is protected.
        units: how many there are.
        per_round: how many take part in a round.
        rounds: planned ones.
        budget: epsilon that must not be passed; None: no limit.
    """

    unit: str
    units: int
    per_round: int
    rounds: int
    noise_multiplier: float
    clip_norm: float
    delta: float
    budget: float | None


@dataclass(frozen=True)
class Release:
    """A sum that noise is to be added to.

    Attributes:
        round: its number over all phases of the run.
        numbers: how many numbers it has.
        z: the noise multiplier.
        clip: the L2 norm by which one client can move it.
        divisor: of the mean that is made of it.
        sum: SHA-256 of the sum without noise; written only as a code.
        charged: the clients that it is about.
        times: how many such sums each of them is charged for; the release is all of them together.
    """

    round: int
    phase: str
    numbers: int
    z: float
    clip: float
    divisor: int
    sum: bytes
    charged: Sequence[ClientId]
    times: int = 1


class Ledger:
    """The charges of one run; one process at a time, the holder of the run's lock.

    Args:
        folder: of the run.
        draw: where the secret comes from; None: the operating system, as always but in tests.
        kept: as `mark` gave it for the checkpoint that a run is resumed from; None: there is no checkpoint.
        data: what identifies the clients and what they hold; the ledger has a code of it that only the secret's holder can check.
        recorded: rounds that the run's records hold, each of which was charged before it was released.
        secret: the file of the secret; None: in the folder of checkpoints.

    Raises:
        UserError: a ledger that is another run's, was edited, or lacks lines or the secret.
    """

    def __init__(
        self,
        folder: Path,
        terms: Terms,
        *,
        kept: Mapping[str, Any] | None = None,
        draw: Callable[[int], bytes] | None = None,
        recorded: int = 0,
        data: str = "",
        secret: Path | None = None,
    ) -> None:
        self.path, self.terms = folder / LEDGER, terms
        self._secret_path = folder / CHECKPOINTS / SECRET if secret is None else secret
        self._spent: dict[ClientId, float] = {}
        self._releases: dict[tuple[int, str], int] = {}  # round and code of its sum -> attempt
        self._attempts: dict[tuple[int, str], int] = {}  # by round and phase
        self._code, self._lines, self._data = "", 0, data
        blob = self.path.read_bytes() if self.path.exists() else b""
        if b"\n" not in blob:  # stopped before its first line was whole, and so before anything was released
            if kept is not None or recorded:
                raise _lost(self.path, "it is empty or missing")
            self._secret = (draw or secrets.token_bytes)(_SIZE)
            self.path.unlink(missing_ok=True)
            self._begin()
        else:
            self._secret = self._read_secret()
            self._read(blob, kept)
            if kept is None and (known := len({number for number, _ in self._attempts})) < recorded:
                raise _lost(self.path, f"it has those of {known} rounds, and {recorded} are recorded")

    @property
    def mu2_max(self) -> float:
        """The largest sum of 1/z^2 that any client was charged."""
        return max(self._spent.values(), default=0.0)

    @property
    def epsilon(self) -> float:
        """The guarantee of the client that was charged most."""
        return epsilon_of(self.mu2_max, self.terms.delta)

    @property
    def clients(self) -> int:
        """How many were charged."""
        return len(self._spent)

    @property
    def releases(self) -> int:
        """How many sums were noised."""
        return len(self._releases)

    def mark(self) -> dict[str, Any]:
        """What a checkpoint holds of it, as JSON values: later the ledger must still begin so."""
        return {"lines": self._lines, _CODE: self._code}

    def charged(self, round_number: int, phase: str | None = None) -> bool:
        """Whether a release of this round was charged; of this phase, if one is named."""
        return any(number == round_number and phase in (None, name) for number, name in self._attempts)

    def affords(self, clients: Collection[ClientId], z: float, times: int = 1) -> bool:
        """Whether one more release with noise z about these clients, or so many, stay within the budget."""
        if self.terms.budget is None:
            return True
        most = max((self._spent.get(client, 0.0) for client in clients), default=0.0) + times / z**2
        return epsilon_of(most, self.terms.delta) <= self.terms.budget

    def charge(self, release: Release) -> bytes:
        """The key of the release's noise, once its charge is on the disk.

        The same sum of the same round was released before, if the run stopped after that: it gets the same noise and is not charged again.

        Raises:
            BudgetSpent: it would pass the budget; nothing was written.
        """
        coded = key_of(self._secret, "sum", release.phase, release.round, release.sum)
        known = release.round, coded.hex()
        if known not in self._releases:
            if not self.affords(release.charged, release.z, release.times):
                raise BudgetSpent
            spent = self._after(release.charged, release.z, release.times)
            table = asdict(release)
            del table["sum"]
            line = {
                "round": release.round,
                "attempt": self._attempts.get((release.round, release.phase), 0),
                "phase": release.phase,
                "mechanism": "gaussian",
                **table,
                "charged": list(release.charged),
                "sum_code": coded.hex(),
                "mu2_max": max(spent.values()),
            }
            self._write(line | self._standing(line["mu2_max"]))
            self._take(line, spent)
        return key_of(self._secret, "noise", coded)

    def key(self, *names: str | int | bytes) -> bytes:
        """A key for one purpose, from the secret."""
        return key_of(self._secret, *names)

    def forget(self) -> None:
        """The run is done: its noise cannot be computed again from here on."""
        self._secret_path.unlink(missing_ok=True)

    def _standing(self, mu2: float) -> dict[str, float]:
        return {"epsilon_max": epsilon_of(mu2, self.terms.delta), "delta": self.terms.delta}

    def _after(self, clients: Sequence[ClientId], z: float, times: int) -> dict[ClientId, float]:
        return {**self._spent, **{client: self._spent.get(client, 0.0) + times / z**2 for client in clients}}

    def _take(self, line: Mapping[str, Any], spent: dict[ClientId, float]) -> None:
        self._spent = spent
        self._releases[line["round"], line["sum_code"]] = line["attempt"]
        self._attempts[line["round"], line["phase"]] = line["attempt"] + 1

    # ---- files

    def _begin(self) -> None:
        """The secret first: a ledger without it could not be read."""
        self._secret_path.parent.mkdir(parents=True, exist_ok=True)
        self._secret_path.unlink(missing_ok=True)
        file = os.open(self._secret_path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.write(file, self._secret)
            os.fsync(file)
        finally:
            os.close(file)
        sync_folder(self._secret_path.parent)
        self._write({"ledger": VERSION, **asdict(self.terms), "data_code": self._data_code(), "mu2_max": 0.0, **self._standing(0.0)})
        sync_folder(self.path.parent)

    def _write(self, line: Mapping[str, Any]) -> None:
        """Append a line; returns once it is on the disk."""
        text = to_json(line)
        code = self._code_of(text)
        blob = f"{text[:-1]}, {to_json({_CODE: code})[1:]}\n".encode()
        file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            done = 0
            while done < len(blob):
                done += os.write(file, blob[done:])
            os.fsync(file)
        finally:
            os.close(file)
        self._code, self._lines = code, self._lines + 1

    def _data_code(self) -> str:
        return key_of(self._secret, "data", self._data).hex()

    def _code_of(self, text: str) -> str:
        return key_of(self._secret, "line", self._code, text).hex()

    def _read_secret(self) -> bytes:
        try:
            secret = self._secret_path.read_bytes()
        except OSError:
            secret = b""
        if len(secret) != _SIZE:
            raise UserError(
                f"{self._secret_path}: the secret of the run's noise is missing, so that its rounds cannot be repeated with the same "
                "noise; restore the file, or start a new run, whose charges add to those of this one"
            )
        return secret

    def _read(self, blob: bytes, kept: Mapping[str, Any] | None) -> None:
        whole, _, torn = blob.rpartition(b"\n")
        for number, raw in enumerate(whole.split(b"\n")):
            line = self._verified(raw, number)
            if number == 0:
                self._check_terms(line)
            else:
                self._take(line, self._after(line["charged"], line["z"], line.get("times", 1)))
            if kept is not None and kept["lines"] == self._lines and kept[_CODE] != self._code:
                raise _lost(self.path, f"line {self._lines} is not the one that the checkpoint saw")
        if kept is not None and kept["lines"] > self._lines:
            raise _lost(self.path, f"it has {self._lines} lines, and the checkpoint saw {kept['lines']}")
        if torn:  # its release was never made: that waits for the whole line
            with self.path.open("r+b") as file:
                file.truncate(len(whole) + 1)
                os.fsync(file.fileno())

    def _verified(self, raw: bytes, number: int) -> dict[str, Any]:
        text, mark, code = raw.decode(errors="replace").rpartition(f', "{_CODE}": ')
        expected = self._code_of(text + "}")
        if not mark or not hmac.compare_digest(code.encode(), f'"{expected}"}}'.encode()):
            raise UserError(
                f"{self.path}: line {number + 1} was changed, or is of another run; restore the file, or start a new run, whose charges "
                "add to those of this one"
            )
        self._code, self._lines = expected, number + 1
        return from_json(text + "}")

    def _check_terms(self, line: Mapping[str, Any]) -> None:
        for name, value in asdict(self.terms).items():
            if line.get(name) != value:
                raise UserError(
                    f"{self.path}: {name}: got {value}, expected {line.get(name)}, which the ledger was begun with; set it back, or start "
                    "a new run"
                )
        if line.get("data_code") != self._data_code():
            raise UserError(
                f"{self.path}: got clients or data that are not those which the ledger was begun with, so that others would be charged; "
                "restore the data, or start a new run"
            )


def forget(folder: Path) -> None:
    """Remove the secrets of a run's noise, if they are there."""
    (folder / CHECKPOINTS / SECRET).unlink(missing_ok=True)
    for secret in (folder / CHECKPOINTS / SECRETS).glob("*"):
        secret.unlink(missing_ok=True)


def epsilon_of_clients(folder: Path) -> float:
    """The largest epsilon in the ledgers that the clients of a simulation keep in its folder; 0 where there are none."""
    whole = (path.read_bytes().rpartition(b"\n")[0] for path in (folder / LEDGERS).glob(f"*/{LEDGER}"))  # none while the first is written
    return max((float(from_json(lines.rpartition(b"\n")[2])["epsilon_max"]) for lines in whole if lines), default=0.0)


def _lost(path: Path, what: str) -> UserError:
    return UserError(f"{path}: charges of this run are missing: {what}; restore the file, or start a new run, whose charges add to those")

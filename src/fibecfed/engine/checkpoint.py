"""Checkpoints: a run continues bit for bit from the newest one, whatever moment it was killed at.

    checkpoints/checkpoint-00000012.json            number, server file, packs and how much of each, `extra`, SHA-256 of all that
    checkpoints/server-00000012-<sha256>.state      the server's state
    checkpoints/clients/00000003.pack               clients' states, of many checkpoints

The packs are flushed first, then the server's file, then the manifest appears under its name: what a manifest names was whole before it.
A manifest names packs, not clients, so a checkpoint's time and size depend on what changed since the one before, not on how many there are.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..core.errors import RunFailed, UserError
from ..core.files import write_atomically
from ..core.json_text import to_json
from ..core.types import ClientId
from . import packs
from .packs import Location, PackError, PackPrefix
from .states import ClientStates

logger = logging.getLogger(__name__)

CHECKPOINT_VERSION = 1

_MANIFEST = re.compile(r"checkpoint-(\d+)\.json")
_SERVER = re.compile(r"server-\d+-[0-9a-f]+\.state")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_OURS = re.compile(r"checkpoint-\d+\.json|server-\d+-[0-9a-f]+\.state|\.(checkpoint|server)-.*\.tmp")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose every byte has been verified.

    Attributes:
        server: the server's state.
        extra: what `save` was given besides, after a round trip through JSON.
        where: the record of each client's state.
        packs: what holds them, oldest first.
        warnings: a sentence for each newer checkpoint that could not be used: file and reason.
    """

    path: Path
    number: int
    server: bytes
    extra: Mapping[str, Any]
    where: Mapping[ClientId, Location]
    packs: tuple[PackPrefix, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class _Manifest:
    number: int
    server: str
    server_sha256: str
    packs: tuple[PackPrefix, ...]
    extra: Mapping[str, Any]


class Checkpoints:
    """The newest `keep` checkpoints of a run, and one more that is pinned, in a folder of their own.

    Writing is for the holder of the run's `run_lock` alone.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        self._keep = keep
        self._kept: list[_Manifest] = []  # usable as far as is known, oldest first

    def open_states(self, checkpoint: Checkpoint | None, memory_limit_bytes: int, *, repeatable: bool = False) -> ClientStates:
        """The store of clients' states as it was at `checkpoint`, or an empty one; to be called once, before the first `save`.

        Files that a killed process left behind are removed. Checkpoints newer than the given one go with the next `save`.

        Args:
            repeatable: as for `ClientStates`.

        Raises:
            ValueError: no checkpoint was given though there is one: its states would be lost.
        """
        if checkpoint is None and _manifests(self.folder):
            raise ValueError(f"{self.folder} holds checkpoints; load the newest one")
        states = ClientStates(self.folder / "clients", memory_limit_bytes, repeatable=repeatable)
        readable: list[_Manifest] = []
        for path in reversed(_manifests(self.folder)):
            with contextlib.suppress(_Unusable):
                readable.append(_read_manifest(path))
        self._remove_all_but({path.name for path in _manifests(self.folder)} | {manifest.server for manifest in readable})
        if checkpoint is None:
            states.restore((), {}, ())
        else:
            self._kept = [manifest for manifest in readable if manifest.number <= checkpoint.number]
            states.restore(checkpoint.packs, checkpoint.where, [prefix for manifest in self._kept for prefix in manifest.packs])
        return states

    def save(self, number: int, server: bytes, states: ClientStates, extra: Mapping[str, Any], pinned: int | None = None) -> Path:
        """Write checkpoint `number` (of rounds completed) and remove those that are not to be kept; the path of its manifest.

        Args:
            extra: JSON values that belong to the same moment, such as the length of a file that is appended to.
            pinned: number of a checkpoint that is kept beside the newest ones, until a later call no longer names it.

        Raises:
            RunFailed: the disk is full, or the like; the checkpoint before stays usable and nothing half written stays.
            ValueError: the states are not those that `open_states` gave.
        """
        if states.folder != self.folder / "clients":
            raise ValueError(f"got the states in {states.folder}, expected those in {self.folder / 'clients'}; use those of open_states")
        sha256 = hashlib.sha256(server).hexdigest()
        manifest = _Manifest(number, f"server-{number:08d}-{sha256[:12]}.state", sha256, states.sync(), extra)
        path = self.folder / _manifest_name(number)
        server_path = self.folder / manifest.server
        try:
            write_atomically(server_path, server)
            write_atomically(path, _manifest_text(manifest))
        except BaseException as error:
            if not path.exists():  # an older manifest of this number may name the same file
                server_path.unlink(missing_ok=True)
            if isinstance(error, OSError):
                raise RunFailed(
                    f"{path}: could not be written: {error.strerror or error}; free some disk space and resume the run"
                ) from error
            raise
        known = [*(kept for kept in self._kept if kept.number < number), manifest]
        self._kept = [kept for kept in known if kept.number == pinned or kept in known[-self._keep :]]
        self._remove_all_but({_manifest_name(kept.number) for kept in self._kept} | {kept.server for kept in self._kept})
        states.retain({prefix.number for kept in self._kept for prefix in kept.packs})
        logger.debug("%s written: %d bytes of the server's state", path, len(server))
        return path

    def load_latest(self) -> Checkpoint | None:
        """The newest checkpoint that holds what was written, down to every byte of every state; None if there is none at all.

        Nothing is changed on disk, so that this may be called beside a run.

        Raises:
            UserError: there are checkpoints, but none is usable; with each file and the reason.
        """
        found = _manifests(self.folder)
        reasons: list[str] = []
        for path in found:
            try:
                return self._load(path, tuple(f"{reason}; an older checkpoint is used instead" for reason in reasons))
            except _Unusable as error:
                reasons.append(f"{path} cannot be used: {error}")
        if found:
            raise UserError("no checkpoint can be used; restore the files from a backup, or start a new run. " + ". ".join(reasons))
        return None

    def load(self, number: int) -> Checkpoint:
        """Checkpoint `number`, verified as `load_latest` does.

        Raises:
            UserError: it is not there, or cannot be used.
        """
        path = self.folder / _manifest_name(number)
        try:
            return self._load(path, ())
        except _Unusable as error:
            raise UserError(f"{path} cannot be used: {error}") from None

    def _load(self, path: Path, warnings: tuple[str, ...]) -> Checkpoint:
        manifest = _read_manifest(path)
        try:
            server = (self.folder / manifest.server).read_bytes()
        except OSError as error:
            raise _Unusable(f"{manifest.server}: {error.strerror or error}") from None
        if hashlib.sha256(server).hexdigest() != manifest.server_sha256:
            raise _Unusable(f"{manifest.server}: got {len(server)} bytes that are not those written (the SHA-256 differs)")
        clients = self.folder / "clients"
        where: dict[ClientId, Location] = {}
        try:
            for prefix in manifest.packs:
                where.update(packs.scan(clients, prefix))
            for client, location in sorted(where.items(), key=lambda item: (item[1].pack, item[1].start)):
                packs.read(clients, client, location)
        except PackError as error:
            raise _Unusable(str(error)) from None
        return Checkpoint(path, manifest.number, server, manifest.extra, where, manifest.packs, warnings)

    def _remove_all_but(self, names: set[str]) -> None:
        if self.folder.exists():
            # sorted: manifests go before the servers' files, since a file must not go while a manifest names it
            for name in sorted(entry.name for entry in os.scandir(self.folder) if _OURS.fullmatch(entry.name)):
                if name not in names:
                    (self.folder / name).unlink()
                    logger.debug("%s removed", self.folder / name)


@contextlib.contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Locks a run's folder against a second process. The system releases the lock when its holder dies.

    Raises:
        UserError: another process holds the lock; with its id.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "lock"
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        holder = path.read_text(encoding="ascii", errors="replace")[:32].strip() or "unknown"
        raise UserError(f"{folder} is in use by another run (process {holder}); wait until it ends, or choose another folder") from None
    try:
        path.write_text(f"{os.getpid()}\n", encoding="ascii")
        yield
    finally:
        lock.release()


class _Unusable(Exception):
    """A checkpoint that does not hold what was written; the text is the reason."""


def _manifest_name(number: int) -> str:
    return f"checkpoint-{number:08d}.json"


def _manifests(folder: Path) -> list[Path]:
    """The manifests in a folder, newest first."""
    if not folder.exists():
        return []
    found = [(int(match[1]), entry.path) for entry in os.scandir(folder) if (match := _MANIFEST.fullmatch(entry.name))]
    return [Path(path) for _, path in sorted(found, reverse=True)]


def _manifest_text(manifest: _Manifest) -> bytes:
    body = {
        "version": CHECKPOINT_VERSION,
        "number": manifest.number,
        "server": {"file": manifest.server, "sha256": manifest.server_sha256},
        "packs": [[prefix.number, prefix.length, prefix.chain] for prefix in manifest.packs],
        "extra": manifest.extra,
    }
    body = json.loads(to_json(body))  # as it will be read: a key that is a number becomes text, and changes its place in the order
    return (to_json({**body, "sha256": _body_sha256(body)}, separators=(",", ":")) + "\n").encode()


def _body_sha256(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _read_manifest(path: Path) -> _Manifest:
    try:
        body = json.loads(path.read_bytes())
    except OSError as error:
        raise _Unusable(error.strerror or str(error)) from None
    except (ValueError, RecursionError) as error:
        raise _Unusable(f"it is not JSON ({error})") from None
    try:
        written = isinstance(body, dict) and body.pop("sha256", None) == _body_sha256(body)
    except RecursionError:  # tables in tables that were just shallow enough to be read
        written = False
    if not written:
        raise _Unusable("it is not what was written (its SHA-256 differs)")
    if body.get("version") != CHECKPOINT_VERSION:
        raise _Unusable(f"got checkpoint version {body.get('version')!r}, expected {CHECKPOINT_VERSION}; use the fibecfed that wrote it")
    try:
        server, extra = body["server"], body["extra"]
        manifest = _Manifest(
            body["number"], server["file"], server["sha256"], tuple(PackPrefix(*prefix) for prefix in body["packs"]), extra
        )
        plausible = (
            manifest.number == int(_MANIFEST.fullmatch(path.name)[1])  # pyright: ignore[reportOptionalSubscript]
            and _SERVER.fullmatch(manifest.server)
            and isinstance(extra, dict)
            and all(type(one.number) is type(one.length) is int and one.number > 0 and one.length >= 0 for one in manifest.packs)
            and all(_SHA256.fullmatch(one.chain) for one in manifest.packs)
        )
    except (KeyError, TypeError, ValueError):
        manifest, plausible = None, False
    if manifest is None or not plausible:
        raise _Unusable("its fields are not those of a checkpoint")
    return manifest

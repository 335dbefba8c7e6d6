"""Files that are either whole or not there, whatever stops the process."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
from collections.abc import Generator
from pathlib import Path
from typing import Any, cast

from .errors import RunFailed, UserError
from .json_text import from_json

CONFIG, RECORDS, SUMMARY, FAILURE = "config.toml", "records.jsonl", "summary.json", "failure.json"
"""What a run's folder holds: its configuration, its records, its results once it is done, and in a comparison why it stopped."""
ANSWERS = "answers.jsonl"
AUDIT = "audit.json"
"""What `fibecfed audit` adds to it."""
CHECKPOINTS = "checkpoints"
"""Folder in a run's folder."""
FLOWER = "flower.json"
"""What the folder of a federation across machines holds beside: how its run was started."""
COMPARISON, TUNING = "comparison.toml", "tuning.json"
"""What a comparison's folder holds beside its runs: what was asked for, and the rates that were tried and chosen."""


@contextlib.contextmanager
def disk_errors(out: Path, first: str, way_out: str) -> Generator[None]:
    """A folder that cannot be written, a full disk and the like, as a sentence.

    Args:
        out: the folder that is written.
        first: the file in it that is there once work has begun.
        way_out: what holds or is to be done from then on.

    Raises:
        UserError: work has not begun.
        RunFailed: it has.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        what = f"{error.filename or out}: {error.strerror}"
        if (out / first).exists():
            raise RunFailed(f"{what}; {way_out}") from error
        raise UserError(f"{what}; nothing was trained. Fix it, or choose another folder with --out") from error


def read_summary(folder: Path) -> dict[str, Any]:
    """The results of a run that is done.

    Raises:
        UserError: the file is damaged.
    """
    advice = "remove it, and `fibecfed resume` writes it again"
    table = read_table(folder / SUMMARY, advice)
    scores = table.get("scores")
    if lost := sorted(_IN_SUMMARY - table.keys()) or ([] if isinstance(scores, dict) and scores.keys() >= _IN_SCORES else ["scores"]):
        raise UserError(f"{folder / SUMMARY}: got no {', '.join(lost)}, expected the results of a run; {advice}")
    return table


_IN_SUMMARY = {"method", "scores", "bytes_up", "bytes_down", "steps", "examples", "seconds", "selected"}
_IN_SCORES = {"pooled_personalised", "global", "worst_decile"}


def read_table(path: Path, advice: str) -> dict[str, Any]:
    """The JSON object in a file that fibecfed has written.

    Args:
        advice: what the user can do where the file is damaged.

    Raises:
        UserError: the file cannot be read, or holds something else.
    """
    try:
        table = from_json(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); {advice}") from None
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}); {advice}") from None
    if not isinstance(table, dict):
        raise UserError(f"{path}: got a JSON {_kind(table)}, expected an object; {advice}")
    return cast("dict[str, Any]", table)


def _kind(value: Any) -> str:
    kinds = {"list": "array", "str": "string", "bool": "boolean", "NoneType": "null"}
    return kinds.get(type(value).__name__, "number")


def expanded(path: str | Path) -> Path:
    """A path as a user writes it. `~` is a home; where there is no such user, the name of a file."""
    return Path(os.path.expanduser(path))


TOO_LONG = "a name too long for a file"


def kind_of(path: Path) -> str | None:
    """What lies at a path, in words: "a file", "a folder", "a pipe", ...; None where nothing does, or nothing that can be looked at."""
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        return TOO_LONG if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG else None
    return _KINDS.get(stat.S_IFMT(mode), "neither a file nor a folder")


_KINDS = {
    stat.S_IFREG: "a file",
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` aside in the same folder, flush it to the device, and rename it to `path`.

    A reader sees the old file or the new one; after a return, so does the machine after a loss of power. What was written aside is removed
    when anything goes wrong, and the old file is left as it was.

    Raises:
        OSError: no space, no such folder, no right to write.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        file = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        try:
            write_all(file, data, 0)
            os.fsync(file)
        finally:
            os.close(file)
        os.replace(aside, path)
    except BaseException:
        with contextlib.suppress(OSError):
            aside.unlink()
        raise
    sync_folder(path.parent)


def write_new(path: Path, data: bytes) -> None:
    """As `write_atomically`, for a file that must not be there: what another process writes there meanwhile stays.

    Raises:
        FileExistsError: it is there.
        OSError: no space, no such folder, no right to write.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write_atomically(aside, data)
        move_new(aside, path)
    finally:
        aside.unlink(missing_ok=True)
    sync_folder(path.parent)


def move_new(made: Path, path: Path) -> None:
    """Give a whole file the name `path` on the same file system, where nothing may lie; it may keep the old name beside it.

    Raises:
        FileExistsError: something does.
        OSError: no right to write.
    """
    try:
        os.link(made, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        if path.exists() or path.is_symlink():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
        os.replace(made, path)


@contextlib.contextmanager
def new_folder(out: Path) -> Generator[Path]:
    """A folder beside `out` to write into, which becomes `out` at the end; where anything goes wrong, nothing is left of it.

    Raises:
        OSError: no space, no right to write, or by then something lies at `out` that is not an empty folder.
    """
    out = out.absolute()
    aside = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    aside.mkdir()
    try:
        yield aside
        os.replace(aside, out)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    sync_folder(out.parent)


def is_aside(name: str) -> bool:
    """Whether a file is called as those that `write_atomically` writes aside: a process that is killed there leaves one behind."""
    return name.startswith(".") and name.endswith(".tmp")


def write_all(file: int, data: bytes, offset: int) -> None:
    """Write the whole of `data` at `offset` of an open file; one system call may take only a part of it."""
    rest = memoryview(data)
    while rest:
        written = os.pwrite(file, rest, offset)
        rest, offset = rest[written:], offset + written


def sync_folder(folder: Path) -> None:
    """Flush a folder's list of names: a file that was created or renamed is only then sure to be found after a loss of power."""
    file = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)

"""The local socket between a relay and the resident client: one request and one answer a connection, each its length and its bytes.

Light to import: the relay is a new process for every message.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

MAX_BYTES = 2**31
"""Longest request or answer; a length beyond it is rejected before anything is read."""

STALL_S = 10.0
"""How long either side waits for the other to begin or to continue a message; both are on one machine."""

RETURN_S = 20.0
"""How long a relay waits for a client that went away while it worked, which whoever looks after it may be starting again."""

_GONE_S = 0.5
"""After which the socket of a process that was killed is closed too: until then it can be connected to."""

_LENGTH = 8
_PIECE = 2**20
_LONGEST_PATH = 100  # the system's limit is 104 to 108 bytes


class SocketError(Exception):
    """The other side cannot be reached, went away, or sent something that is no message; the text says which."""


class Absent(SocketError):
    """Nobody listens."""


class Broken(SocketError):
    """The other side went away in the middle of an exchange."""


def ask(
    path: str, request: bytes, timeout_s: float, patience_s: float = 5.0, max_bytes: int = MAX_BYTES, return_s: float | None = None
) -> bytes:
    """The answer to one request. A client that goes away while it works on it is asked once more when it is back.

    Args:
        timeout_s: for the whole exchange.
        patience_s: how long to try to connect: the client may just be starting again.
        return_s: how long one that went away may take to come back; `RETURN_S` by default.

    Raises:
        SocketError: nobody listens, the answer did not come in time, or the connection broke twice, or for good.
    """
    end = time.monotonic() + timeout_s
    try:
        return _asked(path, request, timeout_s, end, patience_s, max_bytes)
    except Broken as gone:
        wait_s = max(0.0, min(RETURN_S if return_s is None else return_s, end - time.monotonic()))
        time.sleep(min(_GONE_S, wait_s))
        try:
            return _asked(path, request, timeout_s, end, max(0.0, wait_s - _GONE_S), max_bytes)
        except Absent:
            raise SocketError(f"{gone} and did not come back within {wait_s:.0f} s") from None


def _asked(path: str, request: bytes, timeout_s: float, end: float, patience_s: float, max_bytes: int) -> bytes:
    with _connected(path, min(end, time.monotonic() + patience_s)) as connection:
        try:
            send(connection, request, end)  # the client may still be at work for another relay
            return receive(connection, max_bytes, end)
        except TimeoutError:
            raise SocketError(f"the client at {path} did not answer within {timeout_s:g} s") from None
        except Broken as error:
            raise Broken(f"the client at {path} went away while it worked ({error})") from None
        except OSError as error:
            raise Broken(f"the client at {path} went away while it worked ({error.strerror or error})") from None


def _connected(path: str, end: float) -> socket.socket:
    while True:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            if os.stat(path).st_uid != os.getuid():
                raise SocketError(f"{path} belongs to another user; run SuperNode and client as the same one")
            connection.connect(path)
            return connection
        except OSError as error:
            connection.close()
            if time.monotonic() >= end:
                raise Absent(f"no client listens at {path} ({error.strerror}); start it with: fibecfed client ...") from None
            time.sleep(0.2)


def send(connection: socket.socket, blob: bytes, end: float | None = None) -> None:
    """Write the length and the bytes.

    Args:
        end: all must be written by then, by time.monotonic(); None: with no pause longer than `STALL_S`, however long it takes in all.

    Raises:
        TimeoutError: too slow.
    """
    for part in (len(blob).to_bytes(_LENGTH, "big"), blob):  # an empty one is not written: the other side may have answered by now
        left = memoryview(part)
        while left:
            connection.settimeout(_wait(end))
            left = left[connection.send(left[:_PIECE]) :]


def _wait(end: float | None) -> float:
    wait = STALL_S if end is None else end - time.monotonic()
    if wait <= 0:
        raise TimeoutError
    return wait


def receive(connection: socket.socket, max_bytes: int, end: float | None = None) -> bytes:
    """Read one message.

    Args:
        end: all must have come by then, by time.monotonic(); its beginning may take until then, and after that no pause may be longer
            than `STALL_S`. None: no pause may, not even before its beginning.

    Raises:
        SocketError: closed before its end, or longer than `max_bytes`.
        TimeoutError: too slow.
    """
    begun = time.monotonic() + STALL_S if end is None else end
    size = int.from_bytes(_exactly(connection, _LENGTH, lambda: _wait(begun)), "big")
    if size > max_bytes:
        raise SocketError(f"got a message of {size} bytes, expected at most {max_bytes}")
    return _exactly(connection, size, lambda: STALL_S if end is None else min(STALL_S, _wait(end)))


def _exactly(connection: socket.socket, size: int, wait: Callable[[], float]) -> bytes:
    """`size` bytes; `wait`: seconds until the next of them must come."""
    pieces = bytearray()
    while len(pieces) < size:
        connection.settimeout(wait())
        piece = connection.recv(min(_PIECE, size - len(pieces)))
        if not piece:
            raise Broken(f"the connection was closed after {len(pieces)} of {size} bytes")
        pieces += piece
    return bytes(pieces)


@contextlib.contextmanager
def listening(path: Path) -> Iterator[socket.socket]:
    """A socket at `path` that only this user may open; removed at the end.

    Raises:
        SocketError: a path too long for a socket, another file or another client there, or a folder that cannot be written.
    """
    if len(os.fsencode(path)) > _LONGEST_PATH:
        raise SocketError(f"{path}: longer than the {_LONGEST_PATH} bytes that a socket's path may have; choose a shorter one")
    if path.exists() or path.is_symlink():
        _remove_stale(path)
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)  # before bind, so that there is no moment in which others could open it
    try:
        server.bind(os.fspath(path))
    except OSError as error:
        server.close()
        raise SocketError(f"{path}: cannot be created ({error.strerror}); choose another path") from None
    finally:
        os.umask(before)
    try:
        server.listen(16)
        yield server
    finally:
        server.close()
        path.unlink(missing_ok=True)


def _remove_stale(path: Path) -> None:
    if not path.is_socket():
        raise SocketError(f"{path} exists and is not a socket; nothing was changed; choose another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(os.fspath(path))
        except OSError:
            path.unlink(missing_ok=True)  # left behind by a client that was killed
            return
    raise SocketError(f"{path}: another client listens there; stop it, or choose another path")


def serve(server: socket.socket, answer: Callable[[bytes], bytes], say: Callable[[str], None], max_bytes: int = MAX_BYTES) -> None:
    """Answer one connection after the other until interrupted: one job at a time, the others wait in line.

    Whatever a relay does (it sends nothing, too much, or dies while its job is done) is reported to `say`, and the next one is served.
    """
    while True:
        connection, _ = server.accept()
        with connection:
            try:
                request = receive(connection, max_bytes)
                reply = answer(request)
                send(connection, reply)
            except (SocketError, TimeoutError, OSError) as error:
                say(f"a relay disconnected: {error or type(error).__name__}")

from __future__ import annotations

import contextlib
import os
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fibecfed.engine.flower import sockets
from fibecfed.engine.flower.sockets import SocketError, ask, listening, serve


@contextlib.contextmanager
def client(path: Path, answer: Callable[[bytes], bytes], max_bytes: int = 2**20) -> Iterator[list[str]]:
    """A resident client in a thread; what it was told goes into the list."""
    told: list[str] = []
    with listening(path) as server:
        threading.Thread(target=_until_closed, args=(server, answer, told.append, max_bytes), daemon=True).start()
        yield told


def _until_closed(server: socket.socket, *arguments: object) -> None:
    with contextlib.suppress(OSError):
        serve(server, *arguments)  # pyright: ignore[reportArgumentType]


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)  # a socket's path may be 100 bytes long, and pytest's folders may be longer
    return Path("c.sock")


@pytest.mark.parametrize("size", [0, 1, 3_000_000])
def test_the_answer_to_a_request_of_any_size_comes_back(path: Path, size: int) -> None:
    blob = os.urandom(size)
    with client(path, lambda request: request[::-1], max_bytes=2**22):
        assert ask(str(path), blob, 20) == blob[::-1]


def test_only_its_user_may_open_the_socket_and_it_is_gone_at_the_end(path: Path) -> None:
    with client(path, bytes):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert not path.exists()


def test_relays_are_answered_one_after_the_other(path: Path) -> None:
    at_work, most = [], []

    def slow(request: bytes) -> bytes:
        at_work.append(request)
        most.append(len(at_work))
        time.sleep(0.05)
        at_work.pop()
        return request

    with client(path, slow):
        got: list[bytes] = []
        threads = [threading.Thread(target=lambda n=n: got.append(ask(str(path), bytes([n]), 20))) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(got) == [bytes([n]) for n in range(4)] and max(most) == 1


def test_a_relay_that_dies_at_any_point_does_not_end_the_client(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "STALL_S", 0.2)
    answered = threading.Event()

    def answer(request: bytes) -> bytes:
        answered.set()
        time.sleep(0.05)
        return b"x" * 500_000

    with client(path, answer) as told:
        for sent in (b"", b"\0\0\0", (100).to_bytes(8, "big") + b"half", (2**40).to_bytes(8, "big"), (1).to_bytes(8, "big") + b"q"):
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as relay:
                relay.connect(str(path))
                relay.sendall(sent)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as silent:
            silent.connect(str(path))  # and never sends a byte
            assert ask(str(path), b"still there?", 20) == b"x" * 500_000
    assert answered.is_set() and any("1099511627776 bytes, expected at most" in text for text in told) and len(told) >= 5


def test_an_answer_that_is_too_long_or_too_late_is_given_up(path: Path) -> None:
    too_long = pytest.raises(SocketError, match="got a message of 1000 bytes, expected at most 10")
    with client(path, lambda request: b"x" * 1000), too_long:
        ask(str(path), b"", 20, max_bytes=10)
    with client(path, lambda request: time.sleep(1) or b""), pytest.raises(SocketError, match=r"did not answer within 0\.2 s"):
        ask(str(path), b"", 0.2)


def test_without_a_client_the_error_says_what_to_start(path: Path) -> None:
    with pytest.raises(SocketError, match=r"no client listens at c\.sock .*fibecfed client"):
        ask(str(path), b"", 5, patience_s=0)


def dies(server: socket.socket) -> None:
    """As a client that is killed at its first request: of its sockets, the one that listens may be closed last."""
    server.accept()[0].close()
    server.close()


def test_a_client_that_dies_while_it_works_and_does_not_come_back_is_an_error(path: Path) -> None:
    with listening(path) as server:
        threading.Thread(target=dies, args=(server,), daemon=True).start()
        start = time.monotonic()
        with pytest.raises(SocketError, match=r"client at c\.sock went away while it worked \(.*\) and did not come back within 1 s"):
            ask(str(path), b"x", 60, return_s=1)
    assert time.monotonic() - start < 10


def test_one_that_comes_back_is_asked_again(path: Path) -> None:
    found: list[bytes] = []
    with listening(path) as server:
        asking = threading.Thread(target=lambda: found.append(ask(str(path), b"x", 60)))
        asking.start()
        dies(server)
    with client(path, lambda request: request + b"!"):
        asking.join(30)
    assert found == [b"x!"]


def test_but_only_once(path: Path) -> None:
    with listening(path) as server:
        threading.Thread(target=lambda: [server.accept()[0].close() for _ in range(2)], daemon=True).start()
        with pytest.raises(SocketError, match=r"client at c\.sock went away while it worked"):
            ask(str(path), b"x", 60)


def test_a_socket_left_behind_is_replaced_but_no_file_and_no_living_client(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(str(path))
    with client(path, bytes):
        with pytest.raises(SocketError, match="another client listens there"), listening(path):
            pass
        assert ask(str(path), b"a", 20) == b"a"
    path.write_text("mine")
    with pytest.raises(SocketError, match="is not a socket; nothing was changed"), listening(path):
        pass
    assert path.read_text() == "mine"


def test_a_path_too_long_for_a_socket_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SocketError, match="choose a shorter one"), listening(tmp_path / ("x" * 120)):
        pass


def pieces(connection: socket.socket, size: int, pause_s: float) -> bytes:
    """What comes, taken in by and by."""
    got = bytearray()
    while piece := connection.recv(size):
        got += piece
        time.sleep(pause_s)
    return bytes(got)


def test_a_long_answer_may_take_long_as_long_as_it_goes_on(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "STALL_S", 1.0)
    answer = os.urandom(6_000_000)
    with client(path, lambda request: answer) as told, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as relay:
        relay.connect(str(path))
        relay.sendall((0).to_bytes(8, "big"))
        begun = time.monotonic()
        got = pieces(relay, 2**17, 0.05)
        took = time.monotonic() - begun
    assert got == len(answer).to_bytes(8, "big") + answer and not told and took > 2 * sockets.STALL_S


def test_an_answer_that_stops_in_the_middle_is_given_up_and_so_is_one_that_trickles_on(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "STALL_S", 0.2)

    def trickle(server: socket.socket, pause_s: float) -> None:
        with server.accept()[0] as connection, contextlib.suppress(OSError):
            connection.sendall((1000).to_bytes(8, "big"))
            for _ in range(1000):
                connection.sendall(b"x")
                time.sleep(pause_s)

    for pause_s, timeout_s in ((5.0, 60.0), (0.02, 1.0)):
        with listening(path) as server:
            threading.Thread(target=trickle, args=(server, pause_s), daemon=True).start()
            begun = time.monotonic()
            with pytest.raises(SocketError, match="did not answer within"):
                ask(str(path), b"", timeout_s)
            assert time.monotonic() - begun < 4.0

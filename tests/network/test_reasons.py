"""What a machine is told on which there can be no network in namespaces, and what the cable's program does to frames."""

from __future__ import annotations

import os
import random
import shutil
import sys

import namespaces
import pytest
import shaper
from namespaces import why_not


def refuse(*words: str, program: str = "ip") -> str:
    raise OSError(f"{program} {' '.join(words)}: Operation not permitted")


def test_who_is_not_root_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert why_not() == "not root, so no network namespaces; run `sudo make test-network`"


def test_without_permission_for_namespaces_the_reason_and_the_way_out_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(shutil, "which", lambda program: f"/usr/sbin/{program}")
    monkeypatch.setattr(namespaces, "ip", refuse)
    told = why_not()
    assert told is not None and told.startswith("network namespaces are not permitted here (ip netns add")
    assert "Operation not permitted" in told and "--privileged" in told


def test_a_missing_program_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(shutil, "which", lambda program: None if program == "tc" else f"/usr/sbin/{program}")
    assert why_not() == "`tc` is not installed; apt-get install iproute2"


class Clock:
    """Stands in for the module `time`."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(shaper, "time", clock)
    return clock


def direction(mbit: float = 0.0, delay_s: float = 0.0, loss: float = 0.0) -> tuple[shaper.Direction, int, int]:
    """A direction between two pipes, a frame being what is read at once; and the ends to write to and to read from."""
    (source, into), (out, target) = os.pipe(), os.pipe()
    for end in (source, out):
        os.set_blocking(end, False)
    return shaper.Direction(source, target, mbit, delay_s, loss, random.Random(0)), into, out


def arrived(out: int) -> bytes:
    try:
        return os.read(out, 10**6)
    except BlockingIOError:
        return b""


def test_a_frame_arrives_after_its_time_at_the_rate_and_the_delay(clock: Clock) -> None:
    one, into, out = direction(mbit=1.0, delay_s=0.2)
    for frame in (b"a" * 1250, b"b" * 1250):  # 10 ms each at 1 Mbit/s
        os.write(into, frame)
        one.take()
    for after, seen in ((0.209, b""), (0.211, b"a" * 1250), (0.219, b""), (0.221, b"b" * 1250)):
        one.hand_over(clock.now + after)
        assert arrived(out) == seen, after


def test_of_many_frames_the_wanted_fraction_is_lost_and_of_a_full_queue_the_last(clock: Clock) -> None:
    one, into, _ = direction(loss=0.1)
    for _ in range(900):
        os.write(into, b"x")
        one.take()
    assert len(one.under_way) == pytest.approx(810, abs=30)
    for _ in range(900):
        os.write(into, b"x")
        one.take()
    assert len(one.under_way) == shaper.QUEUE

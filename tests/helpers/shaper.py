"""A cable between two network namespaces with the rates, the delay and the loss of `tc netem`, for kernels without it: a program.

Run: python shaper.py SITE_NAMESPACE SITE_DEVICE HUB_NAMESPACE HUB_DEVICE UP_MBIT DOWN_MBIT DELAY_MS LOSS SEED

Both devices are TAPs that exist. A frame waits until those before it have been sent at the rate of its direction, and is handed over after
the delay; of a full queue the last frames are lost, of all others the fraction LOSS, drawn. A rate of 0 is none. Says "ready" once both
devices are open, and ends with SIGTERM.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import random
import select
import struct
import sys
import time
from collections import deque
from pathlib import Path

TUNSETIFF, TAP_WITHOUT_HEADER = 0x400454CA, 0x1002
LONGEST = 65536
QUEUE = 1000
"""Frames that a direction holds at most, as netem's."""


def opened(namespace: str, device: str) -> int:
    """A TAP of a namespace, as a file."""
    libc = ctypes.CDLL(None, use_errno=True)
    with Path(f"/run/netns/{namespace}").open("rb") as inside:
        if libc.setns(inside.fileno(), 0):
            raise OSError(ctypes.get_errno(), f"cannot enter the namespace {namespace}")
    file = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(file, TUNSETIFF, struct.pack("16sH22x", device.encode(), TAP_WITHOUT_HEADER))
    return file


class Direction:
    """Frames on their way from one device to the other."""

    def __init__(self, source: int, target: int, mbit: float, delay_s: float, loss: float, draw: random.Random) -> None:
        self.source, self.target = source, target
        self.per_byte = 8e-6 / mbit if mbit else 0.0
        self.delay_s, self.loss, self.draw = delay_s, loss, draw
        self.free = 0.0  # when the last frame will have been sent
        self.under_way = deque[tuple[float, bytes]]()

    def take(self) -> None:
        """Frames that lie at the source."""
        while True:
            try:
                frame = os.read(self.source, LONGEST)
            except BlockingIOError:
                return
            if self.draw.random() < self.loss or len(self.under_way) >= QUEUE:
                continue
            self.free = max(self.free, time.monotonic()) + len(frame) * self.per_byte
            self.under_way.append((self.free + self.delay_s, frame))

    def hand_over(self, now: float) -> None:
        """Frames whose time has come."""
        while self.under_way and self.under_way[0][0] <= now:
            with contextlib.suppress(OSError):  # the device is down: a cable that was pulled
                os.write(self.target, self.under_way.popleft()[1])


def main() -> None:
    site_space, site, hub_space, hub, *numbers = sys.argv[1:]
    up, down, delay_ms, loss, seed = map(float, numbers)
    ends = opened(site_space, site), opened(hub_space, hub)
    draw = random.Random(seed)
    both = (
        Direction(ends[0], ends[1], up, delay_ms / 1e3, loss, draw),
        Direction(ends[1], ends[0], down, delay_ms / 1e3, loss, draw),
    )
    print("ready", flush=True)
    while True:
        next_due = min((one.under_way[0][0] for one in both if one.under_way), default=None)
        wait = None if next_due is None else max(0.0, next_due - time.monotonic())
        ready, _, _ = select.select(ends, (), (), wait)
        for one in both:
            if one.source in ready:
                one.take()
            one.hand_over(time.monotonic())


if __name__ == "__main__":
    main()

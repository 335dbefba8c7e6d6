"""A network on one machine: a server and sites in network namespaces of their own, each on a cable to a bridge; no way leads out of it.

Cables are shaped by `tc netem` at both ends, or, on a kernel without it, by `shaper.py` between two TAPs. All that is made here has this
process's number in its name, and is gone after `close`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

SERVER = "server"
NETWORK = "192.0.2.0/24"
"""One of those that are for documentation alone (RFC 5737)."""
CONGESTION = "cubic"
"""TCP's congestion control: what nearly every host has, whatever this one prefers. As an attribute of a route it can be had even where a
namespace may not choose it for itself."""


@dataclass(frozen=True)
class Shape:
    """What a cable is like; rates of 0 are none.

    Attributes:
        up_mbit, down_mbit: to and from the server, 10^6 bits a second.
        delay_ms: in one direction.
        loss: fraction of the frames, in each direction.
    """

    up_mbit: float = 0.0
    down_mbit: float = 0.0
    delay_ms: float = 0.0
    loss: float = 0.0


PLAIN = Shape()


def ip(*words: str, program: str = "ip") -> str:
    done = subprocess.run((program, *words), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise OSError(f"{program} {' '.join(words)}: {done.stdout.strip()}")
    return done.stdout


def has_netem() -> bool:
    """Whether this kernel has `tc netem`; tried in a namespace."""
    name = f"fibecfed-{os.getpid()}-try"
    try:
        ip("netns", "add", name)
        try:
            ip("-n", name, "link", "set", "dev", "lo", "up")
            ip("-n", name, "qdisc", "add", "dev", "lo", "root", "netem", "delay", "1ms", program="tc")
        finally:
            ip("netns", "del", name)
    except OSError:
        return False
    return True


def why_not() -> str | None:
    """Why there can be no such network here, and what to do; None: there can."""
    if sys.platform != "linux":
        return f"network namespaces are Linux's, and this is {sys.platform}; run `make test-network` on Linux"
    if os.geteuid() != 0:
        return "not root, so no network namespaces; run `sudo make test-network`"
    for program in ("ip", "tc"):
        if shutil.which(program) is None:
            return f"`{program}` is not installed; apt-get install iproute2"
    name = f"fibecfed-{os.getpid()}-may"
    try:
        ip("netns", "add", name)
    except OSError as error:
        return f"network namespaces are not permitted here ({error}); in a container: --privileged, or --cap-add SYS_ADMIN NET_ADMIN"
    try:
        ip("-n", name, "link", "add", "x", "type", "bridge")
        if not has_netem():
            ip("-n", name, "tuntap", "add", "dev", "y", "mode", "tap")
    except OSError as error:
        return f"a bridge, and tc netem or TAP devices, are not to be had here ({error}); load the modules bridge and sch_netem or tun"
    finally:
        ip("netns", "del", name)
    return None


class Network:
    """The namespaces, by the name of the machine that each stands for.

    Args:
        folder: for what the cables' programs say.
    """

    def __init__(self, sites: tuple[str, ...], folder: Path) -> None:
        self._machines = (SERVER, *sites)
        self._folder = folder
        self._netem = has_netem()
        self._cables: dict[str, subprocess.Popen[str]] = {}
        self._hub = self.space("hub")
        try:
            ip("netns", "add", self._hub)
            ip("-n", self._hub, "link", "add", "bridge", "type", "bridge")
            ip("-n", self._hub, "link", "set", "dev", "bridge", "up")
            for name in self._machines:
                self._connect(name)
        except OSError:
            self.close()
            raise

    def space(self, name: str) -> str:
        """Name of the namespace of a machine."""
        return f"fibecfed-{os.getpid()}-{name}"

    def address(self, name: str) -> str:
        """Address of a machine."""
        return f"192.0.2.{1 + self._machines.index(name)}"

    def on(self, name: str, *command: str) -> tuple[str, ...]:
        """The command, to be run on a machine."""
        return ("ip", "netns", "exec", self.space(name), *command)

    @property
    def shaped_by(self) -> str:
        return "tc netem" if self._netem else "a program between TAP devices (no sch_netem in this kernel)"

    def shape(self, name: str, shape: Shape, seed: int = 0) -> None:
        """What the cable of a site is like from now on; connections last."""
        if self._netem:
            for space, device, mbit in ((self.space(name), "eth0", shape.up_mbit), (self._hub, name, shape.down_mbit)):
                rate = ("rate", f"{mbit}mbit") if mbit else ()
                words = ("delay", f"{shape.delay_ms}ms", "loss", f"{100 * shape.loss}%", *rate, "limit", "1000")
                ip("-n", space, "qdisc", "replace", "dev", device, "root", "netem", *words, program="tc")
            return
        if name in self._cables:
            self._end(name)
        numbers = (shape.up_mbit, shape.down_mbit, shape.delay_ms, shape.loss, seed)
        program = str(Path(__file__).with_name("shaper.py"))
        command = (sys.executable, program, self.space(name), "eth0", self._hub, name, *map(str, numbers))
        with (self._folder / f"cable-{name}.log").open("a") as log:
            cable = self._cables[name] = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        assert cable.stdout is not None
        if cable.stdout.readline() != "ready\n":
            raise OSError(f"the cable of {name} does not start: {(self._folder / f'cable-{name}.log').read_text()[-500:]}")

    def pull(self, name: str) -> None:
        """The cable is out: nothing passes, and neither side is told."""
        ip("-n", self._hub, "link", "set", "dev", name, "down")

    def plug(self, name: str) -> None:
        """And in again."""
        ip("-n", self._hub, "link", "set", "dev", name, "up")

    def close(self) -> None:
        for name in list(self._cables):
            self._end(name)
        for name in ("hub", *self._machines):
            subprocess.run(("ip", "netns", "del", self.space(name)), stderr=subprocess.DEVNULL)

    def _connect(self, name: str) -> None:
        space = self.space(name)
        ip("netns", "add", space)
        ip("-n", space, "link", "set", "dev", "lo", "up")
        if self._netem or name == SERVER:
            ip("link", "add", "eth0", "netns", space, "type", "veth", "peer", "name", name, "netns", self._hub)
        else:
            ip("-n", space, "tuntap", "add", "dev", "eth0", "mode", "tap")
            ip("-n", self._hub, "tuntap", "add", "dev", name, "mode", "tap")
        for where, device in (
            (space, "eth0"),
            (self._hub, name),
        ):  # single frames, for a kernel that would delay or lose 64 kB of them at once
            ip("-n", where, "link", "set", "dev", device, "gso_max_segs", "1")
        ip("-n", self._hub, "link", "set", "dev", name, "master", "bridge", "up")
        ip("-n", space, "address", "add", f"{self.address(name)}/24", "dev", "eth0")
        ip("-n", space, "link", "set", "dev", "eth0", "up")
        route = (NETWORK, "dev", "eth0", "proto", "kernel", "scope", "link", "src", self.address(name))
        ip("-n", space, "route", "change", *route, "congctl", CONGESTION)
        if name != SERVER:
            self.shape(name, PLAIN)

    def _end(self, name: str) -> None:
        cable = self._cables.pop(name)
        cable.terminate()
        cable.wait(10)
        if cable.stdout is not None:
            cable.stdout.close()

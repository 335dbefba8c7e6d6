"""Stops behind Flower processes that send in plain HTTP beyond this machine, unless this machine's user allowed that by name."""

from __future__ import annotations

import ipaddress
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_PROGRAMS = {"flower-superlink": "--host", "flower-supernode": "--superlink"}
"""Flower's programs, and the option that names the address each speaks to the network with."""

_DEFAULTS = {"flower-superlink": "127.0.0.1", "flower-supernode": "127.0.0.1:8000"}


OPTION = "allow-plain-http"
"""The key of Flower's run configuration (server) or of a SuperNode's --node-config (client) that allows it."""


def reject_plain_http(settings: Mapping[str, Any], how: str) -> None:
    """Look at the processes that this one was started by.

    Args:
        settings: what this machine's user has set; the other side's word does not count. Only `true` allows it, not a text.
        how: what the user can do to allow it.

    Raises:
        ValueError: one of them is a SuperLink or SuperNode with --insecure whose address is not of this machine.
    """
    if settings.get(OPTION) is True:
        return
    for command in _ancestors():
        found = plain_beyond_loopback(command)
        if found is not None:
            program, address = found
            raise ValueError(
                f"{program} runs with --insecure on {address}: everything would be sent in plain HTTP. Give it certificates "
                f"(docs/deploy.md), or, if another layer encrypts, {how}"
            )


def plain_beyond_loopback(command: Sequence[str]) -> tuple[str, str] | None:
    """Program and address of a Flower process that speaks plain HTTP beyond this machine; None for every other command line."""
    names = [Path(word).name for word in command[:3]]  # a script runs as: python flower-superlink ...
    program = next((name for name in names if name in _PROGRAMS), None)
    if program is None or "--insecure" not in command:
        return None
    address = _option(command, _PROGRAMS[program]) or _DEFAULTS[program]
    return None if is_loopback(address) else (program, address)


def _option(command: Sequence[str], name: str) -> str | None:
    for place, word in enumerate(command):
        if word == name and place + 1 < len(command):
            return command[place + 1]
        if word.startswith(f"{name}="):
            return word.partition("=")[2]
    return None


def is_loopback(address: str) -> bool:
    """Whether `host` or `host:port` is this machine; a name other than localhost is not looked up, and is not."""
    host = address
    if address.startswith("["):
        host = address[1:].partition("]")[0]
    elif address.count(":") == 1:
        host = address.partition(":")[0]
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _ancestors() -> list[list[str]]:
    """Command lines of the processes above this one, the nearest first; as far as the system shows them."""
    commands: list[list[str]] = []
    pid = os.getppid()
    while pid > 1 and len(commands) < 16:
        found = _process(pid)
        if found is None:
            break
        pid, command = found
        commands.append(command)
    return commands


def _process(pid: int) -> tuple[int, list[str]] | None:
    """Parent and command line of a process."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
        # the name in parentheses may hold spaces; the parent is the second field behind it
        parent = int(Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[1])
        return parent, words
    except (OSError, ValueError, IndexError):
        pass
    try:
        shown = subprocess.run(["ps", "-o", "ppid=,args=", "-p", str(pid)], capture_output=True, text=True, timeout=5, check=True).stdout
        parent, *words = shown.split()
        return int(parent), words
    except (OSError, ValueError, subprocess.SubprocessError):
        return None

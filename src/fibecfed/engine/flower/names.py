"""Which name a client may have: the one with which the server's operator registered the key of the SuperNode that it sits behind."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

from ...core.types import ClientId

OPTION = "allow-unregistered-names"
"""The key of Flower's run configuration that lets clients behind keys without a name choose one."""


@dataclass(frozen=True)
class Node:
    """A SuperNode, as Flower's database has it; Flower lets only the owner of the key read and answer what is sent to its number.

    Attributes:
        number: Flower's, one for each registered key.
        name: given when its key was registered; "" where it was registered without one, or not at all.
        key: its public key, as PEM.
    """

    number: int
    name: str
    key: bytes

    def __str__(self) -> str:
        found = fingerprint(self.key)
        return f"SuperNode {self.number}" + (f" (key {found})" if found else "")


def fingerprint(key: bytes) -> str:
    """SHA-256 of a public key, as `ssh-keygen -l` shows it; "" for what is none, such as those of Flower's simulation."""
    try:
        line = load_pem_public_key(key).public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    except (ValueError, UnsupportedAlgorithm):
        return ""
    digest = hashlib.sha256(base64.b64decode(line.split()[1])).digest()
    return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")


def misnamed(node: Node, name: ClientId, unregistered: bool) -> str | None:
    """Why the client behind `node` may not be called `name`, and what to do; None: it may.

    Args:
        unregistered: whether a key that was registered without a name may have any.
    """
    again = f"flwr supernode unregister {node.number}, then flwr supernode register KEY.pub --name {name}"
    if node.name and node.name != name:
        return (
            f"a client calls itself {name}, but {node} is registered as {node.name[:80]}: rejected. If it is {node.name[:80]}, start it "
            f"with --name {node.name[:80]}; if its key was registered under the wrong name: {again}"
        )
    if not node.name and not unregistered:
        return (
            f"a client calls itself {name}, but {node} was registered without a name, or the SuperLink runs without "
            f"--enable-supernode-auth: rejected. Register its key with its name: {again}. Or let every client choose its name with "
            f"{OPTION} = true in the run configuration"
        )
    return None

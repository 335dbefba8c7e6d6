"""A client's own key, by which others know its messages: made once, kept in its folder, and never sent."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ..core.errors import UserError
from ..core.files import sync_folder

KEY = "identity.key"

_NEW = "have `{} --show-key` make a new one and put what it prints under [privacy.keys] in the configuration on every machine"
_LOST = f"restore it from a backup, or {_NEW}"
_WRONG = f"restore it from a backup, or move it away, {_NEW}"

CLIENT = "fibecfed client"
"""The command that makes a client's key."""


def made(folder: Path, command: str = CLIENT) -> Ed25519PrivateKey:
    """The key in a client's folder; a new one where there is none.

    Args:
        command: that a user makes such a key with.

    Raises:
        UserError: what is there is no key.
    """
    if (folder / KEY).exists():
        return _read(folder, command)
    key = Ed25519PrivateKey.generate()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    file = os.open(folder / KEY, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.write(file, key.private_bytes_raw().hex().encode() + b"\n")
        os.fsync(file)
    finally:
        os.close(file)
    sync_folder(folder)
    return key


def own(folder: Path, name: str, pinned: Mapping[str, str], command: str = CLIENT) -> Ed25519PrivateKey:
    """The key of a client, which others have pinned.

    Args:
        command: as for `made`.

    Raises:
        UserError: it is lost, or not the pinned one.
    """
    if name not in pinned:
        raise UserError(
            f"privacy.keys: got no key of client {name}, expected one; put what `{command} --show-key` prints there under "
            "[privacy.keys] in the configuration on every machine"
        )
    if not (folder / KEY).exists():
        raise UserError(f"{folder / KEY}: the key of client {name} is missing, which others know its messages by; {_LOST.format(command)}")
    key = _read(folder, command)
    if public(key) != pinned[name]:
        raise UserError(f"{folder / KEY}: got a key that is not the one pinned for client {name} (privacy.keys); {_WRONG.format(command)}")
    return key


def public(key: Ed25519PrivateKey) -> str:
    """What others pin: 64 hexadecimal digits."""
    return key.public_key().public_bytes_raw().hex()


def _read(folder: Path, command: str) -> Ed25519PrivateKey:
    try:
        return Ed25519PrivateKey.from_private_bytes(bytes.fromhex((folder / KEY).read_text().strip()))
    except (OSError, ValueError):
        raise UserError(
            f"{folder / KEY}: got no key of 64 hexadecimal digits, expected the one that was made there; {_WRONG.format(command)}"
        ) from None

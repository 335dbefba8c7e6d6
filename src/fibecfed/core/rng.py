"""Random streams addressed by name, so that neither the engine nor the order of clients can change a draw."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Key:
    """A random stream: a seed and a path of names. Equal keys draw equal numbers, on any engine and in any order.

    >>> key = Key(0)
    >>> key.fold("client", "007") == key.fold("client").fold("007")
    True
    >>> key.fold("a").seed() == key.fold("b").seed()
    False
    """

    root: int
    path: tuple[str | int, ...] = ()

    def fold(self, *names: str | int) -> Key:
        """The stream below this one under `names`."""
        return Key(self.root, (*self.path, *names))

    def seed(self) -> int:
        """63 bits of SHA-256 over the seed and the path."""
        text = "\x1f".join(map(_text, (self.root, *self.path)))
        return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "little") >> 1

    def generator(self) -> torch.Generator:
        """A new CPU generator at the start of this stream."""
        return torch.Generator().manual_seed(self.seed())

    def permutation(self, n: int) -> torch.Tensor:
        """A random order of 0 .. n - 1, int64, shape (n,)."""
        return torch.randperm(n, generator=self.generator())


def _text(part: str | int) -> str:
    if isinstance(part, str):
        # a name may hold the separator: without this, one name could stand for two
        return "str:" + part.replace("\\", "\\\\").replace("\x1f", "\\x1f")
    return f"int:{int(part)}"  # of any integer type: equal keys draw equal numbers

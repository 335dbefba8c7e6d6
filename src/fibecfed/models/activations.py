"""Outputs of a transformer block, kept for single examples within a budget of bytes."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

PAGE = 8
"""Tokens of a page; batches are padded to a multiple of as many."""
BOOKKEEPING = 64
"""Bytes that a page is counted for besides its values: the entries that find it again."""


@dataclass(frozen=True)
class ActivationSize:
    """What a block's output takes.

    Attributes:
        hidden: numbers of a token.
        before: positions before those of the text, as of a prompt.
        dtype: of each number.
    """

    hidden: int
    before: int
    dtype: torch.dtype

    @property
    def page(self) -> int:
        """Bytes of a page of `PAGE` tokens."""
        return PAGE * self.hidden * self.dtype.itemsize + BOOKKEEPING

    def of(self, tokens: int) -> int:
        """Bytes of one example in a batch whose longest has so many tokens, which is padded to whole pages."""
        return num_pages(num_pages(tokens) * PAGE + self.before) * self.page


def num_pages(tokens: int) -> int:
    """Pages of an example of so many tokens, padding included."""
    return -(-tokens // PAGE)


class Activations:
    """Rows (token, hidden) of a block's output under keys, in pages of one pool that never grows.

    Where a row does not fit, others go that are drawn at random: with the least recently used first, an epoch that is longer than the
    budget would find nothing. What is kept changes no number, only what must be computed again.

    Args:
        budget: bytes.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self._pool: Tensor | None = None
        self._free: list[int] = []
        self._rows: dict[bytes, tuple[int, list[int], int]] = {}  # place in _keys, pages, tokens
        self._keys: list[bytes] = []
        self._draws = random.Random(0)

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, key: bytes) -> bool:
        return key in self._rows

    @property
    def nbytes(self) -> int:
        """What is in use of the budget."""
        if self._pool is None:
            return 0
        return (len(self._pool) - len(self._free)) * ActivationSize(self._pool.shape[-1], 0, self._pool.dtype).page

    def has_room(self, rows: int, tokens: int) -> bool:
        """Whether so many rows of so many tokens can be kept without another one going."""
        return self._pool is None or len(self._free) >= rows * num_pages(tokens)

    def clear(self) -> None:
        """Keep nothing; the pool stays for what comes."""
        self._rows.clear()
        self._keys.clear()
        self._free = [] if self._pool is None else list(range(len(self._pool)))

    def rows(self, keys: Sequence[bytes]) -> Tensor:
        """What is kept under these keys, rows of one length, as a copy (key, token, hidden).

        Raises:
            KeyError: a key that is not there.
        """
        found = [self._rows[key] for key in keys]
        assert self._pool is not None
        pages = torch.tensor([page for _, own, _ in found for page in own], device=self._pool.device)
        values = self._pool.index_select(0, pages).view(len(found), -1, self._pool.shape[-1])
        return values[:, : found[0][2]]

    def keep(self, keys: Sequence[bytes], values: Tensor) -> None:
        """Keep the rows of `values`, (key, token, hidden), that are not there yet, as far as they fit into the budget."""
        tokens, hidden = values.shape[1:]
        pool, each = self._pool_for(values), num_pages(tokens)
        new = [row for row, key in enumerate(keys) if key not in self._rows and key not in keys[:row]][: len(pool) // each]
        while len(self._free) < each * len(new):
            self._drop(self._draws.randrange(len(self._keys)))
        if not new:
            return
        pages: list[int] = []
        for row in new:
            own = [self._free.pop() for _ in range(each)]
            self._rows[keys[row]] = (len(self._keys), own, tokens)
            self._keys.append(keys[row])
            pages += own
        written = torch.nn.functional.pad(values.detach()[new], (0, 0, 0, each * PAGE - tokens))
        pool.index_copy_(0, torch.tensor(pages, device=pool.device), written.view(-1, PAGE, hidden))

    def _drop(self, place: int) -> None:
        """Drop the row at a place; the last one takes its place."""
        _, pages, _ = self._rows.pop(self._keys[place])
        self._free += pages
        last = self._keys.pop()
        if place < len(self._keys):
            self._keys[place] = last
            self._rows[last] = (place, *self._rows[last][1:])

    def _pool_for(self, values: Tensor) -> Tensor:
        """A pool for rows like these; one for others is given up. Its pages take memory when they are first written to."""
        hidden, pool = values.shape[-1], self._pool
        if pool is None or (pool.shape[-1], pool.dtype, pool.device) != (hidden, values.dtype, values.device):
            size = self.budget // ActivationSize(hidden, 0, values.dtype).page
            self._pool = pool = torch.empty(size, PAGE, hidden, dtype=values.dtype, device=values.device)
            self.clear()
        return pool

"""What a client sends where answers are summed: words that add up, as `privacy.fixed` makes them, and nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.method import Phase
from ..core.types import Params
from ..core.wire import WireError, decode, encode, encoded_size, field_kinds, message
from ..privacy.fixed import Adding, Words
from .shared_fields import pooled_fields, shared_of


@message
class Summand:
    """Client to server: what it adds to the sum.

    Attributes:
        words: shape (length,), int32 or int64, of the same bits as the unsigned words.
    """

    words: Tensor


_SIGNED = {np.uint32: (np.int32, torch.int32), np.uint64: (np.int64, torch.int64)}


def summand_of(phase: Phase[Any, Any, Any, Any], broadcast: Any, message: Any, adding: Adding) -> bytes:
    """The encoded words of a client's answer to a broadcast."""
    names = pooled_fields(phase)
    num_samples = message.num_samples if field_kinds(phase.up).get("num_samples") == "scalar" else 1
    return summand(adding.words(shared_of(message, names), shared_of(broadcast, names), num_samples))


def summand(words: Words) -> bytes:
    """The bytes of a `Summand`."""
    return encode(Summand(signed_words(words)))


def signed_words(words: Words) -> Tensor:
    """Words as a message has them."""
    return torch.from_numpy(words.view(_SIGNED[words.dtype.type][0]))


def summand_bytes(adding: Adding, sent: Params) -> int:
    """Length of each `summand` for these tensors."""
    return encoded_size(Summand(torch.empty(adding.length(sent), dtype=_SIGNED[adding.dtype][1], device="meta")))


def words_of(blob: bytes | memoryview, adding: Adding, length: int) -> Words:
    """What `summand` encoded.

    Raises:
        WireError: something else, or of another length.
    """
    return words_in(decode(Summand, blob, copy=False).words, adding, length)


def words_in(words: Tensor, adding: Adding, length: int) -> Words:
    """What `signed_words` made.

    Raises:
        WireError: something else, or of another length.
    """
    if words.dtype != _SIGNED[adding.dtype][1] or words.shape != (length,):
        raise WireError(f"got {words.dtype} of shape {tuple(words.shape)}, expected {length} words of {adding.dtype.__name__}")
    return words.numpy().view(adding.dtype)

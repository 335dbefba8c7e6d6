"""What an adapter sees of the frozen transformer, and what the task asks of an adapter."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor, nn

from ..core.errors import UserError
from ..core.options import Options

Inputs: TypeAlias = Mapping[str, Any]
"""Arguments of a body's call: `input_ids` or `inputs_embeds`, `attention_mask` (batch, token), and whatever else it takes."""


@dataclass(frozen=True)
class Body:
    """A transformer without its head.

    Attributes:
        module: the body itself.
        blocks: its L blocks, in order.
        takes: names of the arguments of its call.
        first_position: the position of a text's first token.
        causal: whether a token sees only itself and those before it.
        pool: (hidden states, mask) -> the vector that an example's class is read from.
    """

    module: Any
    blocks: Sequence[nn.Module]
    takes: frozenset[str]
    first_position: int
    causal: bool
    pool: Callable[[Tensor, Tensor], Tensor]

    @property
    def rotary(self) -> bool:
        """Whether positions turn queries and keys, rather than being added to the embeddings from a table of limited length."""
        return hasattr(self.module, "rotary_emb")

    def __call__(self, inputs: Inputs) -> Tensor:
        """The last hidden state, (batch, position, hidden)."""
        return self.module(**inputs).last_hidden_state

    def embeddings(self, inputs: Inputs) -> Tensor:
        """Those given, or those of the tokens: (batch, token, hidden)."""
        given = inputs.get("inputs_embeds")
        return self.module.get_input_embeddings()(inputs["input_ids"]) if given is None else given

    def require(self, what: str, *arguments: str) -> None:
        """Reject a body that does not take `arguments`, on behalf of the adapter `what`.

        Raises:
            UserError: it does not.
        """
        missing = [name for name in arguments if name not in self.takes]
        if missing:
            kind, names = type(self.module).__name__, " and no ".join(missing)
            raise UserError(f"method.kind: {what} cannot be used with a {kind}: its forward pass takes no {names}; choose another model")

    def require_front(self, what: str) -> None:
        """Reject a body that tokens cannot be put before, on behalf of the adapter `what`.

        Raises:
            UserError: it takes no embeddings or positions, or counts distances over padding, so that the side of the padding would matter.
        """
        self.require(what, "inputs_embeds", "position_ids")
        config = self.module.config
        if getattr(config, "relative_attention", False) or hasattr(config, "relative_attention_num_buckets"):
            raise UserError(
                f"method.kind: {what} cannot be used with a {type(self.module).__name__}: its relative positions count "
                "padding, which may lie between the prompt and the text; choose another model"
            )


class Adapter(Protocol):
    """What is trained beside a frozen body. A module, so that its tensors have names: `adapter.` before their own.

    A tensor that belongs to block l of the body is named `adapter.layers.<l>.`.

    Attributes:
        options: what it was made of.
    """

    options: Options

    @property
    def num_positions(self) -> int:
        """How many positions it puts before those of the text, in every hidden state."""
        ...

    @property
    def trains_norms(self) -> bool:
        """Whether the body's normalisation layers are trained too."""
        ...

    @property
    def from_middle(self) -> bool:
        """Whether nothing of it acts below block floor(L/2) (0-based)."""
        ...

    def check(self, body: Body) -> None:
        """Reject a body that it cannot serve.

        Raises:
            UserError: with the reason.
        """
        ...

    def run(self, body: Body, inputs: Inputs) -> Tensor:
        """The body's last hidden state with the adapter at work, (batch, num_positions + token, hidden)."""
        ...

    def go_on(self, body: Body, inputs: Inputs) -> Tensor:
        """The hidden states of tokens that follow a text which `run` has read into inputs["past_key_values"], (batch, token, hidden).

        Of those in `adapters.options.ANSWERING` alone.

        Args:
            inputs: of the new tokens, with the mask and the positions of the text and of them.
        """
        ...

    def draw(self, name: str, value: Tensor, generator: torch.Generator, vocabulary: Tensor) -> Tensor:
        """What its tensor `name`, now `value`, starts from; `vocabulary` are the body's embeddings of words, (words, hidden)."""
        ...


def before_text(inputs: Inputs, front: Tensor, embeddings: Tensor, *, first_position: int, shift: int, seen: bool = True) -> dict[str, Any]:
    """Arguments of a call on `front` and then the text, whatever side the text is padded on.

    Args:
        front: (batch, m, hidden), takes the positions from `first_position` on.
        embeddings: those of the text.
        shift: how far the text's own positions move.
        seen: whether tokens may attend to `front`.
    """
    size, m, _ = front.shape
    mask, positions = inputs["attention_mask"], inputs["position_ids"]
    new = {name: value for name, value in inputs.items() if name != "input_ids"}
    new["inputs_embeds"] = torch.cat([front.to(embeddings.dtype), embeddings], 1)
    new["attention_mask"] = torch.cat([mask.new_full((size, m), int(seen)), mask], 1)
    own = torch.arange(first_position, first_position + m, device=positions.device)
    new["position_ids"] = torch.cat([own.expand(size, m), positions + shift], 1)
    if "token_type_ids" in inputs:
        kinds = inputs["token_type_ids"]
        new["token_type_ids"] = torch.cat([kinds.new_zeros(size, m), kinds], 1)
    return new


def behind(inputs: Inputs, front: int, *, shift: int) -> dict[str, Any]:
    """Arguments of a call on tokens that follow a text in the cache, before which stand `front` positions; positions move by `shift`."""
    mask = inputs["attention_mask"]
    seen = torch.cat([mask.new_ones(len(mask), front), mask], 1)
    moved = {"position_ids": inputs["position_ids"] + shift} if "position_ids" in inputs else {}
    return {**inputs, "attention_mask": seen, **moved}


def run_with_prompts(body: Body, inputs: Inputs, prompts: Tensor, embeddings: Tensor) -> Tensor:
    """The last hidden state of `prompts` (batch, m, hidden), as if they were the first m tokens, and of the text behind them."""
    return body(before_text(inputs, prompts, embeddings, first_position=body.first_position, shift=prompts.shape[1]))


def drawn_map(value: Tensor, generator: torch.Generator) -> Tensor:
    """A weight (d_out, d_in) uniform in +-1/sqrt(d_in), a bias (d_out,) zero."""
    if value.ndim == 1:
        return torch.zeros_like(value)
    bound = 1 / math.sqrt(value.shape[1])
    return torch.empty(value.shape).uniform_(-bound, bound, generator=generator).to(value.dtype)

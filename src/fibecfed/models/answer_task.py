"""An adapted causal language model that writes answers, token by token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers import DynamicCache

from ..core.answers import IGNORED
from ..core.types import Batch, Examples, Params
from ..core.written import EXACT, GENERATED, NEW_TOKENS, ROUGE_L, STOPPED, matches, rouge_l, zero_of_written
from .adapted_model import AdaptedModel
from .network import AdaptedNetwork
from .turns import one_at_a_time

if TYPE_CHECKING:
    from .answers import Answers


class AnswerTask(AdaptedModel):
    """An `AdaptedModel` with the objective `answers.Answers`, which also generates."""

    @one_at_a_time
    @torch.no_grad()
    def generate(
        self, params: Params, prompts: Sequence[Sequence[int]], *, stop_ids: Sequence[int], max_new_tokens: int
    ) -> list[list[int]]:
        """The most likely next token, again and again: greedy decoding, with no penalty on any token.

        All prompts are read in one pass, padded on the left; their tokens do not depend on each other but for rounding. The scores of
        tokens are computed in float32 whatever the precision of the body, so that they do not tie.

        Args:
            prompts: tokens of each, at least one.
            stop_ids: tokens at which an answer ends.
            max_new_tokens: tokens of an answer, at most, its end token included.

        Returns:
            The new tokens of each prompt, the end token included where it was reached.
        """
        if not prompts or max_new_tokens < 1:
            return [[] for _ in prompts]
        longest, pad = max(map(len, prompts)), self._network.config.pad_token_id or 0
        ids = torch.tensor([[pad] * (longest - len(one)) + list(one) for one in prompts], device=self.device)
        mask = torch.tensor([[0] * (longest - len(one)) + [1] * len(one) for one in prompts], device=self.device)
        stops = torch.tensor(list(stop_ids), dtype=ids.dtype, device=self.device)
        with self._without_graph(), self._kernels():
            writer = _Writer(self._network)
            found: Tensor = functional_call(writer, self._swapped(params), (ids, mask, stops, max_new_tokens), tie_weights=False)
        return [_until(row, set(stop_ids)) for row in found.tolist()]

    def written(self, params: Params, examples: Examples) -> dict[str, Tensor]:
        """The sums of `core.written` over answers to some of the examples, evenly spread among those whose last answer is whole.

        The last answer of an example is written anew, after all that stands before it. Nothing but sums is returned.
        """
        writing = cast("Answers", self.objective).writing
        totals = zero_of_written()
        if writing is None:
            return totals
        whole = whole_answers(examples, writing.stop_ids)
        number = min(writing.number, len(whole))
        some = sorted((whole[place * len(whole) // number] for place in range(number)), key=lambda one: len(one[0]))
        for start in range(0, number, BATCH):
            part = some[start : start + BATCH]
            prompts = [prompt for prompt, _ in part]
            rows = self.generate(params, prompts, stop_ids=writing.stop_ids, max_new_tokens=writing.max_new_tokens)
            for tokens, (_, expected) in zip(rows, part, strict=True):
                answer, right = writing.decode(tokens), writing.decode(expected)
                totals[GENERATED] += 1
                totals[EXACT] += int(matches(answer, right, writing.match))
                totals[ROUGE_L] += rouge_l(answer, right)
                totals[STOPPED] += int(tokens[-1] in writing.stop_ids)
                totals[NEW_TOKENS] += len(tokens)
        return totals


BATCH = 8
"""[C] Answers that are generated together."""


def whole_answers(examples: Examples, stop_ids: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Of examples whose last answer is whole, the tokens before it, and its own with its end token."""
    found = [_last_answer(examples.batch([place])) for place in range(len(examples))]
    return [(prompt, answer) for prompt, answer in found if prompt and answer and answer[-1] in stop_ids]


def _last_answer(batch: Batch) -> tuple[list[int], list[int]]:
    """Of one example the tokens before its last run of labelled ones, and that run."""
    number = int(batch["attention_mask"].sum())
    ids, labelled = batch["input_ids"][0, :number].tolist(), (batch["labels"][0, :number] != IGNORED).tolist()
    end = max((place + 1 for place, one in enumerate(labelled) if one), default=0)
    start = max((place + 1 for place in range(end) if not labelled[place]), default=0)
    return ids[:start], ids[start:end]


class _Writer(nn.Module):
    """The loop over new tokens, as a module that holds the network's model under the same names."""

    def __init__(self, network: AdaptedNetwork) -> None:
        super().__init__()
        self.model = network.model
        self._network: list[Any] = [network]

    def forward(self, ids: Tensor, mask: Tensor, stops: Tensor, max_new_tokens: int) -> Tensor:
        """(batch, token) of prompts -> (batch, new token), until all rows have stopped; what stands behind a row's end says nothing."""
        network, written = self._network[0], list[Tensor]()
        cache: Any = None if network.adapter is None else DynamicCache()
        stopped = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        while True:
            keywords = network.placed({"input_ids": ids, "attention_mask": mask}, positions)
            hidden, cache = network.read_on({**keywords, "past_key_values": cache, "use_cache": True}, begun=bool(written))
            chosen = network.head.head(hidden[:, -1]).argmax(-1)
            written.append(chosen)
            stopped |= torch.isin(chosen, stops)
            if len(written) == max_new_tokens or bool(stopped.all()):
                return torch.stack(written, 1)
            ids, positions = chosen[:, None], positions[:, -1:] + 1
            mask = torch.cat([mask, torch.ones_like(ids)], 1)


def _until(tokens: list[int], stops: set[int]) -> list[int]:
    end = next((place for place, token in enumerate(tokens) if token in stops), len(tokens))
    return tokens[: end + 1]

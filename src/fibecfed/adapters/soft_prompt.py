"""Soft tokens before the input (Lester, Al-Rfou and Constant, EMNLP 2021)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from .body import Body, Inputs, behind, run_with_prompts


class SoftPrompt(nn.Module):
    """m trained vectors, which stand before the embeddings of every text.

    They take the first m positions, and the text those behind them. The class is read from the text's own token.

    Args:
        start: "vocabulary": embeddings of m different words, drawn uniformly [C: the paper draws among the 5,000 most frequent words,
            which a tokenizer does not tell]; "random": normal, with the standard deviation of all words' embeddings.
    """

    trains_norms = False
    from_middle = False

    def __init__(self, num_tokens: int, hidden: int, start: Literal["vocabulary", "random"]) -> None:
        super().__init__()
        self.start: Literal["vocabulary", "random"] = start
        self.prompt = nn.Parameter(torch.zeros(num_tokens, hidden))

    @property
    def num_positions(self) -> int:
        return len(self.prompt)

    def check(self, body: Body) -> None:
        body.require_front("a soft prompt")

    def run(self, body: Body, inputs: Inputs) -> Tensor:
        embeddings = body.embeddings(inputs)
        return run_with_prompts(body, inputs, self.prompt.expand(len(embeddings), -1, -1), embeddings)

    def go_on(self, body: Body, inputs: Inputs) -> Tensor:
        return body(behind(inputs, self.num_positions, shift=self.num_positions))

    def draw(self, name: str, value: Tensor, generator: torch.Generator, vocabulary: Tensor) -> Tensor:
        return drawn_prompt(value, self.start, generator, vocabulary)


def drawn_prompt(value: Tensor, start: Literal["vocabulary", "random"], generator: torch.Generator, vocabulary: Tensor) -> Tensor:
    """A prompt at the start, (m, hidden), as `SoftPrompt` says."""
    if start == "random":
        return (torch.randn(value.shape, generator=generator) * float(vocabulary.float().std())).to(value.dtype)
    words = torch.randperm(len(vocabulary), generator=generator).repeat(-(-len(value) // len(vocabulary)))[: len(value)]
    return vocabulary[words.to(vocabulary.device)].detach().to("cpu", value.dtype)

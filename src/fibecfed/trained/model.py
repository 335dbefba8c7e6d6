"""A saved model, loaded: the class probabilities of texts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..core.errors import UserError
from ..core.files import read_table
from ..core.json_text import from_json
from ..core.process import threads
from ..core.streams import quiet_libraries
from ..core.types import Batch, ClientId
from ..data.prompt import Prompt, make_prompt, template_and_words
from ..data.sources import TextSplit
from ..data.text import TableExamples
from ..data.tokenise import tokenise
from ..models.base_models import Source, fills_masks, load_config, sha256_of
from ..models.base_models import find as find_source
from ..models.label_words import LabelWords
from ..models.objectives import ClassHead
from ..models.precision import choose_device
from ..models.saved import load_task, saved_tokenizer
from ..models.transformer_task import TransformerTask
from ..reading import max_length, reads_pairs
from .find import FoundModel, find, reject_answers

BATCH = 64
"""Texts of a batch."""
TOKENS = 8192
"""Tokens of a batch, with its padding: longer texts come in smaller batches, so that they take no more memory."""

Watch = Callable[[Iterable[list[int]], int], Iterable[list[int]]]
"""Sees the batches go by: gets them and the number of texts, and gives them on."""


@dataclass(frozen=True)
class TrainedModel:
    """A model that a run saved, ready to be asked.

    Attributes:
        found: where it lies.
        labels: names of the classes, in order.
        task: base model and adapter.
        tokenizer: of the adapter's folder.
        prompt: template and words, if the model has no head of its own.
    """

    found: FoundModel
    source: Source
    labels: tuple[str, ...]
    task: TransformerTask
    tokenizer: Any
    prompt: Prompt | None

    @cached_property
    def pair(self) -> bool:
        """Whether it reads two texts."""
        return reads_pairs(self.found.config)

    @property
    def max_length(self) -> int:
        """Tokens that it reads of a text."""
        return max_length(self.found.config)

    def tokens(self, texts: Sequence[str], pairs: Sequence[str] | None = None) -> TableExamples:
        """Texts as the model reads them: cut, and put into its template, as in training.

        Raises:
            UserError: second texts where it reads one, or none where it reads two.
        """
        if self.pair != (pairs is not None):
            raise UserError(f"got {'one text' if pairs is None else 'two texts'}, expected {'two' if self.pair else 'one'}, as in training")
        split = TextSplit(list(texts), None if pairs is None else list(pairs), None, None)
        return tokenise(self.tokenizer, split, self.max_length, self.prompt).view()

    def probabilities(
        self, texts: Sequence[str], pairs: Sequence[str] | None = None, watch: Watch = lambda batches, count: batches
    ) -> Float[Tensor, "texts classes"]:
        """The probability of each class, float32, in the order of the texts.

        Texts of like length are asked together, so that little padding is computed.

        Args:
            pairs: the second texts.
            watch: sees the progress.
        """
        return self.logits(self.tokens(texts, pairs), watch).softmax(-1)

    def logits(self, examples: TableExamples, watch: Watch = lambda batches, count: batches) -> Float[Tensor, "texts classes"]:
        """The class scores of tokenised texts, float32, in their order."""
        scores = torch.empty(len(examples), len(self.labels))
        params = self.task.params()
        with threads(self.found.config.resources.threads):
            for rows in watch(batches_by_length(examples.lengths), len(examples)):
                batch: Batch = examples.batch(rows)
                scores[rows] = self.task.logits(params, batch).float().cpu()
        return scores


def batches_by_length(lengths: Tensor) -> list[list[int]]:
    """Positions of texts of like length together, the longest first: what does not fit into memory fails at once."""
    order = lengths.argsort(descending=True, stable=True).tolist()
    batches, start = [], 0
    while start < len(order):
        size = max(1, min(BATCH, TOKENS // int(lengths[order[start]])))
        batches.append(order[start : start + size])
        start += size
    return batches


def load(
    run: str | Path, client: ClientId | None = None, *, base: str | None = None, device: str = "auto", what: str = "this"
) -> TrainedModel:
    """Load the global model of a run, or that of one of its clients.

    Args:
        base: where the base model lies by now; None: where the run's configuration says.
        device: as `training.device`.
        what: what it is loaded for, for an error.

    Raises:
        UserError: no such model, a base model that is missing or another than the run was trained on, or an adapter that is damaged.
    """
    found = find(run, client, base)
    reject_answers(found, what)
    source = find_source(found.config.model)
    reject_other_weights(found, source)
    labels = _labels(found.folder)
    with quiet_libraries():
        tokenizer = saved_tokenizer(source, found.folder)
        prompt, objective = None, ClassHead(len(labels))
        if found.config.model.head == "label-words":
            masked = fills_masks(source, load_config(source))
            prompt = make_prompt(tokenizer, *template_and_words(found.config.data, labels), masked=masked)
            objective = LabelWords(prompt.token_ids, prompt.mask_id)
        pad: Any = tokenizer.pad_token_id
        dropout = found.config.training.dropout
        task = load_task(source, found.folder, objective, pad_token_id=pad, dropout=dropout, device=choose_device(device))
    return TrainedModel(found, source, labels, task, tokenizer, prompt)


def reject_other_weights(found: FoundModel, source: Source) -> None:
    """Reject a base model whose files are not those that the run was trained on.

    Raises:
        UserError: it is another.
    """
    now = sorted(sha256_of(path) for path in source.files)
    if found.files and now and now != sorted(found.files.values()):
        raise UserError(
            f"model.name: {source.location} has other weights than the run was trained on (their checksums differ), expected those of "
            f"{', '.join(found.files)}; put them back, or give their location with --base"
        )


def _labels(folder: Path) -> tuple[str, ...]:
    """Names of the classes; version 0.1 wrote them alone."""
    path, advice = folder / "labels.json", "restore the folder from a backup"
    try:
        table = from_json(path.read_bytes())
    except (OSError, ValueError):
        table = read_table(path, advice)  # says what is wrong
    names = table.get("labels") if isinstance(table, dict) else table
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{path}: got no names of classes, expected them under `labels`; {advice}")
    return tuple(names)

"""A finished run as a Python object: its scores, and its models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..core.errors import UserError
from ..core.files import expanded, read_summary
from ..core.types import ClientId
from ..engine.baselines import metric_of
from .model import TrainedModel, load
from .plain import load_model


@dataclass(frozen=True, eq=False, repr=False)
class FinishedRun(Mapping[str, Any]):
    """A finished run; itself the table of summary.json.

    Attributes:
        folder: the run's.
        summary: what summary.json holds.
    """

    folder: Path
    summary: Mapping[str, Any]
    _loaded: dict[ClientId | None, TrainedModel] = field(default_factory=dict[ClientId | None, TrainedModel])

    @classmethod
    def open(cls, folder: str | Path) -> FinishedRun:
        """The finished run in a folder.

        Raises:
            UserError: there is none.
        """
        return cls(expanded(folder), read_summary(expanded(folder)))

    @property
    def scores(self) -> Mapping[str, Any]:
        """Scores after the last round, under the run's primary metric; those of other metrics under `metrics`."""
        return self.summary["scores"]

    def model(self, client: ClientId | None = None) -> Any:
        """The global model, or a client's own, as a text-classification pipeline of transformers: see `load_model`."""
        return load_model(self.folder, client)

    def predict(self, texts: Sequence[str] | Sequence[tuple[str, str]], client: ClientId | None = None) -> list[dict[str, Any]]:
        """The most probable class of each text, with the global model or a client's own, of any method.

        Args:
            texts: or pairs of them, where the model reads two.

        Returns:
            For each text `label`, `score` (the probability of that label), and `probabilities` by label.

        Raises:
            UserError: no such model, or texts of another kind than the model reads.
        """
        if isinstance(texts, str):
            raise UserError("texts: got one text, expected a list of them")
        if client not in self._loaded:
            self._loaded[client] = load(self.folder, client, what="predict")
        model = self._loaded[client]
        if wrong := next((text for text in texts if not isinstance(text, tuple if model.pair else str)), None):
            expected = "pairs of texts, as tuples" if model.pair else "texts"
            raise UserError(f"texts: got a {type(wrong).__name__} among them, expected {expected}")
        pairs = [text[1] for text in texts] if model.pair else None
        found = model.probabilities([text[0] for text in texts] if model.pair else [str(text) for text in texts], pairs)
        table = [dict(zip(model.labels, row, strict=True)) for row in found.tolist()]
        return [{"label": (label := max(row, key=row.__getitem__)), "score": row[label], "probabilities": row} for row in table]

    def __getitem__(self, key: str) -> Any:
        return self.summary[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.summary)

    def __len__(self) -> int:
        return len(self.summary)

    def __repr__(self) -> str:
        metric, scores = metric_of(self.summary), self.scores
        found = f"personalised {metric.text(scores['pooled_personalised'])}, global {metric.text(scores['global'])}"
        return f"FinishedRun({str(self.folder)!r}: {self.summary['method']}, {metric.title}: {found})"

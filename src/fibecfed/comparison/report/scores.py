"""How the scores of a comparison are compared and shown: everything that depends on its metric, and on nothing else."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from ...core.metrics import METRICS, Metric
from ...core.statistics import CONFUSION

SHOWN = 3
"""Digits of a score that are shown, as of a share: a difference that is nothing in these is level."""


@dataclass(frozen=True)
class ComparedMetric:
    """The scores of a metric. Shares are shown per cent with a digit, other numbers with three."""

    metric: Metric = METRICS["accuracy"]

    @property
    def sign(self) -> int:
        """Of a difference that is a gain."""
        return 1 if self.metric.higher_is_better else -1

    @property
    def best(self) -> Callable[[Collection[float]], float]:
        """The best of some scores."""
        return max if self.metric.higher_is_better else min

    @property
    def factor(self) -> int:
        """What a score is multiplied with to be shown."""
        return 100 if self.metric.unit == "%" else 1

    @property
    def digits(self) -> int:
        """After the point."""
        return 1 if self.metric.unit == "%" else 3

    @property
    def unit(self) -> str:
        """What stands behind a number: " %", " nat" or nothing."""
        return f" {self.metric.unit}".rstrip()

    @property
    def step(self) -> str:
        """What stands behind a difference: " points", " nat" or nothing."""
        return " points" if self.metric.unit == "%" else self.unit

    def head(self, name: str) -> str:
        """Of a column, as in "personalised %", "personalised, nat"."""
        return f"{name} %" if self.metric.unit == "%" else f"{name}, {self.metric.unit}" if self.metric.unit else name

    @property
    def lower(self) -> str:
        """Behind the label of an axis: ", lower is better" where it is."""
        return "" if self.metric.higher_is_better else ", lower is better"

    @property
    def what(self) -> str:
        """Name and unit, as in "Accuracy in per cent", "Loss in nat", "Matthews correlation"."""
        return f"{self.metric.title[0].upper()}{self.metric.title[1:]} {self.scale}".rstrip(", ")

    @property
    def scale(self) -> str:
        """As in "in per cent, ", "in nat, ", and nothing for plain numbers."""
        return "in per cent, " if self.metric.unit == "%" else f"in {self.metric.unit}, " if self.metric.unit else ""

    @property
    def above(self) -> str:
        """Of a better score: "above", or "better than" where a lower one is."""
        return "above" if self.metric.higher_is_better else "better than"

    @property
    def below(self) -> str:
        """Of a worse score."""
        return "below" if self.metric.higher_is_better else "worse than"

    @property
    def higher(self) -> str:
        """What a better score is called."""
        return "higher" if self.metric.higher_is_better else "better"

    @property
    def both(self) -> str:
        """What personalised and global score are."""
        return "Both are accuracies" if self.metric.name == "accuracy" else f"Both are the {self.metric.title}"

    @property
    def baseline(self) -> str:
        """What scores are compared with: `majority` of a run is its score."""
        return "majority class" if self.metric.needs == (CONFUSION,) else "untrained model"

    @property
    def base(self) -> str:
        """What targets begin at: what is had without reading a text."""
        return "own majority" if self.metric.needs == (CONFUSION,) else self.baseline

    def text(self, score: float) -> str:
        """As in "84.1 %", "0.412 nat"."""
        return f"{self.factor * score:.{self.digits}f}{self.unit}"

    def difference(self, gain: float) -> str:
        """Without its sign, as in "2.0 points", "0.020 nat"."""
        return f"{abs(self.factor * gain):.{self.digits}f}{self.step}"

    def round(self, score: float) -> str:
        """A round difference, as in "5 points", "0.05 nat"."""
        return f"{self.factor * score:g}{self.step}"

"""A client's part of a round of FibecFed's tuning: which examples it trains on, which neurons it updates, what it keeps."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ..core.method import ClientView, Work
from ..core.rng import Key
from ..core.trees import pick
from ..core.types import Examples, Params, Round
from ..core.wire import Tensors, message
from ..local import curriculum, selection
from ..local.agreement import within_layers
from ..local.batches import PASS_BATCH, batches, shuffled, weighed
from ..local.collect import Collect
from ..local.difficulty import WITHOUT_GRADIENT, in_length_bins
from ..local.fisher import FisherPass, Neurons, fisher_pass, momentum
from ..local.optimise import fit
from ..local.options import CurriculumOptions, NeuronOptions, TrainingOptions
from ..local.schedule import in_round
from .agreement import HALVES


@message
class Own:
    """A client's state; never leaves it.

    own: tensors of the layers that are not shared (all of P before it first trains). rows, columns: momentum of the neurons' Fisher
    information. order: its training examples from easy to hard, empty until scored, and where they are scored while training.
    trainings, since_scoring: counts. difficulty: where they are scored while training, the latest "trace" of each example, float32, and the
    "round" it is from, int64, -1 = not scored yet.
    """

    own: Tensors
    rows: Tensors
    columns: Tensors
    order: Tensor
    trainings: int
    since_scoring: int
    difficulty: Tensors = field(default_factory=dict[str, Tensor])


def default_score_after(num_rounds: int) -> int:
    """ceil(0.2 T) [C]: before that, gradients say more about the head that was just drawn than about the examples."""
    return math.ceil(0.2 * num_rounds - 1e-9)


@dataclass(frozen=True)
class Trained:
    """What a client's training made."""

    params: dict[str, Tensor]
    state: Own
    work: Work
    notes: dict[str, Any]
    halves: dict[str, Tensor] = field(default_factory=dict[str, Tensor])


MEASURED = ("fisher", *WITHOUT_GRADIENT)
"""Orders by what a model makes of the examples."""


@dataclass(frozen=True)
class Difficulty:
    """What a scoring measured.

    Attributes:
        difficulty: of each training example.
        neurons: their Fisher information, where the scoring was by it.
    """

    difficulty: Tensor
    neurons: Neurons | None


@dataclass(frozen=True)
class ClientPart:
    """The options of it, and where the run stands.

    Attributes:
        score_after: round from which on examples are scored.
        key: random stream of the method's own draws.
        is_last: nobody trains after this round: what would serve a later one alone is left out.
        measures: whether it tells how reliable its gradients in each layer are.
    """

    training: TrainingOptions
    curriculum: CurriculumOptions
    neurons: NeuronOptions
    score_after: int
    key: Key
    is_last: bool
    measures: bool = False

    def train(
        self,
        client: ClientView[Own],
        params: Params,
        own: Sequence[str],
        masked: Sequence[str],
        collected: Sequence[str],
        still: Collection[str],
        blocks: Collection[str],
        now: Round,
    ) -> Trained:
        """One local training.

        Args:
            params: all tensors, where it starts.
            own: tensors that stay with the client.
            masked: those of them of which only chosen neurons are updated.
            collected: tensors whose neurons' Fisher information is collected for later rounds.
            still: tensors that do not move.
            blocks: those of them that lie in blocks of which nothing is trained: no example is scored by them.
        """
        task, train, state = client.task, client.data.train, client.state
        notes: dict[str, Any] = {}

        # Which examples it trains on, in which order
        scored = self._score(client, params, blocks, now)
        order = state.order if scored is None else self._easy_to_hard(scored.difficulty, train)
        if scored is not None:
            notes["difficulty"] = _written(scored.difficulty)
        positions = self._positions(client, order, now)
        orders = [self._order(client, positions, epoch) for epoch in range(self.training.local_epochs)]
        beside = weighed(train, self.training)
        epochs = [batches(train, one, self.training.batch_size, beside=beside) for one in orders]

        # Which neurons of its own layers it updates
        by_fisher = self.neurons.rule not in ("all", "random")
        ranks, known = by_fisher and bool(masked), bool(state.rows) and state.rows.keys() >= set(collected)
        fisher = Neurons(dict(state.rows), dict(state.columns)).only(collected) if known else None
        if ranks and fisher is None and not self._scores_in_training:
            measured = None if scored is None else scored.neurons
            fisher = (measured or self._pass(client, params, blocks, positions[:: self.neurons.every]).neurons).only(collected)
        masks: dict[str, Tensor] = {}
        if masked and self.neurons.rule != "all":
            chosen = self.neurons if fisher is not None or not ranks else NeuronOptions(rule="all")  # nothing is known in a first training
            masks = selection.neuron_masks(chosen, pick(params, masked), fisher, self.key.fold("client", client.id, "neurons"))
            notes["kept_neurons"] = sum(int(mask.sum()) for mask in masks.values())
            notes["own_neurons"] = sum(map(len, masks.values()))

        trained = sorted(set(task.names) - set(still))
        collect = self._collect(client, collected if by_fisher and not self.is_last else (), blocks, now)
        schedule, dropout = in_round(self.training, now), client.key.fold("dropout")
        result = fit(task, params, epochs, schedule, dropout, trained=trained, masks=masks, collect=collect)
        if result.neurons is not None:
            fisher = momentum(fisher, result.neurons, self.neurons.momentum)
        difficulty = dict(state.difficulty)
        if result.traces is not None:
            difficulty, new = self._latest(difficulty, orders[0][: len(result.traces)], result.traces, len(train), now)
            notes |= {"difficulty": _written(difficulty["trace"][new]), "difficulty_of": new.tolist()} if len(new) else {}

        since = 0 if scored is not None else state.since_scoring
        rows, columns = (fisher.rows, fisher.columns) if fisher is not None else ({}, {})
        after = Own(pick(result.params, own), rows, columns, order, state.trainings + 1, since + 1, difficulty)
        halves = {HALVES: within_layers(task, result.halves or {})} if self.measures else {}
        return Trained(result.params, after, Work(result.steps, result.examples, result.loss), notes, halves)

    @property
    def scores(self) -> bool:
        return self.curriculum.pace != "none" and self.curriculum.order in MEASURED

    @property
    def _scores_in_training(self) -> bool:
        return self.curriculum.scoring == "training"

    @property
    def _sorts(self) -> bool:
        return self.curriculum.order_within_round == "easy_to_hard" and self.curriculum.pace != "none"

    # What a pass or the training itself is asked for

    def _score(self, client: ClientView[Own], params: Params, blocks: Collection[str], now: Round) -> Difficulty | None:
        """Difficulty of every training example [S], where this training is due to measure it [C: score_after, rescore_every]."""
        if self._scores_in_training or not self.scores or now.index < self.score_after:
            return None
        state, every = client.state, self.curriculum.rescore_every
        if len(state.order) and not (every and state.since_scoring >= every):
            return None
        train = client.data.train
        if self.curriculum.order in WITHOUT_GRADIENT:
            return Difficulty(WITHOUT_GRADIENT[self.curriculum.order](client.task, params, train), None)
        found = self._pass(client, params, blocks, torch.arange(len(train)))
        return Difficulty(found.trace, found.neurons)

    def _easy_to_hard(self, difficulty: Tensor, train: Examples) -> Tensor:
        if self.curriculum.normalise == "length-bins" and self.curriculum.order == "fisher" and train.targets is not None:
            if not torch.isfinite(difficulty).all():
                return curriculum.easy_to_hard(difficulty)  # which says so
            difficulty = in_length_bins(difficulty, train.targets)
        return curriculum.easy_to_hard(difficulty)

    def _pass(self, client: ClientView[Own], params: Params, blocks: Collection[str], positions: Tensor) -> FisherPass:
        """Fisher information of the examples at `positions`; the trace in their order."""
        train, options = client.data.train, self.curriculum
        shortest_first = positions[torch.argsort(train.lengths[positions], stable=True)]
        some, names = batches(train, shortest_first, PASS_BATCH), [name for name in client.task.names if name not in blocks]
        found = fisher_pass(client.task, params, some, options.labels, options.fisher_over, names, options.normalise)
        place = {int(position): i for i, position in enumerate(shortest_first)}
        return replace(found, trace=found.trace[[place[int(position)] for position in positions]])

    def _collect(self, client: ClientView[Own], neurons: Collection[str], blocks: Collection[str], now: Round) -> Collect | None:
        """Fisher information from the training itself: that of the neurons, and each example's trace where it is scored so and a later
        round's choice or order of examples can depend on it."""
        task, later = client.task, curriculum.share(self.curriculum, now.index + 1, max(now.num_rounds, 1))
        chooses = later < 1 or self._sorts
        traces = self._scores_in_training and self.scores and now.index >= self.score_after and chooses and not self.is_last
        if not neurons and not traces and not self.measures:
            return None
        heads = self.curriculum.fisher_over == "all"
        over = frozenset(name for name in task.names if name not in blocks and (heads or task.layer_of(name) is not None))
        return Collect(neurons, self.neurons.every, traces, over, self.measures, self.curriculum.normalise)

    def _latest(self, known: Tensors, seen: Tensor, traces: Tensor, size: int, now: Round) -> tuple[dict[str, Tensor], Tensor]:
        """The latest trace of each example with the round it is from, and the examples seen for the first time."""
        trace = known["trace"].clone() if known else torch.zeros(size)
        rounds = known["round"].clone() if known else torch.full((size,), -1)
        new = seen[rounds[seen] < 0].sort().values
        trace[seen], rounds[seen] = traces, now.index
        return {"trace": trace, "round": rounds}, new

    # Which examples

    def _positions(self, client: ClientView[Own], order: Tensor, now: Round) -> Tensor:
        """The round's training examples: the first max(1, ceil(pace(t) batches)) batches of the easy-to-hard order [S], of a random order
        before there is one [C]."""
        train, options = client.data.train, self.curriculum
        if options.pace == "none":
            return torch.arange(len(train))
        if options.order in ("length", "rarity", "random"):
            order = curriculum.control_order(options.order, train, self.key.fold("client", client.id, "order"))
        elif not len(order):
            order = client.key.fold("unscored").permutation(len(train))
            if client.state.difficulty:
                order = curriculum.partly_scored(client.state.difficulty["trace"], client.state.difficulty["round"] >= 0, order)
        return curriculum.positions_of_round(order, curriculum.share(options, now.index, now.num_rounds), self.training.batch_size)

    def _order(self, client: ClientView[Own], positions: Tensor, epoch: int) -> Tensor:
        """The order of an epoch."""
        if self._sorts:
            return positions
        return shuffled(client.data.train, positions, self.training, client.key.fold("order", epoch))


def _written(traces: Tensor) -> list[float]:
    return [float(f"{trace:.6g}") for trace in traces]

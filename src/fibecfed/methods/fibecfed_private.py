"""A client's part of a round of FibecFed under privacy for examples: what `fibecfed_client` does, made of noised quantities alone.

- Examples take part by a threshold on their Fisher information, a quantile of a noised histogram, instead of by their rank; before they are
  scored, those of a random order that the run's key gives.
- Neurons are chosen by the noised steps of earlier trainings; in a client's first training every neuron moves.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch

from ..core.method import ClientView, Work
from ..core.trees import pick
from ..core.types import Params, Round
from ..local import curriculum, selection
from ..local.fisher import Neurons, momentum
from ..local.options import CurriculumOptions, NeuronOptions
from ..local.private import Among, Units, fit_private, traces
from ..local.schedule import in_round
from ..local.threshold import BINS, bins_of, threshold
from .fibecfed_client import ClientPart, Own, Trained


def can_be_private(options: CurriculumOptions) -> bool:
    """Whether a client's part can be made of noised quantities alone."""
    ordered = options.pace == "none" or options.order in ("fisher", "random")
    return ordered and options.scoring == "pass" and options.order_within_round == "shuffled" and options.labels == "true"


@dataclass(frozen=True)
class Sums:
    """In how many noised sums an example is in a round.

    Attributes:
        epochs: of local training.
        scores: whether examples are scored, and from which round of the phase on.
        rescore_every: trainings; 0: once.
        offset: index that the first round of the phase counts as.
    """

    epochs: int
    scores: bool
    score_after: int
    rescore_every: int
    offset: int = 0

    def __call__(self, now: Round, earlier: Sequence[Round]) -> int:
        """One in every epoch, and one where the client is scored: by rights once, unless examples are scored again."""
        if not self.scores or now.index + self.offset < self.score_after:
            return self.epochs
        since = [one for one in earlier if one.index + self.offset >= self.score_after]
        due = not since or bool(self.rescore_every and len(since) % self.rescore_every == 0)
        return self.epochs + due


def train_private(
    part: ClientPart,
    client: ClientView[Own],
    params: Params,
    own: Sequence[str],
    masked: Sequence[str],
    collected: Sequence[str],
    still: Collection[str],
    blocks: Collection[str],
    now: Round,
) -> Trained:
    """As `ClientPart.train`, whose arguments these are."""
    task, train, state, private = client.task, client.data.train, client.state, client.private
    assert private is not None
    options, difficulty = part.curriculum, dict(state.difficulty)
    due = not difficulty or bool(options.rescore_every and state.since_scoring >= options.rescore_every)
    scored = part.scores and now.index >= part.score_after and due
    if scored:
        over = [name for name in task.names if name not in blocks and (options.fisher_over == "all" or task.layer_of(name) is not None)]
        found = traces(task, params, train, over)
        difficulty = {"trace": found, "counts": private.counts(bins_of(found[Units.of(train).examples(private)]), BINS).float()}
    share = 1.0 if options.pace == "none" else curriculum.share(options, now.index, now.num_rounds)
    if difficulty:
        among = Among(difficulty["trace"] <= threshold(difficulty["counts"], share), share)
    else:
        fixed = part.key.fold("client", client.id, "order") if options.order == "random" else client.key.fold("unscored")
        taken = torch.zeros(len(train), dtype=torch.bool)
        taken[fixed.permutation(len(train))[: curriculum.ceil_share(share, len(train))]] = True
        among = Among(taken, share)

    by_fisher = part.neurons.rule not in ("all", "random")
    known = bool(state.rows) and state.rows.keys() >= set(collected)
    fisher = Neurons(dict(state.rows), dict(state.columns)).only(collected) if known else None
    masks = {}
    if masked and part.neurons.rule != "all":
        chosen = part.neurons if fisher is not None or not by_fisher else NeuronOptions(rule="all")
        masks = selection.neuron_masks(chosen, pick(params, masked), fisher, part.key.fold("client", client.id, "neurons"))

    result = fit_private(
        task,
        params,
        train,
        in_round(part.training, now),
        client.key.fold("dropout"),
        private,
        trained=sorted(set(task.names) - set(still)),
        masks=masks,
        among=among,
        neurons=collected if by_fisher and not part.is_last else (),
    )
    if result.neurons is not None:
        fisher = momentum(fisher, result.neurons, part.neurons.momentum)
    rows, columns = (fisher.rows, fisher.columns) if fisher is not None else ({}, {})
    since = 0 if scored else state.since_scoring
    after = Own(pick(result.params, own), rows, columns, state.order, state.trainings + 1, since + 1, difficulty)
    return Trained(result.params, after, Work(result.steps, result.examples), {})

"""The table of an audit: every attack on every view of a run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from ..build import Prepared
from ..core.rng import Key
from ..core.task import Task
from ..core.types import ClientId, Examples, Params
from ..data.text import TableExamples
from . import attacks
from .figures import FALSE_POSITIVES, Interval, MemberScores, auc, mean, named_by_chance, true_positives
from .replay import Observed
from .views import FINAL, AttackRow, names_of

MOST_MEMBERS = 100
"""Training examples of a client that membership is tried on, and of all clients together for the final model."""
MOST_OTHERS = 400
"""Examples of the test part that are taken for examples that nobody trained on."""
TOO_FEW = 3
"""Clients that label shares are guessed from, at least."""


def measured(prepared: Prepared, rounds: Sequence[Observed], start: Params, end: Params, most_clients: int) -> tuple[AttackRow, ...]:
    """Every row.

    Args:
        start, end: the global model before the first round and after the last.
        most_clients: whose updates are attacked; those of the cohort with the first names.
    """
    audit = _Audit(prepared, rounds, start, end, most_clients)
    return (audit.labels(), *audit.membership(), audit.words())


class _Audit:
    def __init__(self, prepared: Prepared, rounds: Sequence[Observed], start: Params, end: Params, most_clients: int) -> None:
        self.task: Task = prepared.task
        self.data = prepared.inputs.data
        self.rounds = rounds
        self.start, self.end = start, end
        self.most_clients = most_clients
        self.key = Key(prepared.inputs.config.seed).fold("audit")
        self.others = _some(self.data.test, MOST_OTHERS, self.key.fold("others"))

    def attacked(self, one: Observed) -> list[ClientId]:
        return sorted(one.updates)[: self.most_clients]

    def members(self, client: ClientId) -> Examples:
        return _some(self.data.client(client).train, MOST_MEMBERS, self.key.fold("members", client))

    # ---- label shares

    def labels(self) -> AttackRow:
        name, unit = "label shares", "mean error of the guessed share of a class"
        if self.data.label_names is None:
            return AttackRow(name, unit, 0.0, {}, "these examples have no classes")
        classes, figures, guesses = len(self.data.label_names), dict[str, Interval](), dict[str, float]()
        for one in self.rounds:
            clients = sorted(one.updates)
            if len(clients) < TOO_FEW:
                continue
            shares = attacks.shares_of([self.data.client(client) for client in clients], classes)
            features = torch.stack([attacks.class_features(self.task, one.before, one.updates[client], self.others) for client in clients])
            single, together = names_of(one)
            views: dict[str, Tensor | None] = {single: None}  # of its own update
            if one.mean:
                views[together] = attacks.class_features(self.task, one.before, one.mean, self.others)
            places = range(len(clients))
            by_chance = [shares[torch.arange(len(shares)) != place].mean(0) for place in places]
            for view, seen in views.items():
                guessed = torch.stack([attacks.guessed_shares(features, shares, place, seen) for place in places])
                figures[view] = mean((guessed - shares).abs().mean(1).tolist())
                guesses[view] = float((torch.stack(by_chance) - shares).abs().mean())
        if not figures:
            return AttackRow(name, unit, 0.0, {}, f"fewer than {TOO_FEW} clients take part in a round")
        return AttackRow(name, unit, sum(guesses.values()) / len(guesses), figures, guesses=guesses, better="below")

    # ---- membership

    def membership(self) -> tuple[AttackRow, AttackRow, AttackRow]:
        by_loss, by_direction = dict[str, list[MemberScores]](), dict[str, list[MemberScores]]()
        linear = True
        for one in self.rounds:
            clients = self.attacked(one)
            names = [view for view in names_of(one) for _ in clients]
            updates = [one.updates[client] for client in clients] + [one.mean] * len(clients)
            held = [self.members(client) for client in clients] * 2
            tried = [(view, update, members) for view, update, members in zip(names, updates, held, strict=True) if update]
            others = self._others_fell(one.before, [update for _, update, _ in tried])
            for (view, update, members), fell in zip(tried, others, strict=True):
                own = self._fell(one.before, attacks.moved(one.before, update), members)
                by_loss.setdefault(view, []).extend(self._apart(own, fell, members))
            if tried and linear:
                try:
                    for view, scores in self._directions(one, tried):
                        by_direction.setdefault(view, []).extend(scores)
                except ValueError:
                    linear = False
        fell = self._fell(self.start, self.end, self.others)
        for client in self.attacked(self.rounds[-1]):
            members = self.members(client)
            by_loss.setdefault(FINAL, []).extend(self._apart(self._fell(self.start, self.end, members), fell, members))
        area = "AUC within a class" if self.data.label_names is not None else "AUC"
        share = f"true positives at {FALSE_POSITIVES:.0%} false ones"
        why = None if linear else "this model trains something that is not a linear map"
        return (
            AttackRow("members by loss", area, 0.5, _known({view: auc(scores) for view, scores in by_loss.items()})),
            AttackRow("members by angle", area, 0.5, _known({v: auc(s) for v, s in by_direction.items()}) if linear else {}, why),
            AttackRow(
                "members named",
                share,
                FALSE_POSITIVES,
                _known({view: true_positives(scores) for view, scores in by_loss.items()}),
                guesses={view: named_by_chance(scores) for view, scores in by_loss.items()},
                better="above",
            ),
        )

    def _apart(self, own: Tensor, others: Tensor, members: Examples) -> list[MemberScores]:
        return attacks.within_classes(own, others, members.labels, self.others.labels)

    def _fell(self, before: Params, after: Params, examples: Examples) -> Tensor:
        """How much the loss of each example has fallen."""
        return attacks.example_losses(self.task, before, examples) - attacks.example_losses(self.task, after, examples)

    def _others_fell(self, before: Params, updates: Sequence[Params]) -> list[Tensor]:
        """How much the losses of the others have fallen by each update; an update that is there twice is tried once."""
        found = dict[int, Tensor]()
        start = attacks.example_losses(self.task, before, self.others)
        for update in updates:
            if id(update) not in found:
                found[id(update)] = start - attacks.example_losses(self.task, attacks.moved(before, update), self.others)
        return [found[id(update)] for update in updates]

    def _directions(self, one: Observed, tried: Sequence[tuple[str, Params, Examples]]) -> Iterator[tuple[str, list[MemberScores]]]:
        updates = [update for _, update, _ in tried]
        others = attacks.alignments(self.task, one.before, updates, self.others)
        for (view, update, members), of_others in zip(tried, others, strict=True):
            yield view, self._apart(attacks.alignments(self.task, one.before, [update], members)[0], of_others, members)

    # ---- words

    def words(self) -> AttackRow:
        name, unit = "words", "AUC of tokens that one client alone has"
        held = {client: attacks.tokens_of(self.data.client(client).train) for client in self.data.clients}
        elsewhere = attacks.tokens_of(self.data.test)
        figures: dict[str, list[MemberScores]] = {}
        for one in self.rounds:
            single, together = names_of(one)
            asked = [(single, one.updates[client], [client]) for client in self.attacked(one)]
            for view, update, clients in (*asked, (together, one.mean, list(one.updates))):
                figures.setdefault(view, []).extend(self._words(update, held, elsewhere, clients))
        final = {name: self.end[name] - self.start[name] for name in self.end if name in self.start}
        figures[FINAL] = self._words(final, held, elsewhere, list(held))
        found = _known({view: auc(scores) for view, scores in figures.items()})
        return AttackRow(name, unit, 0.5, found, None if found else "the first block's adapter is not sent")

    def _words(
        self, update: Params, held: Mapping[ClientId, set[int]], elsewhere: set[int], clients: Sequence[ClientId]
    ) -> list[MemberScores]:
        words = attacks.own_words(held, elsewhere, clients)
        if words is None:
            return []
        own, _ = words
        scores = attacks.word_scores(self.task, update, torch.cat(words))
        return [] if scores is None else [MemberScores(scores[: len(own)], scores[len(own) :])]


def _known(figures: Mapping[str, Interval | None]) -> dict[str, Interval]:
    return {view: figure for view, figure in figures.items() if figure is not None}


def _some(examples: Examples, most: int, key: Key) -> Examples:
    """At most so many of them, drawn at random."""
    if len(examples) <= most or not isinstance(examples, TableExamples):
        return examples
    drawn: Tensor = key.permutation(len(examples))[:most].sort().values
    return examples.select(drawn)

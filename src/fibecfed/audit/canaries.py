"""How well what was sent tells which canaries a client was trained on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from .. import session
from ..build import prepare
from ..config import Config
from ..core.rng import Key
from ..core.task import Task
from ..core.types import ClientId, Examples, Params
from ..data.federated import FederatedData
from ..reading import everyone
from . import attacks
from .figures import Interval, mean
from .planting import Canaries, planted
from .replay import Observed, observed
from .views import FINAL, AttackRow, names_of

CONFIDENCE = 0.95
GUESSED = 0.5
"""Share of the canaries that a guess is made about: half of them heads, half tails. Chosen before looking, as the bound needs it."""


def trained_with(config: Config, each: int) -> tuple[Task, Sequence[Observed], Params, Params, Mapping[ClientId, Canaries]]:
    """A run of the same configuration whose clients hold canaries, in a folder that is removed again.

    Returns:
        Its task, its first and last round, the global model before the first round and after the last, and the canaries.
    """
    # by how many noised evaluations there are, an epsilon says how much noise a round gets; and by evaluations early stopping ends a run
    needed = config.privacy.evaluation == "noised" or config.evaluation.patience is not None
    every = config.evaluation.every if needed else config.federation.rounds
    tables = {
        "tracking": (),
        "tracking_by_client": False,
        "resources": config.resources.model_copy(update={"keep_checkpoints": 2, "checkpoint_every": 1}),
        "evaluation": config.evaluation.model_copy(update={"every": every, "save": "last", "generate": 0}),
    }
    config = config.model_copy(update=tables)
    seen: list[dict[ClientId, Canaries]] = []

    def read(config: Config, tokenizer: Any, key: Key, prompt_for: Any) -> FederatedData:
        data, canaries = planted(everyone(config, tokenizer, key, prompt_for), each, Key(config.seed).fold("audit", "canaries"))
        seen.append(canaries)
        return data

    with TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        session.start(config, out, read_data=read)
        prepared = prepare(config, read_data=read)
        rounds, server, _ = observed(prepared, out)
    method = prepared.method
    start = method.server_params(method.init(prepared.task, prepared.inputs.key.fold("run").fold("init")))
    return prepared.task, rounds, start, method.server_params(server), seen[-1]


def no_canaries() -> AttackRow:
    """The row where none were planted."""
    return AttackRow("canaries", "mean exposure of a planted one", 0.0, {}, "needs --canaries N, which trains the run once more")


def canary_rows(
    task: Task, rounds: Sequence[Observed], start: Params, end: Params, canaries: Mapping[ClientId, Canaries], most_clients: int
) -> tuple[AttackRow, AttackRow]:
    """How far the loss of a planted canary fell, among those that were not planted.

    Returns:
        The exposure of planted canaries (Carlini et al., USENIX Security 2019): log2 of how many canaries there are to choose from over
        the rank of this one, bit. And the epsilon that these guesses are too good for, with 95 % confidence (Steinke et al., NeurIPS 2023,
        theorem 5.2 with delta = 0): a run that was more private for single examples than that would show so many right guesses less often.
    """
    taking = {client for one in rounds for client in one.updates if client in canaries}
    absent = [(client, canaries[client].examples.select((~canaries[client].planted).nonzero()[:, 0])) for client in sorted(canaries)]
    exposures, of_views = dict[str, list[float]](), dict[str, list[tuple[Tensor, Tensor]]]()

    def look(view: str, before: Params, update: Params, clients: Sequence[ClientId]) -> None:
        after = attacks.moved(before, update)

        def fell(examples: Examples) -> Tensor:
            return attacks.example_losses(task, before, examples) - attacks.example_losses(task, after, examples)

        others = torch.cat([fell(examples) for _, examples in absent if len(examples)] or [torch.zeros(0)])
        for client in clients:
            own = canaries[client]
            scores = fell(own.examples)
            members = scores[own.planted]
            if len(members) and len(others):
                exposures.setdefault(view, []).extend(_exposures(members, others))
            of_views.setdefault(view, []).append((scores, own.planted))

    for one in rounds:
        single, together = names_of(one)
        attacked = [client for client in sorted(one.updates) if client in canaries][:most_clients]
        for client in attacked:
            if one.updates[client]:
                look(single, one.before, one.updates[client], [client])
        if one.mean:
            look(together, one.before, one.mean, [client for client in sorted(one.updates) if client in canaries])
    look(FINAL, start, {name: end[name] - start[name] for name in end if name in start}, sorted(taking))
    number = sum(len(examples) for _, examples in absent) + 1
    guess = sum(math.log2(number / rank) for rank in range(1, number + 1)) / number
    bounds = {view: bound(scores) for view, scores in of_views.items()}
    return (
        AttackRow(
            "canaries", f"mean exposure of a planted one, bit (at most {math.log2(number):.1f})", guess, _means(exposures), better="above"
        ),
        AttackRow("canaries' epsilon", "at least, for one example, by how many guesses are right", 0.0, bounds, better="above"),
    )


def _means(exposures: Mapping[str, Sequence[float]]) -> dict[str, Interval]:
    return {view: mean(values) for view, values in exposures.items()}


def _exposures(members: Tensor, others: Tensor) -> list[float]:
    """log2((others + 1) / rank) of each member's score among those of the others; in a tie, the rank in the middle of it."""
    above = (others[None, :] > members[:, None]).sum(1) + 0.5 * (others[None, :] == members[:, None]).sum(1)
    return torch.log2((len(others) + 1) / (above + 1)).tolist()


def bound(found: Sequence[tuple[Tensor, Tensor]]) -> Interval:
    """The epsilon that guesses by these scores are too good for; an interval whose upper end nobody knows.

    Canaries stay in the order in which they were made, which tells nothing of their coins: so ties are guessed at random.
    """
    scores, planted_ones = (torch.cat(parts) for parts in zip(*found, strict=True))
    guesses = int(len(scores) * GUESSED / 2)
    order = scores.argsort(descending=True, stable=True)
    right = int(planted_ones[order[:guesses]].sum()) + int((~planted_ones[order[len(order) - guesses :]]).sum())
    epsilon = least_epsilon(right, 2 * guesses)
    return Interval(epsilon, epsilon, epsilon)


def least_epsilon(right: int, guesses: int, confidence: float = CONFIDENCE) -> float:
    """The largest epsilon under which so many right guesses about fair coins, or more, are seen less often than 1 - confidence.

    Each guess about an epsilon-DP release is right with a probability of at most e^epsilon / (1 + e^epsilon), whatever the others are.
    """
    low, high = 0.0, 30.0
    if _at_least(right, guesses, 0.5) > 1 - confidence:
        return 0.0
    for _ in range(60):
        middle = (low + high) / 2
        chance = 1 / (1 + math.exp(-middle))
        low, high = (middle, high) if _at_least(right, guesses, chance) <= 1 - confidence else (low, middle)
    return low


def _at_least(right: int, guesses: int, chance: float) -> float:
    """The probability that so many of independent guesses are right, or more."""
    sure, unsure = math.log(chance), math.log1p(-chance)
    ways = math.lgamma(guesses + 1)
    logs = [ways - math.lgamma(k + 1) - math.lgamma(guesses - k + 1) + k * sure + (guesses - k) * unsure for k in range(right, guesses + 1)]
    return math.fsum(map(math.exp, logs))

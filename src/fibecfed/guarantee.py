"""What a run's table [privacy] promises with its method, clients and rounds; before a model is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .config import Config
from .core.errors import UserError
from .core.method import Method
from .core.rng import Key
from .core.types import ClientId, Round
from .data.federated import FederatedData
from .data.partition import client_ids
from .engine.loop import planned
from .engine.pooled import reject_unpooled
from .engine.private_examples import reject_not_by_example
from .engine.robust import reject_not_robust
from .engine.summed import reject_unsummed
from .local.private import Units
from .privacy.cohorts import Cohorts, cohorts_of
from .privacy.example_plan import ExamplePlan, PlannedRound, example_plan
from .privacy.fixed import MOST, Adding, ClippedGrid, FixedPoint
from .privacy.plan import PrivacyPlan, plan_of


def guarantee(config: Config, method: Method[Any, Any], data: FederatedData, clients: int, key: Key) -> PrivacyPlan | ExamplePlan | None:
    """The plan; None where nothing is protected.

    Args:
        data: as far as it is known here.
        clients: how many there are.
        key: of the configuration.

    Raises:
        UserError: it cannot be promised, or the method cannot be run so, nor with the aggregation asked for.
    """
    kind, cohort = config.method.model_dump()["kind"], config.federation.cohort_size(clients)
    reject_not_robust(method, kind, config.federation, cohort)
    if config.privacy.unit == "example":
        # one of many machines knows of no other's name, but how many there are: who is asked how often depends on that alone
        names = data.clients if len(data.clients) == clients else client_ids(clients)
        return _by_example(config, method, kind, data, names, key)
    if config.privacy.unit != "none":
        reject_unpooled(method, kind)
    return plan_of(config.privacy, clients, cohort, sum(phase.num_rounds for phase in method.phases), _evaluated(config, method))


def _evaluated(config: Config, method: Method[Any, Any]) -> list[int]:
    """After how many rounds a run that is private for clients is scored: after every so many of a phase, and after its last."""
    found, before = list[int](), 0
    for phase in method.phases:
        within = {*range(config.evaluation.every, phase.num_rounds + 1, config.evaluation.every), phase.num_rounds}
        found += sorted(before + number for number in within if number)
        before += phase.num_rounds
    return found


def _by_example(
    config: Config, method: Method[Any, Any], kind: str, data: FederatedData, names: Sequence[ClientId], key: Key
) -> ExamplePlan:
    reject_not_by_example(method, kind)
    rounds = planned(method, names, config.federation.cohort_size(len(names)), key.fold("run"), config.federation, in_turn=True)
    asked, earlier = list[PlannedRound](), dict[tuple[str, ClientId], list[Round]]()
    for phase, now, chosen in rounds:
        assert phase.sums is not None, "others are rejected"
        before = [earlier.setdefault((now.phase, client), []) for client in chosen]
        asked.append(PlannedRound(now, chosen, max(phase.sums(now, one) for one in before)))
        for one in before:
            one.append(now)
    units = max((len(Units.of(data.client(client).train)) for client in data.clients), default=0)
    return example_plan(config.privacy, tuple(asked), units, config.training.batch_size * config.training.gradient_accumulation)


def sums_asked(config: Config, method: Method[Any, Any], clients: int) -> Cohorts | None:
    """What secure aggregation asks of cohorts; None without it.

    Raises:
        UserError: they are too small, or the method cannot be run so.
    """
    cohorts = cohorts_of(config.privacy, min(config.federation.cohort_size(clients), clients))
    if cohorts is not None:
        reject_unsummed(method, config.method.model_dump()["kind"], config.privacy.secure_aggregation)
        if (most := MOST // cohorts.size) < config.federation.max_samples:
            raise UserError(
                f"federation.max_samples: got {config.federation.max_samples} for {cohorts.size} clients per round, expected at most "
                f"{most}, so that their sum has 32 bits; lower it: clients with more examples weigh as much as one with so many"
            )
    return cohorts


def adding_of(config: Config, privacy: PrivacyPlan | ExamplePlan | None, cohorts: Cohorts | None) -> Adding | None:
    """How answers become words that are summed; None without secure aggregation."""
    if cohorts is None:
        return None
    if privacy is not None:
        return ClippedGrid(privacy.clip_norm)
    return FixedPoint(config.privacy.range, cohorts.size, config.federation.max_samples)

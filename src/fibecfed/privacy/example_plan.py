"""What a run that is private for examples promises, before anything is trained."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..core.errors import UserError
from ..core.types import ClientId, Round
from .gaussian import MOST_NOISE, epsilon_of, noise_for
from .ledger import Terms
from .options import PrivacyOptions


@dataclass(frozen=True)
class PlannedRound:
    """Whom a round asks, and in how many noised sums each of their examples may be."""

    now: Round
    clients: Sequence[ClientId]
    times: int


@dataclass(frozen=True)
class ExamplePlan:
    """The guarantee of a run.

    Attributes:
        asked: every round in order.
        noise_multiplier: z.
        clip_norm: C.
        budget: epsilon that no client passes; None: no limit.
        evaluation: "off", or "exact": outside of the guarantee.
        batch_size: B, examples of a step.
        units: of the client that holds most; 0 where that is not known here.
        by_person: whether all examples of one person are one unit.
    """

    asked: Sequence[PlannedRound]
    noise_multiplier: float
    clip_norm: float
    delta: float
    budget: float | None
    evaluation: str
    batch_size: int
    units: int
    by_person: bool = False

    unit = "example"

    @property
    def rounds(self) -> int:
        """Planned ones."""
        return len(self.asked)

    @property
    def terms(self) -> Terms:
        """What ledgers are kept for."""
        return Terms(self.unit, self.units, self.batch_size, self.rounds, self.noise_multiplier, self.clip_norm, self.delta, self.budget)

    def most_times(self, rounds: int) -> int:
        """Noised sums in which an example of any client may be after so many rounds."""
        return most_times(self.asked[:rounds])

    def epsilon(self, rounds: int) -> float:
        """After so many rounds, for the client that was charged most."""
        return epsilon_of(self.most_times(rounds) / self.noise_multiplier**2, self.delta)

    @property
    def affordable(self) -> int:
        """Rounds within the budget, of those that are planned."""
        budget = self.budget
        if budget is None:
            return self.rounds
        return next((done for done in range(self.rounds) if self.epsilon(done + 1) > budget), self.rounds)

    def noise_to_signal(self, numbers: int) -> float:
        """Expected norm of a step's noise over the largest norm that its clipped sum can have: z sqrt(d) / B."""
        return self.noise_multiplier * math.sqrt(numbers) / self.batch_size


def most_times(rounds: Sequence[PlannedRound]) -> int:
    """The largest number of noised sums that an example of one client may be in."""
    found: dict[ClientId, int] = {}
    for one in rounds:
        for client in one.clients:
            found[client] = found.get(client, 0) + one.times
    return max(found.values(), default=0)


def example_plan(options: PrivacyOptions, asked: Sequence[PlannedRound], units: int, batch_size: int) -> ExamplePlan:
    """The plan of a run.

    Args:
        units: training examples of the client that holds most; 0: not known here.
        batch_size: of a step.

    Raises:
        UserError: a delta or an epsilon that promises nothing, or cannot be kept.
    """
    by_person, what = options.unit_column is not None, "training examples" if options.unit_column is None else "people"
    if units and options.delta > 1 / units:
        raise UserError(
            f"privacy.delta: got {options.delta:g} where a client has {units} {what}, expected at most {1 / units:g}, 1 over their "
            "number: with more, publishing one of them would be allowed; lower it"
        )
    z, times = options.noise_multiplier, most_times(asked)
    if z is None:
        assert options.epsilon is not None
        z = noise_for(options.epsilon, options.delta, max(1, times))
        if z > MOST_NOISE:
            raise UserError(
                f"privacy.epsilon: got {options.epsilon:g}, which needs noise of {z:.3g} times the clip norm in each step, expected at "
                f"most {MOST_NOISE:g}; raise it, or plan fewer rounds"
            )
    size = min(batch_size, units or batch_size)
    plan = ExamplePlan(asked, z, options.clip_norm, options.delta, options.budget, options.evaluation, size, units, by_person)
    if plan.budget is not None and asked and (once := plan.epsilon(1)) > plan.budget:
        raise UserError(
            f"privacy.max_epsilon: got {plan.budget:g}, expected at least {once:.4g}, which the first round costs with "
            f"`privacy.noise_multiplier` = {z:g}; raise one of them"
        )
    return plan

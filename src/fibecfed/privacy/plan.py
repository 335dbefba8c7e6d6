"""What a configuration promises, before anything is trained: who takes part how often, how much noise there is, what it costs."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..core.errors import UserError
from .clip import MOST_CLIENTS
from .gaussian import MOST_NOISE, epsilon_of, noise_for, releases_within
from .options import PrivacyOptions
from .participation import most_rounds


@dataclass(frozen=True)
class PrivacyPlan:
    """The guarantee of a run.

    Attributes:
        clients: K, the units.
        size: m, clients of a round, by which a sum is divided.
        rounds: R that are planned.
        noise_multiplier: z.
        clip_norm: C.
        budget: epsilon that must not be passed; None: no limit.
        evaluation: "off", or "exact": outside of the guarantee.
    """

    clients: int
    size: int
    rounds: int
    noise_multiplier: float
    clip_norm: float
    delta: float
    budget: float | None
    evaluation: str

    unit = "client"

    @property
    def most_rounds(self) -> int:
        """Planned rounds of the client that takes part most often."""
        return most_rounds(self.clients, self.size, self.rounds)

    def epsilon(self, rounds: int) -> float:
        """After so many rounds, for the client that took part most often."""
        return epsilon_of(most_rounds(self.clients, self.size, rounds) / self.noise_multiplier**2, self.delta)

    @property
    def affordable(self) -> int:
        """Rounds within the budget, of those that are planned."""
        if self.budget is None:
            return self.rounds
        each = releases_within(self.budget, self.delta, self.noise_multiplier, self.most_rounds)
        return min(self.rounds, each * self.clients // self.size)

    def noise_to_signal(self, numbers: int) -> float:
        """Expected norm of a mean's noise over the largest norm that the mean of clipped updates can have: z sqrt(d) / m."""
        return self.noise_multiplier * math.sqrt(numbers) / self.size


def plan_of(options: PrivacyOptions, clients: int, size: int, rounds: int) -> PrivacyPlan | None:
    """The plan of a run; None where nothing is protected.

    Args:
        clients: K.
        size: m, clients of a round.
        rounds: of all stages.

    Raises:
        UserError: a delta or an epsilon that promises nothing, or cannot be kept.
    """
    if options.unit == "none":
        return None
    size = min(size, clients)
    if options.delta > 1 / clients:
        raise UserError(
            f"privacy.delta: got {options.delta:g} for {clients} clients, expected at most {1 / clients:g}, 1 over their number: with "
            "more, publishing all data of one of them would be allowed; lower it"
        )
    if clients > MOST_CLIENTS:
        raise UserError(f'privacy.unit: got "client" for {clients} clients, expected at most {MOST_CLIENTS}; use fewer')
    z = options.noise_multiplier
    if z is None:
        assert options.epsilon is not None
        z = noise_for(options.epsilon, options.delta, most_rounds(clients, size, rounds))
        if z > MOST_NOISE:
            raise UserError(
                f"privacy.epsilon: got {options.epsilon:g}, which needs noise of {z:.3g} times the clip norm in each round, expected at "
                f"most {MOST_NOISE:g}; raise it, or plan fewer rounds"
            )
    plan = PrivacyPlan(clients, size, rounds, z, options.clip_norm, options.delta, options.budget, options.evaluation)
    once = epsilon_of(1 / z**2, options.delta)
    if plan.budget is not None and once > plan.budget:
        raise UserError(
            f"privacy.max_epsilon: got {plan.budget:g}, expected at least {once:.4g}, which one round costs with "
            f"`privacy.noise_multiplier` = {z:g}; raise one of them"
        )
    return plan

"""What a configuration promises, before anything is trained: who takes part how often, how much noise there is, what it costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..core.errors import UserError
from .adaptive import REACH, AdaptiveClip, lane_weight, least_clients, noise_on_updates
from .clip import MOST_CLIENTS
from .gaussian import MOST_NOISE, epsilon_of, noise_for, releases_within
from .ledger import Terms
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
        evaluation: "off", "noised", or "exact": outside of the guarantee.
        scored: after how many rounds each noised evaluation comes, ascending; each is charged to every client.
        quantile: of the updates' norms, that C follows from `clip_norm` on; None: C is that in every round.
    """

    clients: int
    size: int
    rounds: int
    noise_multiplier: float
    clip_norm: float
    delta: float
    budget: float | None
    evaluation: str
    scored: tuple[int, ...] = ()
    quantile: float | None = None

    unit = "client"

    @property
    def most_rounds(self) -> int:
        """Planned rounds of the client that takes part most often."""
        return most_rounds(self.clients, self.size, self.rounds)

    @property
    def terms(self) -> Terms:
        """What the ledger is kept for."""
        return Terms(self.unit, self.clients, self.size, self.rounds, self.noise_multiplier, self.clip_norm, self.delta, self.budget)

    def epsilon(self, rounds: int) -> float:
        """After so many rounds, for the client that was charged most."""
        return epsilon_of(self._course(rounds, ends=False)[1] / self.noise_multiplier**2, self.delta)

    @property
    def affordable(self) -> int:
        """Rounds within the budget, of those that are planned."""
        return self._course(self.rounds, ends=True)[0]

    def _course(self, rounds: int, ends: bool) -> tuple[int, int]:
        """How many of the first rounds there are, and how often the client is charged then that is charged most.

        Args:
            ends: whether the run ends before a round that the budget does not pay for. Evaluations are left out in any case.
        """
        most = self.most_rounds + len(self.scored)
        if self.budget is not None:
            most = releases_within(self.budget, self.delta, self.noise_multiplier, most)
        charged = [0] * self.clients
        for number in range(rounds):
            chosen = [place % self.clients for place in range(number * self.size, (number + 1) * self.size)]
            if ends and max(charged[place] for place in chosen) == most:
                return number, max(charged)
            for place in chosen:
                charged[place] += 1
            if number + 1 in self.scored and max(charged) < most:
                charged = [times + 1 for times in charged]
        return rounds, max(charged)

    def noise_to_signal(self, numbers: int) -> float:
        """Expected norm of a mean's noise over the largest norm that the mean of clipped updates can have: z sqrt(d) / m."""
        return self.noise_on_updates * math.sqrt(numbers) / self.size

    @property
    def noise_on_updates(self) -> float:
        """Standard deviation of the noise on a number of the sum of updates, over C: z, or more where a count shares its release."""
        return self.noise_multiplier if self.quantile is None else noise_on_updates(self.noise_multiplier, self.size)

    @property
    def sent_norm(self) -> float:
        """The L2 norm to which a client clips its update before it sends it."""
        return self.clip_norm if self.quantile is None else self.clip_norm * REACH

    def adaptive(self, norm: float | None = None) -> AdaptiveClip | None:
        """C of a run as it begins, or with the norm that a checkpoint holds; None where it does not change."""
        if self.quantile is None:
            return None
        begun = self.clip_norm
        return AdaptiveClip(begun if norm is None else norm, begun, self.quantile, lane_weight(self.noise_multiplier, self.size))


def plan_of(options: PrivacyOptions, clients: int, size: int, rounds: int, evaluated: Sequence[int] = ()) -> PrivacyPlan | None:
    """The plan of a run; None where nothing is protected.

    Args:
        clients: K.
        size: m, clients of a round.
        rounds: of all stages.
        evaluated: after how many rounds evaluations come, ascending.

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
    z, scored = options.noise_multiplier, tuple(evaluated) if options.evaluation == "noised" else ()
    if z is None:
        assert options.epsilon is not None
        z = noise_for(options.epsilon, options.delta, most_rounds(clients, size, rounds) + len(scored))
        if z > MOST_NOISE:
            raise UserError(
                f"privacy.epsilon: got {options.epsilon:g}, which needs noise of {z:.3g} times the clip norm in each round, expected at "
                f"most {MOST_NOISE:g}; raise it, or plan fewer rounds"
            )
    quantile = options.clip_quantile if options.clipping == "adaptive" else None
    if quantile is not None and size < (least := least_clients(z)):
        raise UserError(
            f'privacy.clipping: got "adaptive" with {size} clients per round and noise of {z:.4g}, expected at least {least}, where the '
            'count of clipped updates means something; raise `federation.clients_per_round`, or set "fixed"'
        )
    plan = PrivacyPlan(clients, size, rounds, z, options.clip_norm, options.delta, options.budget, options.evaluation, scored, quantile)
    once = epsilon_of(1 / z**2, options.delta)
    if plan.budget is not None and once > plan.budget:
        raise UserError(
            f"privacy.max_epsilon: got {plan.budget:g}, expected at least {once:.4g}, which one round costs with "
            f"`privacy.noise_multiplier` = {z:g}; raise one of them"
        )
    return plan

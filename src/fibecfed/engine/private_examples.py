"""Rounds under differential privacy for examples: what a client trains by, what leaves it, and the server's account of all of them.

Each client charges its own ledger before anything leaves it, and rejects what would pass its budget, whatever the server asks. The server
keeps an account of what each round may cost those it asks, by the plan alone, and ends the run before one of them would have to reject it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..core.errors import UserError
from ..core.method import ClientView, Method, Phase, Update, Work
from ..core.types import ClientId, Round
from ..core.wire import encode
from ..local.private import Units
from ..privacy.examples import ClientLedgers, OneTraining
from ..privacy.ledger import BudgetSpent, Ledger, Release
from .runtime import NoAnswer, NotFinite, TrainedClient, not_finite, packed

SPENT = "its budget for privacy is spent"


@dataclass(frozen=True)
class ExampleTraining:
    """How clients train; see `runtime.PrivateExamples`.

    Attributes:
        ledgers: of the clients.
    """

    ledgers: ClientLedgers

    def train(self, phase: Phase[Any, Any, Any, Any], view: ClientView[Any], broadcast: Any, now: Round, again: bool) -> TrainedClient:
        """As `PrivateExamples.train`."""
        ledger = self.ledgers.open(view.id, len(Units.of(view.data.train)), again)
        try:
            training = OneTraining(ledger, view.id, now)
            update = self._update(phase, view, broadcast, now, training)
            message, state = encode(update.message, after=packed(_told(update))), encode(update.state)
            training.charge(message + state)
        except BudgetSpent:
            raise NoAnswer(f"client {view.id}, {now.phase} round {now.index}: {SPENT}") from None
        return TrainedClient(message, state, {})

    def _update(
        self, phase: Phase[Any, Any, Any, Any], view: ClientView[Any], broadcast: Any, now: Round, training: OneTraining
    ) -> Update[Any, Any]:
        """What the method makes of it; that a tensor is not finite follows from noised steps, and costs as much as they do."""
        update, problem = None, ""
        try:
            update = phase.client_update(replace(view, private=training), broadcast, now)
            problem = not_finite(update.message)
        except FloatingPointError as error:
            problem = str(error)
        if update is None or problem is not None:
            training.charge(str(problem).encode())
            raise NotFinite(f"client {view.id}, {now.phase} round {now.index}: {problem}")
        if training.steps == 0 and update.work.steps:
            raise RuntimeError(f"{phase.name}: a training went past its privacy; this is a bug of the method")
        return update


def _told(update: Update[Any, Any]) -> Work:
    """Steps and examples follow from the number of examples and the configuration; losses and seconds do not."""
    return Work(update.work.steps, update.work.examples)


@dataclass(frozen=True)
class ExampleRounds:
    """The server's account of a run: what each round may cost those that it asks.

    Attributes:
        asked: by number of the round, whom it asks, and in how many noised sums each of their examples may be.
        ledger: in the run's folder.
    """

    asked: Sequence[tuple[tuple[ClientId, ...], int]]
    ledger: Ledger

    def cohort(self, number: int) -> tuple[ClientId, ...]:
        """Who takes part in round `number` of the run."""
        return self.asked[number][0]

    def affords(self, number: int) -> bool:
        """Whether round `number` stays within the budget, or was charged already, as one that is computed again."""
        clients, times = self.asked[number]
        return self.ledger.charged(number) or self.ledger.affords(clients, self.ledger.terms.noise_multiplier, times)

    def charge(self, now: Round, server: bytes) -> None:
        """Write down what a round may cost, before anybody is asked.

        Asked again from the same state, clients answer what they answered, and nothing more is charged. From another one, as where other
        clients were lost in rounds that are computed again after an interruption, they answer otherwise, and are charged again.

        Args:
            server: its encoded state, from which follows what it sends.

        Raises:
            BudgetSpent: it would pass the budget.
        """
        clients, times = self.asked[now.number]
        terms = self.ledger.terms
        what = Release(
            round=now.number,
            phase=now.phase,
            numbers=0,
            z=terms.noise_multiplier,
            clip=terms.clip_norm,
            divisor=terms.per_round,
            sum=hashlib.sha256(server).digest(),
            charged=clients,
            times=times,
        )
        self.ledger.charge(what)


def why_not_by_example(method: Method[Any, Any]) -> str | None:
    """Why a method's clients cannot train under privacy for examples, as part of a sentence; None: they can."""
    for phase in method.phases:
        if phase.sums is None:
            return f'in its stage "{phase.name}" clients use their examples in a way that is not supported so far'
    return None


def reject_not_by_example(method: Method[Any, Any], kind: str) -> None:
    """A method whose clients would use their examples past the noise.

    Raises:
        UserError: naming the method and the stage.
    """
    if (why := why_not_by_example(method)) is not None:
        out = 'set `method.layers.rule` = "last", or ' if kind == "fibecfed" else ""
        raise UserError(
            f'privacy.unit: got "example", which the method {kind} cannot be run with: {why}; {out}choose another method, such as lora, or '
            "leave that part out (docs/privacy.md says how)"
        )

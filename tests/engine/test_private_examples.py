"""The server's account of a run that is private for examples."""

from __future__ import annotations

from pathlib import Path

import pytest

from fibecfed.core.types import Round
from fibecfed.engine.private_examples import ExampleRounds
from fibecfed.privacy.gaussian import epsilon_of
from fibecfed.privacy.ledger import BudgetSpent, Ledger, Terms


def test_clients_that_are_asked_again_from_another_state_are_charged_again(tmp_path: Path) -> None:
    """As they were by themselves: they answer otherwise. From the same state they answer what they answered."""
    budget = epsilon_of(5 / 2.0**2, 1e-3)
    rounds = ExampleRounds([(("a", "b"), 2)], Ledger(tmp_path, Terms("example", 10, 4, 1, 2.0, 1.0, 1e-3, budget)))
    now = Round("tune", 0, 1, 0)
    for server, times in ((b"before", 2), (b"before", 2), (b"another", 4)):
        rounds.charge(now, server)
        assert rounds.ledger.epsilon == epsilon_of(times / 2.0**2, 1e-3)
    with pytest.raises(BudgetSpent):
        rounds.charge(now, b"a third")
    rounds.charge(now, b"before")
    assert rounds.ledger.epsilon == epsilon_of(4 / 2.0**2, 1e-3)

"""Check a federated method of your own against the laws that every method of this package satisfies.

    from fibecfed.testing import check_method
    check_method(MyMethod(...))          # raises BrokenLaw, which names the law

The method runs on synthetic data and a tiny BERT with LoRA: seconds, no download. `laws.LAWS` lists the laws, for a test of each.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from ..core.errors import UserError
from ..data.federated import FederatedData
from ..data.planted import planted_federation
from ..methods.contract import lacks
from ..models.tiny import tiny_task
from .federation import KEY
from .laws import LAWS, Subject


class BrokenLaw(UserError, AssertionError):
    """A method violates the contract; the message begins with the law's name."""


def check_method(
    method: Any,
    *,
    task: Callable[[], Any] | None = None,
    data: FederatedData | None = None,
    exempt: Collection[str] = (),
) -> None:
    """Check a method of at least three rounds against every law.

    Args:
        method: an object that follows `fibecfed.core.method.Method`.
        task: creates the task that it trains; by default two layers of a tiny BERT with LoRA, over two classes.
        data: of at least three clients; by default synthetic data of four.
        exempt: names of laws that need not hold.

    Raises:
        BrokenLaw: the first violated law, with details.
    """
    if missing := lacks(method):
        raise BrokenLaw(f"follows_the_contract: {missing}")
    held = data or planted_federation(4, 6, KEY.fold("data"), partition="dirichlet", length=12)
    everybody = len(held.clients)
    asks_everybody = any(phase.cohort != "sampled" and phase.cohort >= everybody for phase in method.phases)
    subject = Subject(lambda: method, task or (lambda: tiny_task("bert", layers=2)), held, asks_everybody)
    for law in LAWS:
        if law.__name__ in exempt:
            continue
        try:
            law(subject)
        except Exception as error:
            said = " ".join(str(error).split()) or (law.__doc__ or "").strip()
            kind = "" if isinstance(error, AssertionError) else f"{type(error).__name__}: "
            raise BrokenLaw(f"{law.__name__}: {kind}{said}") from error


__all__ = ["BrokenLaw", "check_method"]

"""How many clients a sum must be of, and how many may be lost before it: what `privacy.secure_aggregation` asks of a cohort."""

from __future__ import annotations

from dataclasses import dataclass

from ..core.errors import UserError
from .options import PrivacyOptions


@dataclass(frozen=True)
class Cohorts:
    """The cohorts of a run.

    Attributes:
        size: n, clients of a cohort.
        colluders: c, of them that may work with the server.
        dropouts: d, that a round may lose.
        helped: whether a helper takes the masks off, in place of the clients.
    """

    size: int
    colluders: int
    dropouts: int
    helped: bool = False

    @property
    def least(self) -> int:
        """t = n - d: clients that a sum is of at least, and without a helper whose help unmasks it. At least t - c of them are honest."""
        return self.size - self.dropouts


def cohorts_of(options: PrivacyOptions, size: int) -> Cohorts | None:
    """What the configuration asks for; None without secure aggregation.

    Args:
        size: clients of a round.

    Raises:
        UserError: naming the key to change.
    """
    if not options.summed:
        return None
    if size < options.min_clients:
        raise UserError(
            f"federation.clients_per_round: got {size}, expected at least {options.min_clients} (privacy.min_clients), of which a sum "
            "hides each one; raise it, or lower the other"
        )
    if options.min_clients < options.colluders + 2:
        raise UserError(
            f"privacy.min_clients: got {options.min_clients}, expected at least {options.colluders + 2}, two more than privacy.colluders: "
            "the sum of fewer would tell them the one that is left; raise it"
        )
    if size - options.dropouts < options.min_clients:
        raise UserError(
            f"privacy.dropouts: got {options.dropouts} for {size} clients per round, expected at most {size - options.min_clients}, so "
            f"that {options.min_clients} (privacy.min_clients) are left; lower it, or raise federation.clients_per_round"
        )
    if not options.helped and 2 * (size - options.dropouts) <= size + options.colluders:
        raise UserError(
            f"privacy.dropouts: got {options.dropouts} and privacy.colluders = {options.colluders} for {size} clients per round, expected "
            f"2 dropouts + colluders below {size}: else a lying server could name two sets of survivors; lower one of them, or raise "
            "federation.clients_per_round"
        )
    return Cohorts(size, options.colluders, options.dropouts, options.helped)

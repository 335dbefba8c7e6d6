"""Which method for which federation, from what is known of the data: each sentence rests on a row of a table in docs/results.md."""

from __future__ import annotations

from collections.abc import Iterable

from .baselines import Parts

ONE_SIDED = 0.08
"""By how much a client's most frequent class must be more frequent on it than the most frequent one is in all. Of the federations that were
measured, those that are spread evenly lie far below and the others above."""
_PAGE = "See docs/choosing.md."


def one_sidedness(partition: Iterable[Parts]) -> tuple[float, float] | None:
    """Fraction of the training examples that are of their own client's most frequent class, and of the most frequent class of all.

    None where it is not known how examples are spread.
    """
    counts = [part["train"] for part in partition if any(part["train"])]
    if not counts or len(counts[0]) < 2:
        return None
    total = sum(map(sum, counts))
    return sum(map(max, counts)) / total, max(map(sum, zip(*counts, strict=True))) / total


def advice(partition: Iterable[Parts]) -> str | None:
    """What to try, in one or two sentences; None where nothing is known of the clients.

    Args:
        partition: of each client, part -> number of examples of each class.
    """
    parts = list(partition)
    if len(parts) == 1:
        return f'There is one client, so that nothing is federated: method.kind = "local" trains it alone. {_PAGE}'
    found = one_sidedness(parts)
    if found is None:
        return None
    own, overall = found
    spread = f"(the most frequent one of each has {100 * own:.0f} % of its examples, that of all {100 * overall:.0f} %)"
    few = (
        " With two clients the agreement rule knows one pair a round, so that chance has more of a say in it; compare the last two rounds."
        if len(parts) == 2
        else ""
    )
    if own - overall >= ONE_SIDED:
        return (
            f'Clients differ in their classes {spread}: where they do, FibecFed as by default and method.kind = "lora" with '
            f'method.finetune = "validated" scored highest, and a model without a last local training less.{few} {_PAGE}'
        )
    return (
        f'Clients are alike in their classes {spread}: where they are, method.kind = "lora" and FibecFed as by default, with fewer bytes, '
        f'scored within two points of each other, and "lora" at a searched rate with training.schedule = "linear" highest.{few} {_PAGE}'
    )

"""What may be said of a private run, in one exact sentence, and what that sentence leaves out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from .cohorts import Cohorts
from .fixed import Adding, FixedPoint
from .plan import PrivacyPlan

OUTSIDE = (
    "It does not cover: the server itself, which sees clipped updates (and answers to evaluations); what stays on the clients or is of one "
    "client alone (the folders checkpoints and clients); that clients take part, and when, and which of them did not answer; whether and "
    "when a run was stopped; what the settings were chosen by; what `fibecfed audit` measures afterwards (audit.json)."
)
EXACT = (
    "It does not cover the evaluation either, which was exact: scores, confusion matrices, and counts and checksums of examples in "
    "records.jsonl, summary.json and the model cards follow from the clients' data without noise."
)
NOISED = (
    "Scores are noised means over clients of their shares of right and wrong answers, each client counting the same; the sentence above "
    "covers them."
)
OUTSIDE_OF_EXAMPLES = (
    "It does not cover: the client itself, and whoever reads its folder; that clients take part, when, and how many examples each holds; "
    "how long its work takes; validation and test examples; other examples of the same person, unless the sentence is "
    "about people; what the settings were chosen by; what `fibecfed audit` measures afterwards (audit.json)."
)
EXACT_FOR_EXAMPLES = (
    "The evaluation was exact: scores, confusion matrices, and counts and checksums of examples in records.jsonl, summary.json and the "
    "model cards follow from the clients' data without noise."
)
OF_A_CLIENT = "This adapter is the client's own: it follows from the client's data without noise, and the sentence above is not about it."


def section(privacy: Mapping[str, Any] | None, client: str | None) -> str:
    """The section of a model card, with a heading; empty where nothing was protected.

    Args:
        privacy: as in summary.json.
        client: whose adapter it is; None: the global one.
    """
    if privacy is None:
        return ""
    if privacy["unit"] == "example":
        told = [privacy["statement"], OUTSIDE_OF_EXAMPLES, *([EXACT_FOR_EXAMPLES] if privacy["evaluation"] == "exact" else [])]
    else:
        outside = OUTSIDE.replace("which sees clipped", "which sees sums of clipped") if privacy.get("secure_aggregation") else OUTSIDE
        told = [privacy["statement"], outside, *_OF_SCORES.get(privacy["evaluation"], ()), *([OF_A_CLIENT] if client else [])]
    return "\n## What is protected\n\n" + "\n\n".join(told) + "\n"


_OF_SCORES = {"exact": (EXACT,), "noised": (NOISED,)}


def plan_lines(plan: PrivacyPlan, numbers: int) -> list[tuple[str, str]]:
    """What `fibecfed check` says of a plan, as rows of two cells.

    Args:
        numbers: of the largest mean.
    """
    ends, ratio = plan.affordable, plan.noise_to_signal(numbers)
    noised = f"{sum(after <= ends for after in plan.scored)} noised evaluations, which every client is charged for"
    outside = {"off": "nothing is scored", "noised": noised, "exact": "scores are exact, outside of the guarantee"}[plan.evaluation]
    verdict = too_much_noise(ratio, plan.noise_on_updates, plan.size, numbers, "the model will not learn", "clients per round")
    return [
        ("takes part", f"{plan.most_rounds} of {plan.rounds} rounds at most, {plan.size} of {plan.clients} clients at a time, in turn"),
        ("released", f"{ends} noised means of {numbers:,} numbers; {outside}"),
        ("epsilon", f"{rounded_up(plan.epsilon(ends))} for every client after {ends} rounds{within(plan.budget, ends, plan.rounds)}"),
        *([] if plan.quantile is None else [("clip norm", _adaptive(plan))]),
        ("noise to signal", f"at least {ratio:.3g} to 1{verdict}"),
    ]


def _adaptive(plan: PrivacyPlan) -> str:
    more = plan.noise_on_updates / plan.noise_multiplier - 1
    return f"from {plan.clip_norm:g} towards the norm that {plan.quantile:.0%} of updates are within; its count costs {more:.1%} more noise"


_HELPED = "taken off by the helper, which sees who answered and no update; it and the server together could see every update"
_IN_PAIRS = "taken off by the clients, in four exchanges more"


def cohort_lines(cohorts: Cohorts, adding: Adding | None) -> list[tuple[str, str]]:
    """What `fibecfed check` says of secure aggregation, as rows of two cells."""
    n, c, d = cohorts.size, cohorts.colluders, cohorts.dropouts
    rows = [
        (
            "a sum is of",
            f"at least {cohorts.least} of {n} clients; with {c} who work with the server, it hides at least {cohorts.least - c}",
        ),
        ("lost clients", f"{d} per round at most; with more the round fails"),
        ("masks", _HELPED if cohorts.helped else _IN_PAIRS),
    ]
    if isinstance(adding, FixedPoint):
        each = f"whole steps of {adding.range / adding.most:.3g} for a client with {adding.max_samples} examples"
        rows.append(("numbers", f"changes of at most {adding.range:g}, in {each}"))
    return rows


LEARNS_NOTHING = 10.0
"""Noise over the largest possible signal in one round from which on `check` says that nothing can be learned. Rounds add up: over R of them
the signal grows by up to R, noise by the root of R."""


def within(budget: float | None, ends: int, rounds: int) -> str:
    """How a budget is kept, as the end of a sentence; empty without one.

    Args:
        ends: after how many of the planned rounds it is spent.
    """
    if budget is None:
        return ""
    return f"; budget {budget:g} " + (f"holds for {rounds}" if ends == rounds else f"ends the run after {ends} of {rounds} rounds")


def too_much_noise(ratio: float, noise_multiplier: float, size: int, numbers: int, verdict: str, of: str) -> str:
    """What noise that hides every signal means, as the end of a sentence; empty where it does not.

    Args:
        ratio: of noise to signal.
        size: of `of`, that a sum is about.
        numbers: that it has.
    """
    if ratio <= LEARNS_NOTHING:
        return ""
    enough, fewer = math.ceil(noise_multiplier * math.sqrt(numbers)), int((size / noise_multiplier) ** 2)
    return f": {verdict}. 1 to 1 needs {enough:,} {of}, or {fewer:,} numbers; see docs/privacy.md"


def rounded_up(epsilon: float) -> str:
    """An epsilon with three decimals, never below itself."""
    return f"{math.ceil(epsilon * 1000 - 1e-9) / 1000:.3f}"


def statement(plan: PrivacyPlan, epsilon: float, releases: int) -> str:
    """The guarantee of a run.

    Args:
        epsilon: of the client that was charged most.
        releases: noised means that were made.
    """
    clip = f"clip norm {plan.clip_norm:g}"
    if plan.quantile is not None:
        clip = f"a clip norm that begins at {plan.clip_norm:g} and follows a count of clipped updates, noised within the same releases"
    and_model = ", the global model and the scores" if plan.scored else " and the global model"
    return (
        f"For each of the {plan.clients} clients, what the server sent to all clients{and_model}, which follow from {releases} "
        f"noised means, are together ({rounded_up(epsilon)}, {plan.delta:g})-differentially private with respect to all data that the "
        "client holds: a run in which the client's updates are replaced by zero differs by no more than that to everybody but the server "
        "and the client itself, also to all other clients together (Gaussian mechanism with noise multiplier "
        f"{plan.noise_multiplier:.6g} and {clip}, cyclic participation, no amplification by sampling)."
    )

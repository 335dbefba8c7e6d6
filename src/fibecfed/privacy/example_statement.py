"""What may be said of a run that is private for examples, in one exact sentence, and what `fibecfed check` says of its plan."""

from __future__ import annotations

from .example_plan import ExamplePlan
from .statement import rounded_up, too_much_noise, within


def example_statement(plan: ExamplePlan, epsilon: float) -> str:
    """The guarantee of a run.

    Args:
        epsilon: of the client that was charged most.
    """
    one, of, number = "training example", "example", "examples"
    if plan.by_person:
        one, of, number = "person in the training data", "person", "people and examples"
    whose = "person's examples" if plan.by_person else "example's loss"
    return (
        f"For each {one} of each client, everything that left the client, the global model and the client's own adapter are together "
        f"({rounded_up(epsilon)}, {plan.delta:g})-differentially private with respect to that {of}: a run in which the gradients of the "
        f"{whose} are zero whenever they are used differs by no more than that to everybody but the client itself, the server and all "
        "other clients together included (DP-SGD with noise multiplier "
        f"{plan.noise_multiplier:.6g} and clip norm {plan.clip_norm:g}, each {of} in at most one noised sum of every epoch and of every "
        f"scoring, no amplification by sampling; the number of {number} of each client is taken as known)."
    )


def example_title(plan: ExamplePlan) -> str:
    """The heading of what `fibecfed check` says."""
    whom = "all training examples of a person" if plan.by_person else "each training example"
    return (
        f"Privacy: {whom}, from everybody but its client; noise {plan.noise_multiplier:.4g}, clip {plan.clip_norm:g}, delta {plan.delta:g}"
    )


def example_plan_lines(plan: ExamplePlan, numbers: int) -> list[tuple[str, str]]:
    """What `fibecfed check` says of a plan, as rows of two cells.

    Args:
        numbers: that a step has, one for each trained number.
    """
    ends, ratio = plan.affordable, plan.noise_to_signal(numbers)
    outside = "nothing is scored" if plan.evaluation == "off" else "scores are exact: validation and test examples are not protected"
    verdict = too_much_noise(ratio, plan.noise_multiplier, plan.batch_size, numbers, "the model will hardly learn", "examples in a step")
    return [
        ("used", f"each example in {plan.most_times(ends)} noised steps at most, in {ends} rounds"),
        ("released", f"steps of {numbers:,} numbers, by {plan.batch_size} examples each, and what follows from them; {outside}"),
        ("epsilon", f"{rounded_up(plan.epsilon(ends))} for every example after {ends} rounds{within(plan.budget, ends, plan.rounds)}"),
        ("noise to signal", f"at least {ratio:.3g} to 1 in a step{verdict}"),
    ]

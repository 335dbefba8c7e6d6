"""Rules for what is chosen by the clients' validation parts."""

from __future__ import annotations

from collections.abc import Iterator

from .kinds import Tables


def by_validation(config: Tables) -> Iterator[str]:
    """Contradictions of which round is saved and when training ends, as sentences."""
    evaluation, federation = config.evaluation, config.federation
    if evaluation.save == "best" and federation.partition == "machines":
        yield (
            'evaluation.save: got "best" with `federation.partition` = "machines", where each client keeps only the '
            'newest states of its own model; set it to "last"'
        )
    if config.data.validation_fraction == 0:
        nothing = "with `data.validation_fraction` = 0, so there is nothing to"
        above = "set `data.validation_fraction` above 0, or"
        if evaluation.save == "best":
            yield f'evaluation.save: got "best" {nothing} choose the best round by; {above} `evaluation.save` = "last"'
        if evaluation.patience is not None:
            yield f"evaluation.patience: got {evaluation.patience} {nothing} tell by when training is to end; {above} remove the key"
    if evaluation.patience is not None and evaluation.generate:
        yield (
            f"evaluation.patience: got {evaluation.patience} with `evaluation.generate` = {evaluation.generate}, but answers are generated "
            "after the last of all rounds; remove one of them"
        )
    if evaluation.patience is not None and federation.schedule == "buffered":
        yield (
            f'evaluation.patience: got {evaluation.patience} with `federation.schedule` = "buffered", where answers are under way when '
            "training would end; remove it, or choose another schedule"
        )

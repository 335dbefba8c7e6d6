"""What goes with differential privacy and what does not. Each rule gives a sentence that begins with the key to change."""

from __future__ import annotations

from collections.abc import Iterator

from ..engine.options import FederationOptions, LinkOptions, SpeedOptions
from ..privacy.options import PrivacyOptions
from .kinds import Tables
from .secure import KEYS, secure

_NOT_USED = {
    "quorum": "since a round must not depend on who can answer",
    "round_attempts": "since a round must not depend on who can answer",
    "exclude_after": "since who is excluded would tell of data",
    "max_samples": "since no client tells how much it holds",
    "aggregation": "since noise is fitted to the mean",
    "max_update_norm": "since updates are clipped instead (`privacy.clip_norm`)",
}
_NOT_USED_BY_EXAMPLE = {
    "round_attempts": "since clients take part in turn, each in as many rounds as was planned",
    "exclude_after": "since clients take part in turn, each in as many rounds as was planned",
}


def private(config: Tables) -> Iterator[str]:
    """Contradictions of the table [privacy] with itself and with the other tables, as sentences."""
    options, federation = config.privacy, config.federation
    yield from secure(config)
    yield from _of_single_clients(options)
    if options.unit == "none":
        free = {"secure_aggregation", *KEYS, *(("evaluation",) if options.summed else ())}
        for name in PrivacyOptions.model_fields:
            if name not in free and (got := getattr(options, name)) != PrivacyOptions.model_fields[name].default:
                yield (
                    f'privacy.{name}: got {got!r} with `privacy.unit` = "none", so that nothing is protected; set `privacy.unit` = '
                    '"client" or "example", or remove it'
                )
        return
    if (options.noise_multiplier is None) == (options.epsilon is None):
        got = "neither" if options.epsilon is None else f"{options.noise_multiplier} and `privacy.epsilon` = {options.epsilon}"
        yield f"privacy.noise_multiplier: got {got}, expected it or `privacy.epsilon`, from which it is computed; set one of them"
    if options.epsilon is not None and options.max_epsilon is not None and options.max_epsilon < options.epsilon:
        yield (
            f"privacy.max_epsilon: got {options.max_epsilon}, expected at least `privacy.epsilon` = {options.epsilon}, for which the noise "
            "is computed; raise it, or lower the other"
        )
    if options.clipping == "fixed" and options.clip_quantile != PrivacyOptions.model_fields["clip_quantile"].default:
        yield f'privacy.clip_quantile: got {options.clip_quantile} with `privacy.clipping` = "fixed", which follows no quantile; remove it'
    unit = f'with `privacy.unit` = "{options.unit}"'
    if options.unit_column is not None and options.unit != "example":
        yield f"privacy.unit_column: got {options.unit_column!r} {unit}, which protects all that a client holds; remove it"
    not_used = _NOT_USED if options.unit == "client" else _NOT_USED_BY_EXAMPLE
    for name, why in not_used.items():
        if (got := getattr(federation, name)) != FederationOptions.model_fields[name].default:
            yield f"federation.{name}: got {got} {unit}, {why}; remove it"
    if options.unit == "example":
        yield from _by_example(config)
    elif federation.on_failure != "drop":
        yield (
            f'federation.on_failure: got "{federation.on_failure}" {unit}, which counts a client without an answer as one that changed '
            'nothing; set "drop"'
        )
    if federation.schedule != "synchronous":
        yield f'federation.schedule: got "{federation.schedule}" {unit}, which asks the clients whose turn it is; set "synchronous"'
    for name, default in (("speeds", SpeedOptions()), ("links", LinkOptions())):
        if getattr(federation, name) != default:
            yield f"federation.{name}: got a model of time {unit}, whose records have none: it tells how much each client holds; remove it"
    if (got := config.resources.cohort_batch) > 1:
        yield f"resources.cohort_batch: got {got} {unit}: joined passes let a client's texts round others' updates; remove it"
    if config.evaluation.save == "best":
        yield f'evaluation.save: got "best" {unit}, which would choose a model by validation examples; set "last"'
    if (patience := config.evaluation.patience) is not None:
        yield f"evaluation.patience: got {patience} {unit}, which would tell by validation examples when training ends; remove it"
    if config.tracking_by_client:
        yield f"tracking_by_client: got true {unit}, which lets nothing be known of single clients; remove it"
    if config.method.model_dump()["kind"] == "custom":
        yield f'method.kind: got "custom" {unit}, for which no object of your own can be vouched; choose a method of the package'


def _of_single_clients(options: PrivacyOptions) -> Iterator[str]:
    """What the server makes of the answers of single clients, and noises itself."""
    for name, value, instead in (("evaluation", "noised", "off"), ("clipping", "adaptive", "fixed")):
        if getattr(options, name) != value or (options.unit == "none" and not options.summed):
            continue
        if options.unit != "client":
            yield f'privacy.{name}: got "{value}" with `privacy.unit` = "{options.unit}", which is for "client" alone; set "{instead}"'
        elif options.summed:
            yield (
                f'privacy.{name}: got "{value}" with `privacy.secure_aggregation`, where the server sees no single client\'s answer; set '
                f'"{instead}"'
            )


def _by_example(config: Tables) -> Iterator[str]:
    """What goes on among a client's examples while it trains: under `privacy.unit` = "example" none may move another one's step."""
    unit, training = 'with `privacy.unit` = "example"', config.training
    if config.data.kind == "instruction" and training.objective != "example":
        yield (
            f'training.objective: got "{training.objective}" {unit}: how many labelled tokens an answer has would move the weights of all '
            'others; set "example"'
        )
    across = config.federation.partition == "machines"
    if (column := config.privacy.unit_column) is not None and config.data.path is None and not across:
        yield f"privacy.unit_column: got {column!r} without `data.path`, the file that has such a column; set it, or remove this"
    if config.privacy.summed:
        yield f'privacy.secure_aggregation: got "{config.privacy.secure_aggregation}" {unit}, which it does not go with so far; set "none"'
    if training.class_weights is not None:
        yield f"training.class_weights: got {training.class_weights!r} {unit}, where all examples weigh the same; remove it"
    if training.dropout:
        yield (
            f"training.dropout: got {training.dropout} {unit}: its draws are known to everybody and depend on how long the other texts "
            "of a batch are; set it to 0"
        )

"""Which keys of a method that selects examples, layers and neurons go together, and which have no effect."""

from __future__ import annotations

import math
from collections.abc import Iterator, Set

from ..engine.options import FederationOptions
from ..local.options import CurriculumOptions, LayerOptions, NeuronOptions
from ..methods.options import FibecFedOptions
from .kinds import Tables


def selection(config: Tables) -> Iterator[str]:
    """Contradictions of `method.layers`, `method.neurons` and `method.curriculum`, as sentences."""
    layers, neurons, curriculum = (getattr(config.method, part, None) for part in ("layers", "neurons", "curriculum"))
    if isinstance(layers, LayerOptions):
        yield from _layers(layers, config.federation, getattr(config.method, "head", "shared"))
    if isinstance(neurons, NeuronOptions):
        yield from _neurons(neurons)
    if isinstance(curriculum, CurriculumOptions):
        yield from _curriculum(curriculum)


_UNMEASURED = ("last", "first", "random", "all", "agreement")
"""Rules for layers that measure no importance."""

_OF_ORDER = ("order", "beta", "alpha", "order_within_round", "rescore_every")
_OF_INFORMATION = ("normalise", "labels", "fisher_over", "scoring")
_OF_SAMPLE = ("importance_examples", "importance_clients")
_OF_IMPORTANCE = ("importance", "noise_scale", "norm")
_OF_CURVATURE = ("spectrum_clients", "mu")


def without_effect(config: Tables, given: Set[str]) -> Iterator[str]:
    """What somebody set who expects the published method: a sentence for each key whose other keys leave it nothing to do.

    Args:
        given: dotted keys that were set.
    """
    method = config.method
    if not isinstance(method, FibecFedOptions):
        return
    measures = method.neurons.rule not in ("all", "random")
    unused: dict[str, list[str]] = {}
    if method.curriculum.pace == "none":
        names = [f"method.curriculum.{name}" for name in (*_OF_ORDER, *(() if measures else _OF_INFORMATION))]
        unused["method.curriculum.pace"] = [*names, *(() if measures else ("method.score_after",))]
    measured = method.layers.rule not in _UNMEASURED
    sampled = measured or method.depth is not None  # by whom the blocks that are trained are measured
    without = (*(() if measured else _OF_IMPORTANCE), *(() if sampled else _OF_SAMPLE))
    curved = () if method.layers.rule in ("layer_gap", "plateau") else _OF_CURVATURE
    unused["method.layers.rule"] = [f"method.layers.{name}" for name in (*without, *curved)]
    if not measures:
        unused["method.neurons.rule"] = ["method.neurons.momentum"]
    for cause, names in unused.items():
        if found := [name for name in names if name in given and _value(method, name) != _value(FibecFedOptions(), name)]:
            instead = "linear" if cause.endswith("pace") else "layer_gap" if found[0].rpartition(".")[2] in _OF_CURVATURE else "share"
            now, paper = f'{cause} = "{_value(method, cause)}"', method.preset == "paper" or instead == "layer_gap"
            yield f'{", ".join(found)}: no effect with {now}; set that to "{instead}"' + ("" if paper else ', or method.preset = "paper"')


def _value(method: FibecFedOptions, name: str) -> object:
    found: object = method
    for part in name.split(".")[1:]:
        found = getattr(found, part)
    return found


def _layers(layers: LayerOptions, federation: FederationOptions, head: str) -> Iterator[str]:
    value, rule = layers.value, layers.rule
    if layers.importance_round == "first" and rule in _UNMEASURED:
        yield (
            f'method.layers.importance_round: got "first", but `method.layers.rule` = "{rule}" measures no importance; set that to '
            '"share", or remove it'
        )
    if layers.importance_round == "separate" and layers.first_layers != "all":
        yield (
            f'method.layers.first_layers: got "{layers.first_layers}" with `method.layers.importance_round` = "separate", where the global '
            'layers are known before tuning; set `importance_round` = "first", or remove it'
        )
    for name in ("after", "momentum"):
        if rule != "agreement" and getattr(layers, name) != LayerOptions.model_fields[name].default:
            yield f'method.layers.{name}: got {getattr(layers, name)} with `method.layers.rule` = "{rule}"; set "agreement", or remove it'
    yield from _means(layers, head)
    if layers.after is not None and layers.after >= federation.rounds:
        yield f"method.layers.after: got {layers.after}, expected less than `federation.rounds` = {federation.rounds}; lower it"
    if value is None:
        return
    if rule in ("last", "first", "random") and value < 1:
        return
    if rule in ("count", "last", "first", "random") and value != int(value if math.isfinite(value) else 0):
        yield f'method.layers.value: got {value}, expected an integer number of layers with `method.layers.rule` = "{rule}"; round it'
    elif rule in ("share", "coverage") and value > 1:
        yield f'method.layers.value: got {value}, expected a fraction, at most 1, with `method.layers.rule` = "{rule}"; or set "count"'
    elif rule in ("layer_gap", "plateau", "all", "agreement"):
        yield (
            f'method.layers.value: got {value}, but `method.layers.rule` = "{rule}" finds the number itself; set that to "share" or '
            '"count", or remove it'
        )


def _means(layers: LayerOptions, head: str) -> Iterator[str]:
    every, rule = layers.mean_every, layers.rule
    if every and rule == "all" and head == "shared":
        yield f'method.layers.mean_every: got {every} with `method.layers.rule` = "all", where nothing stays with a client; remove it'
    if layers.pull and (every == 0 or (every is None and rule != "agreement")):
        yield (
            f"method.layers.pull: got {layers.pull} without `method.layers.mean_every`, so that there is no mean to pull to; set that to "
            "a number of rounds, such as 5, or remove this"
        )


def _neurons(neurons: NeuronOptions) -> Iterator[str]:
    if neurons.rule == "all" and neurons.value is not None:
        yield f'method.neurons.value: got {neurons.value}, but `method.neurons.rule` = "all" needs none; set that to "share", or remove it'
    if neurons.rule in ("all", "random") and neurons.every != 1:
        yield (
            f'method.neurons.every: got {neurons.every}, but `method.neurons.rule` = "{neurons.rule}" measures nothing; set that to '
            '"share", or remove it'
        )


def _curriculum(options: CurriculumOptions) -> Iterator[str]:
    if options.scoring != "training":
        return
    if options.order in ("nll", "ira"):
        yield (
            f'method.curriculum.order: got "{options.order}" with `method.curriculum.scoring` = "training", whose backward passes give '
            'Fisher information; set `scoring` = "pass", or remove it'
        )
    if options.normalise == "length-bins":
        yield (
            'method.curriculum.normalise: got "length-bins" with `method.curriculum.scoring` = "training", where examples are scored a few '
            'at a time and have no ranks; set `scoring` = "pass", or "token"'
        )
    if options.labels == "model":
        yield (
            'method.curriculum.labels: got "model" with `method.curriculum.scoring` = "training", whose backward passes are those of the '
            'true labels; set `scoring` = "pass", or remove it'
        )
    if options.rescore_every:
        yield (
            f'method.curriculum.rescore_every: got {options.rescore_every} with `method.curriculum.scoring` = "training", which scores in '
            'every local training; set `scoring` = "pass", or remove it'
        )

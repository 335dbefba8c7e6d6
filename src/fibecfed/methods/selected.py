"""What a method chose during a run, in words for somebody who never read its paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..core.units import count

_LISTED = 8
"""A list that is longer is shortened; summary.json has all of it."""

_WORDS = {
    "ratio": "fraction of layers shared",
    "score_after": "examples ranked by difficulty",
    "shared_tensors": "tensors shared with all clients",
    "residual_ratio": "size of the residual relative to LoRA",
    "sparse_values": "values trained in the first stage",
    "sparse_rounds": "rounds of the first stage",
}
_UNSAID = ("num_layers", "agreement_between", "agreement_within")
"""Said with another value, or for summary.json alone."""
_LAYERS = {"importance": "importance of each layer", "scores": "score of each layer"}


def in_words(selected: Mapping[str, Any]) -> dict[str, str]:
    """Name -> value, for a table.

    Args:
        selected: as a method's `summary` gives it.

    >>> in_words({"global_layers": [3, 4, 5], "num_layers": 6, "importance": None, "score_after": 3})
    {'layers shared with all clients': '3, 4, 5 of 6 (the first is 0)', 'examples ranked by difficulty': 'after 3 rounds of training'}
    """
    found: dict[str, str] = {}
    for name, value in selected.items():
        if value is None or name in _UNSAID:
            continue
        if name == "global_layers":
            of = f" of {selected['num_layers']}" if "num_layers" in selected else ""
            found["layers shared with all clients"] = f"{_numbers(value)}{of} (the first is 0)" if value else f"none{of}"
        elif name == "score_after":
            found[_WORDS[name]] = f"after {count(value, 'round')} of training"
        elif name == "left_after_round":
            left = [f"{'the head' if layer == 'head' else f'layer {layer}'} after round {number}" for layer, number in value.items()]
            found["kept by each client"] = ", ".join(left[:_LISTED]) + (", ..." if len(left) > _LISTED else "") or "nothing"
        elif name in _LAYERS:
            found[_LAYERS[name]] = _of_layers(value)
        elif name == "ranks":
            found["LoRA rank"] = _ranks(value)
        else:
            found[_WORDS.get(name, name.replace("_", " "))] = _short(value)
    return found


def in_short(preset: Mapping[str, Any]) -> str:
    """A preset in one line.

    Args:
        preset: as `presets.in_force` gives it.

    >>> in_short({"name": "best", "values": {"method.head": "agreement"}, "beside": {"method.curriculum.pace": "linear"}})
    'best: head agreement; set beside it: curriculum.pace linear'
    """

    def listed(values: Mapping[str, Any]) -> str:
        return ", ".join(f"{name.removeprefix('method.')} {_short(value)}" for name, value in values.items())

    return f"{preset['name']}: {listed(preset['values'])}" + (f"; set beside it: {listed(preset['beside'])}" if preset["beside"] else "")


def _numbers(values: Sequence[int]) -> str:
    """All of a few; else runs of neighbours as "3 to 7"."""
    if len(values) <= _LISTED:
        return ", ".join(map(str, values))
    runs: list[list[int]] = []
    for value in sorted(values):
        if runs and value == runs[-1][1] + 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    return ", ".join(str(first) if first == last else f"{first} to {last}" for first, last in runs)


def _of_layers(values: Sequence[float]) -> str:
    if len(values) <= _LISTED:
        return ", ".join(f"{value:.3g}" for value in values)
    low, high = (of(range(len(values)), key=values.__getitem__) for of in (min, max))
    return f"from {values[low]:.3g} (layer {low}) to {values[high]:.3g} (layer {high})"


def _ranks(ranks: Mapping[str, int]) -> str:
    if len(ranks) <= _LISTED:
        return ", ".join(f"{client} {rank}" for client, rank in ranks.items())
    return f"{min(ranks.values())} to {max(ranks.values())} over {len(ranks)} clients"


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        value = [f"{name} {_short(inner)}" for name, inner in value.items()]
    if isinstance(value, list | tuple):
        more = f" and {len(value) - _LISTED} more" if len(value) > _LISTED else ""
        return ", ".join(map(_short, value[:_LISTED])) + more
    return f"{value:.4g}" if isinstance(value, float) else str(value)

"""What of the table [model] goes together with itself and with the method, as sentences that begin with the key to change."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

from ..local.options import LayerOptions
from ..methods.options import MethodOptions
from ..models.options import ModelOptions
from .kinds import Tables


def adapting(config: Tables) -> Iterator[str]:
    """Contradictions between which layers LoRA adapts, how, and the method."""
    model, method = config.model, config.method
    modules = model.target_modules
    if isinstance(modules, tuple) and (not modules or len(set(modules)) < len(modules)):
        yield f"model.target_modules: got {list(modules)}, expected at least one name, each once; leave it out for query and value"
    blocks = model.layers_to_transform
    if blocks is not None and (not blocks or len(set(blocks)) < len(blocks) or min(blocks) < 0):
        yield f"model.layers_to_transform: got {list(blocks)}, expected numbers of blocks from 0, each once; leave it out for all"
    yield from _pattern(model, "rank_pattern")
    yield from _pattern(model, "alpha_pattern")
    yield from _one_rank(model, method)
    yield from _frozen_weights(config)
    if model.gradient_checkpointing and config.resources.cohort_batch > 1:
        yield (
            f"model.gradient_checkpointing: got true with `resources.cohort_batch` = {config.resources.cohort_batch}, whose joined passes "
            "keep more; set one of them back"
        )
    if blocks is not None:
        yield from _some_blocks(method)


def _pattern(model: ModelOptions, key: str) -> Iterator[str]:
    entries = getattr(model, key)
    names = [entry.rpartition("=")[0].strip() for entry in entries]
    for entry, name in zip(entries, names, strict=True):
        text = entry.rpartition("=")[2].strip()
        try:
            number, _ = float(text), re.compile(name)
        except (ValueError, re.error):
            number = math.nan
        integer = key == "rank_pattern"
        if not name or not 0 < number <= (4096 if integer else math.inf) or (integer and number != int(number)):
            expected = "an integer from 1 to 4096" if integer else "a number above 0"
            yield f"model.{key}: got {entry!r}, expected a name or regular expression with {expected}, such as {{ q_proj = 16 }}; fix it"
    if len(set(names)) < len(names):
        yield f"model.{key}: got {names}, expected each name once; remove one"


def _one_rank(model: ModelOptions, method: MethodOptions) -> Iterator[str]:
    exact = getattr(method, "aggregation", None) == "exact"
    for key in ("rank_pattern", "alpha_pattern"):
        if not getattr(model, key):
            continue
        if method.kind in ("fedex-lora", "slora"):
            yield f'model.{key}: got values with `method.kind` = "{method.kind}", whose LoRA is scaled alike in all layers; remove it'
        elif exact:
            yield f'model.{key}: got values with `method.aggregation` = "exact", for LoRA that is scaled alike in all layers; remove it'
    if model.rank_pattern and method.kind == "hetlora":
        yield 'model.rank_pattern: got values with `method.kind` = "hetlora", where each client has one rank in all layers; remove it'


def _frozen_weights(config: Tables) -> Iterator[str]:
    model, method = config.model, config.method
    if model.dtype == "bfloat16" and config.training.precision == "float32":
        yield 'model.dtype: got "bfloat16" with `training.precision` = "float32"; set that to "bf16" or "auto", or this to "float32"'
    if model.quantization is None:
        return
    got = f'model.quantization: got "{model.quantization}"'
    if method.kind in ("fedex-lora", "slora"):
        yield f'{got} with `method.kind` = "{method.kind}", which adds to the frozen weights; remove it, or choose another method'
    elif getattr(method, "aggregation", None) == "exact":
        yield f'{got} with `method.aggregation` = "exact", which adds to the frozen weights; remove it, or choose another aggregation'
    if getattr(method, "adapter", None) is not None:
        yield f'{got} with `method.kind` = "{method.kind}", whose adapter is not LoRA; remove it, or choose a method on LoRA'


def _some_blocks(method: MethodOptions) -> Iterator[str]:
    key, layers = "model.layers_to_transform", getattr(method, "layers", None)
    if method.kind == "fedalt":
        yield f'{key}: got blocks with `method.kind` = "fedalt", which keeps the upper ones of all blocks on the clients; remove it'
    if getattr(method, "depth", None) is not None:
        yield f"{key}: got blocks with `method.depth`, which chooses blocks as well; remove one of them"
    if isinstance(layers, LayerOptions) and layers.rule in ("layer_gap", "plateau"):
        yield f'{key}: got blocks with `method.layers.rule` = "{layers.rule}", which needs LoRA in every block; choose another rule'

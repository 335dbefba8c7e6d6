"""LoRA beside a pre-trained model's linear maps, by PEFT."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils.other import get_pattern_key
from torch import nn
from transformers import PreTrainedModel

from ..core.errors import UserError
from ..core.rng import Key
from .heads import UnsupportedModel, head_modules, last_linear
from .label_words import is_masked
from .network import find_blocks
from .options import ModelOptions, numbers_of
from .targets import target_modules
from .turns import seeded


def add_lora(
    model: PreTrainedModel, options: ModelOptions, *, drawn: Sequence[str] = (), dropout: float, key: Key, draws_head: bool | None = None
) -> PeftModel:
    """`model` with LoRA beside the weights named in `options`, and its head trainable as `options.head` says.

    Args:
        draws_head: whether there is a new head to train; None: unless `options.head` is "label-words".
        drawn: as `load_model` returns them; whatever of them is no part of the head is treated as if it were.

    Raises:
        UserError: target modules that the model does not have, or none known for its family.
        UnsupportedModel: a classifier whose head is not known.
    """
    if not (options.head != "label-words" if draws_head is None else draws_head):  # PEFT knows no task of masked language models
        head, last, task_type = [], "", None if is_masked(model.config) else "CAUSAL_LM"
    else:
        head, last, task_type = head_modules(model), last_linear(model), "SEQ_CLS"
    # an answer's loss takes the gradient at the output layer's input alone, and what serves adapters takes none of that layer
    without = [path for path, module in model.named_modules() if module is model.get_output_embeddings()] if draws_head is False else []
    without = head or (without if options.head != "label-words" else [])
    saved = [*head, *(path for path in drawn if path.split(".")[0] not in head)]
    blocks = find_blocks(model, getattr(model.config, "num_hidden_layers", 0))
    ranks = {name: int(number) for name, number in numbers_of(options.rank_pattern).items()}
    alphas = numbers_of(options.alpha_pattern)
    config = LoraConfig(
        task_type=task_type, r=options.rank, lora_alpha=options.alpha, lora_dropout=dropout,  # pyright: ignore[reportArgumentType]
        use_rslora=options.rslora, rank_pattern=ranks, alpha_pattern=alphas,
        target_modules=target_modules(model, model.config.model_type, options.target_modules, without, blocks and blocks[0]),
        layers_to_transform=None if options.layers_to_transform is None else list(options.layers_to_transform),
        modules_to_save=saved or None, fan_in_fan_out=any(type(module).__name__ == "Conv1D" for module in model.modules()),
    )  # fmt: skip
    with seeded(key), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of patterns that match nothing, which are rejected below
        adapted = get_peft_model(model, config)
    paths = [path.removeprefix("base_model.model.") for path, module in adapted.named_modules() if hasattr(module, "lora_A")]
    _reject_unmatched(ranks, alphas, paths)
    _reject_other_blocks(options.layers_to_transform, blocks and blocks[0], paths)
    outer, _, inner = last.partition(".")
    kept = f".{outer}.modules_to_save.default." + (f"{inner}." if inner else "")
    for path, module in adapted.named_modules():
        for name, parameter in module.named_parameters(f"{path}", recurse=False):
            # a norm in the head stays as it is: per-example gradients are those of linear maps
            frozen = not isinstance(module, nn.Linear) or (options.head == "last" and kept not in name)
            if ".modules_to_save." in name and frozen:
                parameter.requires_grad_(False)
    return adapted  # pyright: ignore[reportReturnType]


def _reject_unmatched(ranks: Mapping[str, float], alphas: Mapping[str, float], paths: Sequence[str]) -> None:
    """Reject a pattern that matches no adapted map, or of which others match all before it does.

    Raises:
        UserError: naming it and the maps.
    """
    for key, patterns in (("rank_pattern", ranks), ("alpha_pattern", alphas)):
        used = {get_pattern_key(list(patterns), path) for path in paths}
        if unused := [name for name in patterns if name not in used]:
            ends = sorted({path.rpartition(".")[2] for path in paths})
            raise UserError(
                f"model.{key}: got {unused[0]!r}, which is the first to match none of the layers that LoRA adapts, expected a name or "
                f"pattern for some of them ({', '.join(ends)}); fix it, or put it before those that match more"
            )


def _reject_other_blocks(wanted: Sequence[int] | None, blocks: str | None, paths: Sequence[str]) -> None:
    """Reject blocks without a map to adapt, and maps outside the blocks, which PEFT tells apart by their paths.

    Raises:
        UserError: blocks without a map.
        UnsupportedModel: maps were adapted elsewhere.
    """
    if wanted is None:
        return
    inside = [path.removeprefix(f"{blocks}.").partition(".")[0] for path in paths]
    if none := sorted(set(wanted) - {int(number) for number in inside if number.isdigit()}):
        raise UserError(f"model.layers_to_transform: got {none[0]}, a block in which LoRA has no layer to adapt; remove it")
    if not {*inside} <= {str(number) for number in wanted}:
        raise UnsupportedModel("PEFT does not tell its blocks apart, so that LoRA cannot be put on some of them")

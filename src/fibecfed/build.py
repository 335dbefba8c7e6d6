"""The composition root: a configuration becomes data, task and method. The only file that knows all parts."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch

from .adapters.options import positions_used
from .config import Config
from .core.errors import UserError
from .core.method import Method
from .core.rng import Key
from .data.federated import FederatedData, federate
from .data.options import DEFAULT_MAX_LENGTH, DEFAULT_MAX_LENGTH_PAIRS
from .data.prompt import Prompt, make_prompt, template_and_words
from .data.sources import load as load_data
from .data.tasks import TASKS
from .local.options import LayerOptions
from .methods.catalogue import AttemptOptions, Setting, make
from .models.backbones import (
    PretrainedConfig,
    PreTrainedTokenizerBase,
    Source,
    build_task,
    fills_masks,
    find,
    load_config,
    load_tokenizer,
    num_positions,
)
from .models.kept import KeptWeights
from .models.label_words import LabelWords
from .models.transformer_task import TransformerTask
from .source_prompts import SourceWork, source_prompts, source_tasks


@dataclass(frozen=True)
class Inputs:
    """What a configuration names, read and cut, before any weights are loaded.

    Attributes:
        key: the root of all random streams of the run.
        prompt: what the texts were put into, with `model.head` = "label-words".
    """

    config: Config
    source: Source
    model_config: PretrainedConfig
    tokenizer: PreTrainedTokenizerBase
    data: FederatedData
    key: Key
    prompt: Prompt | None = None


@dataclass(frozen=True)
class Prepared:
    """Everything a run is made of.

    Attributes:
        sources: what the source prompts of ATTEMPT cost, apart from the federation.
    """

    inputs: Inputs
    task: TransformerTask
    method: Method[Any, Any]
    sources: tuple[SourceWork, ...] = ()


def read_inputs(config: Config) -> Inputs:
    """Find the model, read and partition the data.

    Raises:
        UserError: whatever the user can mend about model, data or their combination.
    """
    # An environment variable would be read too late by the tokenizer's threads, and a fork after them warns
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    key = Key(config.seed)
    if isinstance(config.method, AttemptOptions):
        source_tasks(config.method, config.data.task)
    source = find(config.model)
    model_config = load_config(source)
    tokenizer = load_tokenizer(source)
    options = config.federation
    dataset = load_data(config.data, key.fold("source"))
    prompt = None
    if config.model.head == "label-words":
        masked = fills_masks(source, model_config)
        prompt = make_prompt(tokenizer, *template_and_words(config.data, dataset.label_names), masked=masked)
    data = federate(
        dataset,
        tokenizer,
        config.data,
        clients=options.clients,
        partition=options.partition,
        alpha=options.alpha,
        size_alpha=options.size_alpha,
        shards_per_client=options.shards_per_client,
        key=key.fold("data"),
        prompt=prompt,
    )
    _fits(config, model_config, data)
    return Inputs(config, source, model_config, tokenizer, data, key, prompt)


def _fits(config: Config, model_config: PretrainedConfig, data: FederatedData) -> None:
    """Refuse what neither model nor data can be blamed for alone."""
    longest = num_positions(model_config)
    got = max(int(part.lengths.max()) for part in (data.train, data.validation, data.test) if len(part))
    taken = positions_used(getattr(config.method, "adapter", None))
    if longest and got + taken > longest:
        but = f" without the {taken} of the prompt" if taken else ""
        raise UserError(
            f"data.max_length: got a text of {got} tokens, expected at most {longest - taken}, the model's positions{but}; set it to that"
        )
    asked, present = config.federation.clients_per_round, len(data.clients)
    if asked > present:
        raise UserError(f"federation.clients_per_round: got {asked}, expected at most {present}, the clients that there are; lower it")
    layers, has = getattr(config.method, "layers", None), model_config.get_text_config().num_hidden_layers
    if isinstance(layers, LayerOptions) and layers.rule in ("count", "last", "first", "random") and (layers.value or 0) > has:
        raise UserError(f"method.layers.value: got {layers.value:g} layers, expected at most {has}, those of the model; lower it")


def prepare(config: Config, weights: KeptWeights | None = None, *, trial: bool = False) -> Prepared:
    """Load the model and put everything together; sets the number of threads.

    Args:
        weights: where the backbone's weights are looked for first, and kept for the next run of this process.
        trial: train and write nothing, though source prompts are then zero where the cache has none.

    Raises:
        UserError: as `read_inputs`, and for an adapter that does not fit the model.
    """
    torch.set_num_threads(config.resources.threads)
    inputs = read_inputs(config)
    pad, prompt = inputs.tokenizer.pad_token_id, inputs.prompt
    sources, works = None, ()
    if isinstance(config.method, AttemptOptions):
        hidden = inputs.model_config.get_text_config().hidden_size
        sources, works = source_prompts(config, inputs.source, inputs.tokenizer, hidden=hidden, trial=trial)
    task = build_task(
        inputs.source,
        config.model,
        config.training,
        num_classes=len(inputs.data.label_names),
        pad_token_id=pad,  # pyright: ignore[reportArgumentType]
        key=inputs.key.fold("model"),
        adapter=getattr(config.method, "adapter", None),
        words=None if prompt is None else LabelWords(prompt.token_ids, prompt.mask_id),
        weights=weights,
        sources=sources,
    )
    return Prepared(inputs, task, build_method(inputs), works)


def build_method(inputs: Inputs) -> Method[Any, Any]:
    """The method of a configuration."""
    config = inputs.config
    key = inputs.key.fold("method")
    setting = Setting(config.training, config.federation.rounds, len(inputs.data.clients), key, max_length(config))
    return make(config.method, setting)


def max_length(config: Config) -> int:
    """Tokens that an example is cut to."""
    pair = config.data.pair_column is not None or (config.data.task is not None and TASKS[config.data.task].pair)
    return config.data.max_length or (DEFAULT_MAX_LENGTH_PAIRS if pair else DEFAULT_MAX_LENGTH)

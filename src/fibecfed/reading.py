"""What a process reads of a federation's data: everybody's, one client's, or none, as texts with classes or prompts with answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from .config import Config
from .core.errors import UserError
from .core.rng import Key
from .core.types import ClientId
from .data.answers import Encoder
from .data.federated import FederatedData, absent, federate, federate_one, made_up, made_up_texts
from .data.instructions import AnswerDataset, encoder_of, made_up_answers
from .data.instructions import load as load_answers
from .data.options import DEFAULT_MAX_LENGTH, DEFAULT_MAX_LENGTH_ANSWERS, DEFAULT_MAX_LENGTH_PAIRS
from .data.prompt import Prompt
from .data.sources import TextDataset
from .data.sources import load as load_data
from .data.tasks import TASKS
from .models.base_models import find
from .models.tokenizers import PreTrainedTokenizerBase, stop_ids

PromptFor: TypeAlias = Callable[[Sequence[str] | None], Prompt | None]
ReadData: TypeAlias = Callable[[Config, PreTrainedTokenizerBase, Key, PromptFor], FederatedData]
"""What a process knows of the data: everybody's, one client's, or none; from the configuration, its tokenizer, the key of the run, and the
prompt for the names of the classes."""


def everyone(config: Config, tokenizer: PreTrainedTokenizerBase, key: Key, prompt_for: PromptFor) -> FederatedData:
    """The data of all clients, in one place: for the simulator.

    Raises:
        UserError: whatever the user can fix about them, or a configuration whose clients are machines of their own.
    """
    options = config.federation
    if options.partition == "machines":
        raise UserError(
            'federation.partition: got "machines", which is a federation across machines and is started with `flwr run` (docs/deploy.md); '
            "for a simulation on this machine set another partition and `data.path`"
        )
    dataset = _dataset(config, tokenizer, key)
    return federate(
        dataset,
        tokenizer,
        config.data,
        clients=options.clients,
        partition=options.partition,
        alpha=options.alpha,
        size_alpha=options.size_alpha,
        shards_per_client=options.shards_per_client,
        key=key.fold("data"),
        prompt=prompt_for(dataset.label_names),
    )


def _dataset(config: Config, tokenizer: PreTrainedTokenizerBase, key: Key, min_classes: int = 2) -> TextDataset | AnswerDataset:
    """What the table [data] names, as texts with classes or as tokens with answers."""
    if not is_instruction(config):
        return load_data(config.data, key.fold("source"), min_classes=min_classes, unit_column=config.privacy.unit_column)
    dataset = load_answers(config.data, _encoder(config, tokenizer), key.fold("source"))
    if config.evaluation.generate and dataset.train.plain:
        raise UserError(
            f"evaluation.generate: got {config.evaluation.generate} with plain text ({dataset.source}), which has no prompts to answer, "
            "expected 0; remove it"
        )
    return dataset


def _encoder(config: Config, tokenizer: PreTrainedTokenizerBase) -> Encoder:
    """How examples with answers become tokens."""
    stops, bare = stop_ids(find(config.model), tokenizer), getattr(getattr(config.method, "curriculum", None), "order", None) == "ira"
    weighs_tokens = config.training.objective == "token"
    return encoder_of(config.data, tokenizer, stops, max_length(config), weighs_tokens=weighs_tokens, bare=bare)


def is_instruction(config: Config) -> bool:
    """Whether examples have answers that are written, and no classes."""
    return config.data.kind == "instruction"


def only(client: ClientId) -> ReadData:
    """The data of the one client that this machine is."""

    def read(config: Config, tokenizer: PreTrainedTokenizerBase, key: Key, prompt_for: PromptFor) -> FederatedData:
        dataset = _dataset(config, tokenizer, key, min_classes=1)
        return federate_one(dataset, tokenizer, config.data, client, key.fold("data"), prompt_for(dataset.label_names))

    return read


def nobody(clients: Sequence[ClientId]) -> ReadData:
    """No data, only the clients' ids: for a server whose clients are machines of their own."""
    return lambda config, tokenizer, key, prompt_for: absent(clients, None if is_instruction(config) else config.data.labels or ())


def assumed(each: int) -> ReadData:
    """Clients that are machines of their own as they may be, for estimates: each with so many training examples, as long as may be."""

    def read(config: Config, tokenizer: PreTrainedTokenizerBase, key: Key, prompt_for: PromptFor) -> FederatedData:
        labels, options = config.data.labels or (), config.federation
        clients = options.client_names or [f"client-{number}" for number in range(1, options.clients + 1)]
        different = max(config.training.batch_size, len(labels))
        if is_instruction(config):
            dataset = made_up_answers(config.data, _encoder(config, tokenizer), different)
        else:
            dataset = made_up_texts(labels, config.data, different)
        return made_up(clients, dataset, tokenizer, config.data, each=each, prompt=prompt_for(dataset.label_names))

    return read


def max_length(config: Config) -> int:
    """Tokens that an example is cut to."""
    if is_instruction(config):
        return config.data.max_length or DEFAULT_MAX_LENGTH_ANSWERS
    return config.data.max_length or (DEFAULT_MAX_LENGTH_PAIRS if reads_pairs(config) else DEFAULT_MAX_LENGTH)


def reads_pairs(config: Config) -> bool:
    """Whether an example has two texts."""
    named = None if config.data.task is None else TASKS.get(config.data.task)
    return config.data.pair_column is not None or (named is not None and named.pair)

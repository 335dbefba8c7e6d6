"""The composition root: a configuration becomes data, task and method. The only file that knows all parts."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

from .adapters.options import positions_used
from .config import Config
from .core.errors import UserError
from .core.method import Method
from .core.metrics import METRICS, Metric, primary
from .core.process import environment
from .core.rng import Key
from .core.statistics import CONFUSION
from .core.task import Use
from .core.types import Params
from .data.federated import FederatedData
from .data.inspect import warnings
from .data.options import NO_TEMPLATE, template_text
from .data.prompt import Prompt, make_prompt, template_and_words
from .engine.schedules import reject_schedule
from .engine.worker_count import most_workers as _most_workers
from .fits import num_clients, reject_misfits
from .guarantee import adding_of, guarantee, sums_asked
from .methods import catalogue
from .models.activations import ActivationSize
from .models.adapted_model import AdaptedModel
from .models.answers import Answers, Writing
from .models.base_models import (
    PretrainedConfig,
    Source,
    build_task,
    fills_masks,
    find,
    load_config,
    num_positions,
    reject_unfit,
)
from .models.kept import KeptWeights
from .models.label_words import LabelWords
from .models.objectives import ClassHead, Objective
from .models.precision import on_first
from .models.quantised import reject_unpacked
from .models.together import reject_unjoined
from .models.tokenizers import PreTrainedTokenizerBase, load_tokenizer, reject_unknown, stop_ids
from .privacy.cohorts import Cohorts
from .privacy.example_plan import ExamplePlan
from .privacy.fixed import Adding
from .privacy.plan import PrivacyPlan
from .reading import ReadData, everyone, is_instruction, max_length


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
        beforehand: what the method needed before the federation.
        metric: the primary one.
        activation: what an example takes of `resources.activation_cache_mb`; None where there is no cache.
        privacy: the guarantee that is planned; None where nothing is protected.
        cohorts: what secure aggregation asks of them; None without it.
        adding: how clients' answers then become words that are summed.
    """

    inputs: Inputs
    task: AdaptedModel
    method: Method[Any, Any]
    beforehand: catalogue.Preparation = catalogue.NOTHING
    metric: Metric = METRICS["accuracy"]
    activation: ActivationSize | None = None
    privacy: PrivacyPlan | ExamplePlan | None = None
    cohorts: Cohorts | None = None
    adding: Adding | None = None

    def start(self) -> Params:
        """The trainable tensors that a run starts from, the same on every machine but for its rounding."""
        return self.task.init_params(self.inputs.key.fold("run", "init"))


_one_tokenizer_thread = environment("TOKENIZERS_PARALLELISM", "false", replace=False)
"""Tokenizers look at this variable each time; a fork after they had threads of their own warns."""

MakeMethod: TypeAlias = Callable[[catalogue.MethodContext], Method[Any, Any]]


@_one_tokenizer_thread
def read_inputs(config: Config, read_data: ReadData | None = None) -> Inputs:
    """Find the model, read and partition the data.

    Args:
        read_data: None: `everyone`.

    Raises:
        UserError: whatever the user can fix about model, data or their combination.
    """
    key = Key(config.seed)
    if (beforehand := catalogue.beforehand(config.method)) is not None:
        beforehand.reject(config)
    source = find(config.model)
    model_config = load_config(source)
    reject_unpacked(config.model.quantization, source.published, model_config)
    if is_instruction(config):
        reject_unfit(source, model_config)
    tokenizer = load_tokenizer(source, model_config)
    if is_instruction(config) and config.data.chat_template is not None:  # what is saved beside adapters is what was trained with
        joins = config.data.chat_template == NO_TEMPLATE
        tokenizer.chat_template = None if joins else template_text(config.data.chat_template)  # pyright: ignore[reportAttributeAccessIssue]

    def prompt_for(label_names: Sequence[str] | None) -> Prompt | None:
        if config.model.head != "label-words" or label_names is None:
            return None
        return make_prompt(tokenizer, *template_and_words(config.data, label_names), masked=fills_masks(source, model_config))

    data = (read_data or everyone)(config, tokenizer, key, prompt_for)
    reject_misfits(config, model_config, data)
    prompt = prompt_for(data.label_names)
    _known(tokenizer, model_config, data, prompt, source)
    return Inputs(config, source, model_config, tokenizer, data, key, prompt)


def data_warnings(inputs: Inputs) -> tuple[str, ...]:
    """What a user should know of the data before training on them, a sentence each (`data.inspect.warnings`): of all clients' data, of
    those of the one client that this machine is, or () on a server without data."""
    positions = num_positions(inputs.model_config)
    taken = positions_used(getattr(inputs.config.method, "adapter", None))
    longest = getattr(inputs.tokenizer, "model_max_length", None)
    limits = [*([positions - taken] if positions else []), *([longest] if longest and longest < 10**9 else [])]  # without one it is 10^30
    return warnings(inputs.data, min(limits, default=None))


def _known(
    tokenizer: PreTrainedTokenizerBase, model_config: PretrainedConfig, data: FederatedData, prompt: Prompt | None, source: Source
) -> None:
    """Reject tokens that the model has no embeddings for, in the texts or as words that stand for classes."""
    for part in (data.train, data.validation, data.test):
        if len(part):
            reject_unknown(part.table.ids, tokenizer, model_config, source.published)
    if prompt is not None:
        reject_unknown(torch.tensor(prompt.token_ids), tokenizer, model_config, source.published)


@_one_tokenizer_thread
def prepare(
    config: Config,
    weights: KeptWeights | None = None,
    read_data: ReadData | None = None,
    *,
    trial: bool = False,
    method: MakeMethod | None = None,
) -> Prepared:
    """Load the model and put everything together. The caller sets the number of threads (`core.process.threads`).

    Args:
        weights: where the base model's weights are looked for first, and kept for the next run of this process.
        read_data: None: `everyone`.
        trial: train and write nothing, though source prompts are then zero where the cache has none.
        method: makes the method of `method.kind` = "custom".

    Raises:
        UserError: as `read_inputs`, and for an adapter that does not fit the model.
    """
    inputs = read_inputs(config, read_data)
    pad = inputs.tokenizer.pad_token_id
    made_method = build_method(inputs, method)
    privacy = guarantee(config, made_method, inputs.data, num_clients(config, inputs.data), inputs.key)
    cohorts = sums_asked(config, made_method, num_clients(config, inputs.data))
    beforehand, made = catalogue.beforehand(config.method), catalogue.NOTHING
    if beforehand is not None:
        hidden = getattr(inputs.model_config.get_text_config(), "hidden_size", 0)  # a model without is rejected when its task is made
        made = beforehand.prepare(config, inputs.source, inputs.tokenizer, hidden=hidden, trial=trial)
    task = build_task(
        inputs.source,
        config.model,
        on_first(config.training, config.resources.devices),
        objective=_objective(inputs),
        pad_token_id=pad,  # pyright: ignore[reportArgumentType]
        key=inputs.key.fold("model"),
        adapter=getattr(config.method, "adapter", None),
        weights=weights,
        sources=made.tensors,
        uses={*getattr(made_method, "uses", ()), *_used(config)},
    )
    reject_unjoined(task.together().unjoined, config.resources.cohort_batch, config.method.model_dump()["kind"])
    _leaves_room(inputs, made_method)
    _workers(inputs, task)
    reject_schedule(made_method, config.federation, config.method.model_dump()["kind"])
    statistics = task.statistics
    metric = primary(config.evaluation.metric, statistics.zero, statistics.metric, inputs.data.label_names or ())
    if config.privacy.evaluation == "noised" and not metric.follows_from((CONFUSION,)):
        raise UserError(
            f'privacy.evaluation: got "noised" with the metric {metric.name}, expected one that follows from right and wrong classes; set '
            '`evaluation.metric` to another one, such as "accuracy", or this to "off"'
        )
    return Prepared(
        inputs, task, made_method, made, metric, _activation_cache(inputs, task), privacy, cohorts, adding_of(config, privacy, cohorts)
    )


def _used(config: Config) -> set[Use]:
    """What the run needs of a task, whatever its method does."""
    found: dict[Use, bool] = {"joined passes": config.resources.cohort_batch > 1, "per-example gradients": config.privacy.unit == "example"}
    return {use for use, needed in found.items() if needed}


def _workers(inputs: Inputs, task: AdaptedModel) -> int:
    """How many processes may compute clients of a run. Objects of a user's own may count or print: by itself that stays in one process.

    Raises:
        UserError: more were asked for than can be.
    """
    resources, kind = inputs.config.resources, inputs.config.method.model_dump()["kind"]
    return _most_workers(resources, task.device, len(inputs.data.clients), by_itself=kind != "custom" and resources.cohort_batch == 1)


def most_workers(prepared: Prepared) -> int:
    """How many processes may compute the clients of a run. Without a number in the configuration each must have room for a batch in its
    part of the activation cache."""
    inputs, most = prepared.inputs, _workers(prepared.inputs, prepared.task)
    if prepared.activation is not None and inputs.config.resources.workers is None:
        needed = _batch_bytes(inputs, prepared.activation)
        most = min(most, inputs.config.resources.activation_cache_mb * 2**20 // needed) if needed else most
    return max(1, most)


def _activation_cache(inputs: Inputs, task: AdaptedModel) -> ActivationSize | None:
    """Give the task its cache, if the configuration asks for one and the model allows it.

    Raises:
        UserError: it, or the part of it that a worker gets, could not hold a batch.
    """
    resources = inputs.config.resources
    megabytes, workers = resources.activation_cache_mb, resources.workers or len(resources.devices or "1")
    size = task.keep_activations(megabytes * 2**20) if megabytes else None
    if size is not None and (needed := _batch_bytes(inputs, size)) > megabytes * 2**20 // workers:
        each = f", {workers} times, for `resources.workers` = {workers}" if workers > 1 else ""
        raise UserError(
            f"resources.activation_cache_mb: got {megabytes}, expected at least {-(-needed * workers // 2**20)}, which a batch of "
            f"{min(len(inputs.data.train), inputs.config.training.batch_size)} texts of {int(inputs.data.train.lengths.max())} tokens "
            f"takes{each}; raise it, or set it to 0, with the same results"
        )
    return size


def _batch_bytes(inputs: Inputs, size: ActivationSize) -> int:
    """What the largest batch of training takes of the activation cache."""
    lengths = inputs.data.train.lengths
    return min(len(lengths), inputs.config.training.batch_size) * size.of(int(lengths.max())) if len(lengths) else 0


def _writing(inputs: Inputs) -> Writing | None:
    options = inputs.config.evaluation
    decode: Any = functools.partial(inputs.tokenizer.decode, skip_special_tokens=True)
    writing = Writing(decode, stop_ids(inputs.source, inputs.tokenizer), options.max_new_tokens, options.generate, options.exact_match)
    return writing if options.generate else None


def _objective(inputs: Inputs) -> Objective:
    if is_instruction(inputs.config):
        return Answers(_writing(inputs))
    if inputs.prompt is not None:
        return LabelWords(inputs.prompt.token_ids, inputs.prompt.mask_id)
    return ClassHead(len(inputs.data.classes(f'model.head = "{inputs.config.model.head}"')))


def build_method(inputs: Inputs, custom: MakeMethod | None = None) -> Method[Any, Any]:
    """The method of a configuration; `custom` makes the one whose kind is "custom"."""
    config = inputs.config
    key = inputs.key.fold("method")
    clients, federation = num_clients(config, inputs.data), config.federation
    asks_all = federation.cohort_size(clients) >= clients
    context = catalogue.MethodContext(config.training, federation.rounds, clients, key, max_length(config), asks_all)
    return catalogue.make(config.method, context, custom)


def _leaves_room(inputs: Inputs, method: Method[Any, Any]) -> None:
    """Reject a curriculum that cuts the texts away between the words of a template, which are never cut."""
    if inputs.prompt is None or (shortest := method.shortest()) is None:
        return
    cut, key = shortest
    template = int(inputs.data.train.added.max()) if len(inputs.data.train) else 0
    if cut <= template:
        raise UserError(
            f"{key}: got texts of {cut} tokens in the first rounds, of which the template takes {template}; expected more; raise {key}"
        )

"""Pre-trained models: by hub id, local folder, GGUF file, or shipped in a Python package. Weights as safetensors or GGUF only."""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars
from torch import Tensor
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from ..adapters.options import called
from ..core.errors import UserError
from ..core.files import expanded
from ..core.options import Options
from ..core.process import environment
from ..core.rng import Key
from ..core.task import Use
from ..core.terminal import one_line
from ..local.options import TrainingOptions
from .adapted_model import AdaptedModel
from .answer_task import AnswerTask
from .heads import UnsupportedModel, head_modules
from .kept import KeptWeights
from .label_words import head_is_missing, is_masked, language_head
from .lora import add_lora
from .objectives import ClassObjective, Objective
from .options import ModelOptions
from .own_adapters import add_adapter
from .packaged import PACKAGED
from .precision import choose_device, choose_precision, keep_in_float32, store_frozen_maps_in_bf16
from .probe import rejecting, try_out
from .quantised import quantise
from .transformer_task import TransformerTask
from .turns import seeded

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """Where a model is loaded from.

    Attributes:
        location: hub id or folder.
        gguf_file: file name inside it, or None for safetensors.
        published: what an adapter names as its base model.
        revision: commit or tag of a hub id.
    """

    location: str
    gguf_file: str | None
    published: str
    revision: str | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """The local weight files; empty for a hub id."""
        folder = Path(self.location)
        if not folder.is_dir():
            return ()
        return (folder / self.gguf_file,) if self.gguf_file else tuple(sorted(folder.glob("*.safetensors")))

    def keywords(self) -> dict[str, Any]:
        """Arguments of every `from_pretrained` call: never remote code."""
        keywords: dict[str, Any] = {"trust_remote_code": False}
        if self.gguf_file:
            keywords["gguf_file"] = self.gguf_file
        if self.revision:
            keywords["revision"] = self.revision
        return keywords


def find(options: ModelOptions) -> Source:
    """Where the model of a configuration lies.

    Raises:
        UserError: a packaged model whose package is not installed, a file that is not GGUF, a folder without safetensors.
    """
    if options.name in PACKAGED:
        return _packaged(options.name)
    path = expanded(options.name)
    if path.is_file():
        if path.suffix != ".gguf":
            raise UserError(f"model.name: got the file {path}, expected a folder, a hub id or a file ending in .gguf")
        return Source(str(path.parent), path.name, path.stem)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise UserError(f"model.name: the folder {path} has no config.json; expected a folder written by save_pretrained")
        if not any(path.glob("*.safetensors")):
            raise UserError(_NO_SAFETENSORS.format(path))
        return Source(str(path), None, path.resolve().name)
    if options.name.startswith((".", "/", "~")) or options.name.endswith(".gguf") or options.name.count("/") > 1:
        raise UserError(f"model.name: there is no file or folder {options.name}; give a hub id, an existing folder, a GGUF file, or one of "
                        f"{', '.join(PACKAGED)}")  # fmt: skip
    return Source(options.name, None, options.name, options.revision)


def model_folder(name: str) -> str:
    """The folder, or the hub id, to give to transformers' `from_pretrained` for what `model.name` calls `name`.

    Raises:
        UserError: as `find`.
    """
    return find(ModelOptions(name=name)).location


_NO_SAFETENSORS = (
    "model.name: {} has no weights as safetensors, and pickled weights are not loaded because they can run code. Convert them where you "
    "trust them: python -c \"from transformers import AutoModel; AutoModel.from_pretrained('SOURCE').save_pretrained('FOLDER')\", and copy "
    "the tokenizer's files into the same folder"
)


def _packaged(name: str) -> Source:
    row = PACKAGED[name]
    path = row.find()
    if path is None:
        raise UserError(f"model.name: the packaged model {name!r} is not installed; run: {row.install}")
    if path.suffix == ".gguf":
        return Source(str(path.parent), path.name, row.published)
    return Source(str(path), None, row.published)


def load_config(source: Source) -> PretrainedConfig:
    """The model's own configuration, without its weights."""
    with as_user_error(source):
        return AutoConfig.from_pretrained(source.location, **source.keywords())


COUNT_FROM_PADDING = (
    "roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "mpnet", "data2vec-text", "roberta-prelayernorm", "longformer", "luke",
    "layoutlmv3", "lilt", "markuplm", "xmod", "ibert", "esm",
)  # fmt: skip


def num_positions(config: PretrainedConfig) -> int | None:
    """How many tokens the model has positions for; None where its configuration names no number, or one that means no limit.

    RoBERTa and its like count positions from behind the padding index, and so have fewer than their table has rows.
    """
    rows = getattr(config.get_text_config(), "max_position_embeddings", None)
    if not isinstance(rows, int) or rows <= 0:
        return None
    if config.model_type not in COUNT_FROM_PADDING:
        return rows
    return rows - (1 if config.model_type == "mpnet" else config.pad_token_id or 0) - 1


def sliding_window(config: PretrainedConfig) -> int | None:
    """How many tokens back attention reaches in any of the layers; None where it reaches all."""
    text = config.get_text_config()
    return getattr(text, "sliding_window", None) if getattr(text, "use_sliding_window", True) else None


def num_layers(config: PretrainedConfig) -> int | None:
    """How many transformer blocks the model has; None where its configuration names no number."""
    return getattr(config.get_text_config(), "num_hidden_layers", None)


def fills_masks(source: Source, config: PretrainedConfig) -> bool:
    """Whether the language model of this family fills in masks; else it continues the text.

    Raises:
        UserError: the family has none.
    """
    try:
        return is_masked(config)
    except UnsupportedModel as error:
        raise UserError(f'model.name: {source.published} cannot be used with `model.head` = "label-words": {error}') from error


def load_model(
    source: Source,
    *,
    objective: Objective,
    pad_token_id: int,
    dropout: float,
    key: Key,
    weights: KeptWeights | None = None,
    dtype: str = "float32",
) -> tuple[PreTrainedModel, tuple[str, ...]]:
    """The pre-trained body with the head of the objective: a new one drawn from `key`, or the model's own.

    Args:
        dtype: of the frozen linear maps, and of embeddings that are not those of the output layer; all else is float32.
        weights: where it is looked for before its files, and kept for the next run of this process.

    Returns:
        The model, and the paths of all modules that the file has no weights for, so that they are drawn as well: the head, and in some
        published models the pooler before it.

    Raises:
        UserError: it cannot be had, is no classifier, has only pickled weights, or its file lacks weights of the body or of a head that is
            not drawn.
    """
    config, kind = load_config(source), objective.model_class
    # Else transformers asks a service on the web to convert a repository's pickles, and loads what that proposes to it
    with as_user_error(source), seeded(key), environment("DISABLE_SAFETENSORS_CONVERSION", "1"):
        if hasattr(objective, "num_classes"):
            config.num_labels = cast("ClassObjective", objective).num_classes
        config.pad_token_id = pad_token_id
        set_dropout(config, dropout)
        identity = (source, kind.__name__, dtype)
        kept = None if weights is None else weights.find(identity, source.files)
        common: dict[str, Any] = {"config": config, "dtype": getattr(torch, dtype), "output_loading_info": True}
        common["ignore_mismatched_sizes"] = True  # of a head for another number of classes
        if kept is not None:
            model, found = kept[0].from_pretrained(None, state_dict=kept[1], **common)
        else:
            extra = {} if source.gguf_file else {"use_safetensors": True}
            model, found = kind.from_pretrained(source.location, **common, **extra, **source.keywords())
    drawn = sorted({*found["missing_keys"], *(name for name, *_ in found["mismatched_keys"])})
    body = f"{model.base_model_prefix}."
    if not objective.draws_head and head_is_missing(drawn, body):
        raise UserError(
            f"model.name: {source.published} has no language-model head: its file lacks {drawn[0]}"
            + (f" and {len(drawn) - 1} more" if len(drawn) > 1 else "")
            + "; expected a model published with it, such as FacebookAI/roberta-base"
            + ('; or set "full"' if hasattr(objective, "num_classes") else "")
        )
    lost = drawn
    if objective.draws_head:
        lost = [name for name in drawn if name.startswith(body) and not name.startswith(f"{body}pooler.")]
    if lost:
        raise UserError(
            f"model.name: {source.location} has no weights that fit {len(lost)} tensors of a {type(model).__name__}, the first of them "
            f"{lost[0]}; expected a complete pre-trained model of the kind that its configuration names"
        )
    if drawn:
        logger.info("drawn at random, since %s has no weights for them: %s", one_line(source.published), one_line(", ".join(drawn)))
    if dtype != "float32":
        paths = {*(head_modules(model) if objective.draws_head else ()), *(name.rpartition(".")[0] for name in drawn)}
        keep_in_float32(model, [*map(model.get_submodule, sorted(paths)), *(() if objective.draws_head else language_head(model))])
    # a head in the file that did not fit is needed again by a run with as many classes as it has
    if weights is not None and kept is None and not found["mismatched_keys"]:
        weights.keep(identity, source.files, model, drawn)
    return model, tuple(dict.fromkeys(name.rpartition(".")[0] for name in drawn))


def reject_unfit(source: Source, config: PretrainedConfig) -> None:
    """Reject a model that does not write texts from left to right.

    Raises:
        UserError: it fills in masks, or its family has no language model.
    """
    try:
        masked = is_masked(config)
    except UnsupportedModel as error:
        raise UserError(f"model.name: {source.published} cannot be trained on answers: {error}; choose a causal language model") from error
    if masked:
        raise UserError(
            f"model.name: {source.published} is a {config.model_type} model, which fills in masks, expected a causal language model with "
            '`data.kind` = "instruction"; choose one, such as smollm2-135m'
        )


def set_dropout(config: PretrainedConfig, rate: float) -> None:
    """Set every dropout rate that transformers' configurations know."""
    rates = (
        "hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop",
        "attention_dropout", "hidden_dropout", "dropout", "seq_classif_dropout", "activation_dropout", "embedding_dropout", "mlp_dropout",
        "embed_dropout", "pooler_dropout", "cls_dropout",
    )  # fmt: skip
    for name in rates:
        if getattr(config, name, None) is not None:
            setattr(config, name, rate)


def build_task(
    source: Source,
    options: ModelOptions,
    training: TrainingOptions,
    *,
    objective: Objective,
    pad_token_id: int,
    key: Key,
    adapter: Options | None = None,
    sources: Tensor | None = None,
    weights: KeptWeights | None = None,
    uses: Collection[Use] = (),
) -> AdaptedModel:
    """The task of a configuration: base model, adapter and head, on its device, in its precision.

    Args:
        objective: what is predicted: `LabelWords` if and only if `options.head` is "label-words"; it with LoRA alone.
        adapter: one of `adapters.options`; None: LoRA as `options` say.
        sources: source prompts of a mixed prompt, (sources, tokens, hidden).
        weights: as for `load_model`.
        uses: what the method asks of the task beside losses and their gradients.

    Raises:
        UserError: a model that cannot be had, or that does not compute what is asked of it when it is tried out; an adapter that does
            not fit it; a device that is not there.
    """
    device = choose_device(training.device)
    precision = choose_precision(training.precision, device, options.dtype)
    logger.info("%s on %s in %s", one_line(source.published), device, precision)
    model, drawn = load_model(
        source,
        objective=objective,
        pad_token_id=pad_token_id,
        dropout=training.dropout,
        key=key.fold("head"),
        weights=None if options.quantization is not None else weights,  # they would stay beside the packed ones
        dtype=options.dtype,
    )
    family = model.config.model_type
    what, use = ("a test run", "") if adapter is None else (f"a test run with a {called(adapter)}", " with this method")
    with rejecting(source.published, family, what, use):
        if options.quantization is not None:
            quantise(model, options.quantization)
        if adapter is None:
            draws = objective.draws_head
            adapted = add_lora(model, options, drawn=drawn, dropout=training.dropout, key=key.fold("lora"), draws_head=draws)
        else:
            trained = None if not objective.draws_head else "last" if options.head == "last" else "full"
            add_adapter(model, adapter, head=trained, drawn=drawn, key=key.fold("adapter"), sources=sources)
            adapted = model
        kind = TransformerTask if hasattr(objective, "num_classes") else AnswerTask
        task = kind(adapted, precision=precision, device=device, dropout=training.dropout, objective=cast("ClassObjective", objective))
    if precision == "bf16":
        store_frozen_maps_in_bf16(adapted, but=() if objective.draws_head else language_head(model))
        if device.type == "cpu" and not options.gradient_checkpointing:  # it takes the memory that is to be saved
            task.use_plain_attention_for_gradients()
    task.recomputes_blocks = options.gradient_checkpointing
    try_out(task, source.published, family, pad=pad_token_id, uses=uses)
    return task


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def as_user_error(source: Source) -> Iterator[None]:
    """What transformers says when a model cannot be had, as one sentence; its own log is kept quiet meanwhile."""
    level, bars, hub_bars = (
        transformers_logging.get_verbosity(),
        transformers_logging.is_progress_bar_enabled(),
        not are_progress_bars_disabled(),
    )
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    except Exception as error:  # each parser of foreign files raises its own kind
        if isinstance(error, MemoryError | torch.OutOfMemoryError):
            raise
        text = str(error)
        if "safetensors" in text and "does not appear to have" in text:
            raise UserError(_NO_SAFETENSORS.format(source.location)) from None
        first = text.strip().splitlines()[0] if text.strip() else type(error).__name__
        raise UserError(f"model.name: {source.location} could not be loaded: {first}") from error
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()  # the hub's as well
            if not hub_bars:
                disable_progress_bars()

"""Adapters on disk: one client's or the global one, with the model card that says how it was made."""

from __future__ import annotations

import hashlib
import logging
import math
import platform
from collections import Counter
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from urllib.parse import quote

from safetensors import SafetensorError

from .adapters.options import called
from .build import Prepared, num_clients
from .chat_card import Chat, chat_card
from .config import Config, flat, keys, show
from .core.errors import RunFailed
from .core.metrics import Metric
from .core.task import DELTA
from .core.types import ClientId, Params
from .data.options import NO_TEMPLATE
from .data.tokenise import pair_separator
from .engine.baselines import Parts, own_majority
from .model_card import SavedAdapter, model_card
from .models.base_models import Source, sha256_of
from .models.export import link_tokenizer, save_adapter, save_generation, save_tokenizer
from .models.packaged import PACKAGED
from .models.revision import commit_of
from .models.tokenizers import stop_ids
from .reading import is_instruction, max_length, reads_pairs
from .snippet import Base, Reading, about_labels

logger = logging.getLogger(__name__)


def save(
    prepared: Prepared,
    folder: Path,
    client: ClientId | None,
    params: Params,
    summary: Mapping[str, Any],
    header: Mapping[str, Any],
    tokenizer_in: Path | None = None,
) -> None:
    """Write `params` as an adapter that can be used by itself: with the tokenizer, the classes' names and the length in tokens.

    Args:
        client: whose it is; None: the global one.
        summary: as in summary.json, with the client's own scores under `client`.
        header: of the run's records.
        tokenizer_in: an adapter's folder with the same tokenizer, whose files are linked rather than written again.

    Raises:
        RunFailed: the disk is full.
    """
    inputs = prepared.inputs
    config, source = inputs.config, inputs.source
    own = getattr(config.method, "adapter", None)
    base = _base(prepared)
    if client is not None:
        parts = inputs.data.partition.table().get(client)
        summary = {**summary, "client": _with_majority(summary.get("client"), parts, prepared.metric)}
    adapter = SavedAdapter(client, None if own is None else called(own), any(name.endswith(DELTA) for name in params))
    about: dict[str, Any] = {"files": header["model"]["files"], "summary": summary, "versions": header["versions"]}
    about["settings"] = _settings(config, num_clients(config, inputs.data))
    if is_instruction(config):
        labels, card = None, chat_card(adapter, base, _chat(config), **about)
    else:
        pair, names = reads_pairs(config), inputs.data.classes("an adapter's labels.json")
        reading = Reading(pair, pair_separator(inputs.tokenizer) if pair and inputs.prompt is None else "", inputs.prompt)
        labels = about_labels(names, max_length(config), reading)
        card = model_card(adapter, base, reading, labels=names, max_length=max_length(config), **about)
    try:
        save_adapter(prepared.task, params, folder, base=source.published, revision=base.revision, labels=labels, card=card)
        if is_instruction(config):
            save_generation(folder, stop_ids(source, inputs.tokenizer), inputs.tokenizer.pad_token_id)  # pyright: ignore[reportArgumentType]
        if tokenizer_in is None or not link_tokenizer(tokenizer_in, folder):
            # a class is told from as much of a text as was trained with; a prompt may be as long as the model reads
            save_tokenizer(inputs.tokenizer, folder, None if is_instruction(config) else max_length(config))
    except SafetensorError as error:  # what its writer makes of a full disk
        raise RunFailed(f"{folder} could not be written: {error}") from error
    logger.debug("%s written", folder)


def _chat(config: Config) -> Chat:
    options = config.data
    return Chat(options.chat_template != NO_TEMPLATE, options.system, max_length(config), options.loss_on, config.training.objective)


def _with_majority(scores: Mapping[str, Any] | None, parts: Parts | None, metric: Metric) -> Mapping[str, Any] | None:
    """A client's scores; a server whose clients are machines does not know which class is a client's most frequent one."""
    if scores is None or scores["majority"] is not None or parts is None:
        return scores
    found = own_majority([parts], metric)
    return {**scores, "majority": None if math.isnan(found) else found}


def _base(prepared: Prepared) -> Base:
    """The base model, as somebody who was given the adapter finds it."""
    source, model = prepared.inputs.source, prepared.inputs.config.model
    packed: Any = {"gguf_file": source.gguf_file, "quantization": model.quantization}
    if model.name in PACKAGED:
        return Base(source.published, model.name, packaged=True, **packed)
    if source.files:
        return Base(source.published, Path(source.location).resolve().name, local=True, **packed)
    return Base(source.published, source.location, revision=commit_of(source) or source.revision, **packed)


def folder_names(clients: Iterable[ClientId]) -> dict[ClientId, str]:
    """A folder for each of all clients: its `folder_name`, with a hash where others differ from it in nothing but capital letters.

    There are file systems that do not tell these from small ones.
    """
    names = {client: folder_name(client) for client in clients}
    times = Counter(name.casefold() for name in names.values())
    return {client: name if times[name.casefold()] == 1 else _with_hash(name, client) for client, name in names.items()}


def folder_name(client: ClientId) -> str:
    """The client's id as a name of a folder: anything but letters, digits, `-`, `_`, `~` and inner dots is percent-encoded.

    What is longer than `_LONGEST` is cut, and ends in a hash of the whole id.
    """
    name = quote(client, safe="", errors="surrogatepass")  # an id may be any string, half a surrogate pair too
    name = name.replace(".", "%2E", 1) if name.startswith(".") else name
    return name if len(name) <= _LONGEST else _with_hash(name, client)


def _with_hash(name: str, client: ClientId) -> str:
    return f"{name[: _LONGEST - 33]}-{hashlib.sha256(client.encode(errors='surrogatepass')).hexdigest()[:32]}"


_LONGEST = 140
"""Characters of a folder's name. File systems take 255 bytes, some of them 143."""


def weight_files(prepared: Prepared) -> dict[str, str]:
    """SHA-256 of each of the base model's local weight files; empty for a hub id."""
    return {path.name: sha256_of(path) for path in prepared.inputs.source.files}


def checksum_of_files(source: Source) -> str:
    """One SHA-256 over the local weight files of a base model, whatever they are called; "" for a hub id."""
    digests = sorted(sha256_of(path) for path in source.files)
    return hashlib.sha256("\n".join(digests).encode()).hexdigest() if digests else ""


def versions() -> dict[str, str]:
    """Versions of what computes the numbers."""
    found = {"python": platform.python_version()}
    for name in ("fibecfed", "torch", "transformers", "peft", "safetensors", "tokenizers"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def _settings(config: Config, clients: int) -> str:
    """What a model card says of the configuration, as TOML: the main keys, and those that differ from their defaults.

    Where files lie and what columns and clients are called stays with the owner of the data.
    """
    table, kind = flat(config), config.method.model_dump()["kind"]
    table["federation.clients_per_round"] = config.federation.cohort_size(clients)
    lines = []
    for key in keys(kind):
        value = table[key.name]
        if key.name == "model.name":
            value = Path(value).name if Path(value).exists() else value
        elif value is None or (value == key.default and key.name not in _MAIN) or key.name in _PRIVATE or "resources." in key.name:
            continue
        lines.append(f"{key.name} = {show(value)}")
    return "\n".join(lines)


_MAIN = (
    "seed", "model.rank", "federation.clients_per_round", "federation.rounds", "training.local_epochs", "training.batch_size",
    "training.learning_rate", "evaluation.save", "method.kind",
)  # fmt: skip
_PRIVATE = (
    "data.path", "data.test_path", "data.root", "data.text_column", "data.pair_column", "data.label_column", "data.client_column",
    "data.labels", "privacy.unit_column", "federation.client_names", "federation.clients", "tracking", "tracking_by_client",
)  # fmt: skip

"""Adapters on disk: one client's or the global one, with the model card that says how it was made."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from urllib.parse import quote

from safetensors import SafetensorError

from .adapters.options import called
from .build import Prepared
from .config import Config, to_toml
from .core.errors import RunFailed
from .core.task import DELTA
from .core.types import ClientId, Params
from .models.backbones import Source, sha256_of
from .models.export import save_adapter
from .report.card import model_card


def save(prepared: Prepared, folder: Path, who: str, params: Params, summary: Mapping[str, Any], header: Mapping[str, Any]) -> None:
    """Write `params` as an adapter.

    Args:
        who: "the global model" or "client 07".
        summary: as in summary.json.
        header: of the run's records.

    Raises:
        RunFailed: the disk is full.
    """
    source, names, prompt = prepared.inputs.source, prepared.inputs.data.label_names, prepared.inputs.prompt
    adapter = getattr(prepared.inputs.config.method, "adapter", None)
    card = model_card(
        who=who,
        base=source.published,
        files=header["model"]["files"],
        labels=names,
        prompt=prompt,
        summary=summary,
        config_toml=to_toml(_without_folders(prepared.inputs.config)),
        versions=header["versions"],
        adapter=None if adapter is None else called(adapter),
        beside_weights=any(name.endswith(DELTA) for name in params),
    )
    labels = names if prompt is None else prompt.about(names)
    try:
        save_adapter(prepared.task, params, folder, base=source.published, revision=source.revision, labels=labels, card=card)
    except SafetensorError as error:  # what its writer makes of a full disk
        raise RunFailed(f"{folder} could not be written: {error}") from error


def folder_name(client: ClientId) -> str:
    """The client's id as a name of a folder: anything but letters, digits, `-`, `_`, `~` and inner dots is percent-encoded.

    What is longer than `_LONGEST` is cut, and ends in a hash of the whole id.
    """
    name = quote(client, safe="")
    name = name.replace(".", "%2E", 1) if name.startswith(".") else name
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 33]}-{hashlib.sha256(client.encode()).hexdigest()[:32]}"


_LONGEST = 140
"""Characters of a folder's name. File systems take 255 bytes, some of them 143."""


def weight_files(prepared: Prepared) -> dict[str, str]:
    """SHA-256 of each of the backbone's local weight files; empty for a hub id."""
    return {path.name: sha256_of(path) for path in prepared.inputs.source.files}


def checksum_of_files(source: Source) -> str:
    """One SHA-256 over the local weight files of a backbone, whatever they are called; "" for a hub id."""
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


def _without_folders(config: Config) -> Config:
    """The configuration for a model card: files and folders by name, not by where they lie on this machine."""
    paths = {name: value for name in ("path", "test_path", "root") if (value := getattr(config.data, name)) is not None}
    data = config.data.model_copy(update={name: Path(value).name for name, value in paths.items()})
    model = config.model
    if Path(model.name).is_absolute():
        model = model.model_copy(update={"name": Path(model.name).name})
    return config.model_copy(update={"data": data, "model": model})

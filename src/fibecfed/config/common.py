"""What the machines of one federation must have in common, and what each may set for itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..data.options import template_text
from .model import Config, flat

OWN = (
    "data.path", "data.test_path", "data.root", "data.text_column", "data.pair_column", "data.label_column", "data.client_column",
    "data.shape", "data.prompt_column", "data.completion_column", "data.messages_column", "data.system_column", "data.skip_empty",
    "training.device", "resources.threads", "resources.workers", "resources.client_memory_mb",
    "resources.activation_cache_mb", "tracking", "tracking_by_client",
)  # fmt: skip
"""Keys that each machine sets for itself: where its data lies and what it computes on; tracking is the server's alone."""


def common(config: Config, weights: str) -> dict[str, Any]:
    """Dotted key -> JSON value of all that must be the same on every machine, sorted by key.

    A model that lies in a folder is known by its weights instead of by the folder's place, a chat template by its text.

    Args:
        weights: checksum of the base model's local weight files; "" for a hub id.
    """
    table = {name: value for name, value in flat(config).items() if name not in OWN}
    if config.data.chat_template is not None:  # a file lies elsewhere on every machine
        table["data.chat_template"] = template_text(config.data.chat_template)
    if Path(config.model.name).exists():
        table["model.name"] = "a local model"
    table["model.weights"] = weights
    return json.loads(json.dumps(table, sort_keys=True))

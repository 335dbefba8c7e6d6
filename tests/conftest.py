"""One thread, no network and a terminal of no special kind, for every test."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest
import torch
from torch import Tensor

torch.set_num_threads(1)
for name in ("COLUMNS", "LINES", "FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
    os.environ.pop(name, None)  # what rich reads: sentences are compared as they are printed at the usual width


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="auto", help="what tests/gpu computes on: cuda, mps, or cpu; auto: the GPU that is there")


@pytest.fixture(autouse=True)
def same_weights() -> None:
    """Models that a test makes with random weights have the same ones each time."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow the machine is, no run starts worker processes by itself: many tests look at what happens in their own process."""
    from fibecfed.engine import workers

    monkeypatch.setattr(workers, "PAYS_AFTER_S", float("inf"))


@pytest.fixture
def norms_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers rounds to float32 inside LLaMA's norm, in a float64 model too: too coarse where small differences are looked at."""
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    def forward(self: LlamaRMSNorm, hidden_states: Tensor) -> Tensor:
        return self.weight * hidden_states * torch.rsqrt(hidden_states.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)

    monkeypatch.setattr(LlamaRMSNorm, "forward", forward)

"""How many worker processes there are by default, and how many there may be."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch

from fibecfed.core.errors import UserError
from fibecfed.engine import worker_count
from fibecfed.engine.options import ResourceOptions
from fibecfed.engine.worker_count import most_workers


def most(cores: int, clients: int = 10, device: str = "cpu", by_itself: bool = True, **resources: Any) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker_count, "cores", lambda: cores)
        return most_workers(ResourceOptions(**resources), torch.device(device), clients, by_itself=by_itself)


def test_by_default_there_is_one_for_each_core_and_no_more_than_clients() -> None:
    assert (most(1), most(4), most(4, clients=3), most(8, threads=2), most(2, threads=4)) == (1, 4, 3, 4, 1)
    assert most(4, device="cuda") == 1 and most(4, by_itself=False) == 1
    assert most(4, workers=1) == 1 and most(4, workers=3) == 3 and most(4, by_itself=False, workers=3) == 3 and most(1, workers=1) == 1


@pytest.mark.parametrize(
    ("found", "sentence"),
    [
        ({"cores": 2, "workers": 3}, r"resources\.workers: got 3, expected at most 2, the CPU cores that this process may use; lower it"),
        ({"cores": 4, "workers": 3, "threads": 2}, r"got 3, expected at most 2, .* over `resources\.threads` = 2"),
        ({"cores": 1, "workers": 2, "threads": 2}, r"got 2, expected at most 1"),
        ({"cores": 4, "workers": 2, "device": "cuda"}, r'got 2, expected 1 on `training\.device` = "cuda"'),
    ],
)
def test_more_than_there_can_be_are_a_sentence(found: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        most(**found)


def test_on_another_system_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert most(4) == 1
    with pytest.raises(UserError, match="expected 1 on this system, where processes cannot be forked safely"):
        most(4, workers=2)

"""Areas and shares of scores whose answer is known."""

from __future__ import annotations

import pytest
import torch

from fibecfed.audit.figures import MemberScores, auc, mean, true_positives


def normal(count: int, shift: float, seed: int) -> torch.Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + shift


def test_area_and_true_positives_worked_out_by_hand() -> None:
    one = MemberScores(torch.tensor([3.0, 1.0]), torch.tensor([2.0, 1.0, 0.0]))
    area, share = auc([one]), true_positives([one])
    assert area is not None and area.value == pytest.approx((3 + 0 + 0.5 + 1) / 6)  # 3 above all; 1 ties with 1 and is above 0
    assert share is not None and share.value == 0.5  # only 3 is above every other example


def test_an_attack_that_only_tells_the_classes_apart_finds_no_member() -> None:
    first, second = MemberScores(normal(200, 5.0, 1), normal(200, 5.0, 2)), MemberScores(normal(200, 0.0, 3), normal(200, 0.0, 4))
    apart = auc([first, second])
    assert apart is not None and apart.reaches(0.5) and apart.high - apart.low < 0.15
    mixed = auc([MemberScores(torch.cat([first.members, normal(50, 0.0, 5)]), torch.cat([normal(50, 5.0, 6), second.others]))])
    assert mixed is not None and not mixed.reaches(0.5)


def test_a_planted_difference_is_inside_the_interval() -> None:
    others = torch.distributions.Normal(0.0, 1.0).icdf((torch.arange(400) + 0.5) / 400)
    area = auc([MemberScores(others + 1, others)])
    assert area is not None and area.value == pytest.approx(0.7602, abs=0.002)  # Phi(1 / sqrt 2)
    assert area.reaches(0.7602) and not area.reaches(0.5) and 0.03 < area.high - area.low < 0.09


def test_nothing_to_compare_is_no_figure() -> None:
    assert auc([]) is None and true_positives([MemberScores(torch.zeros(3), torch.zeros(0))]) is None


def test_a_mean_and_its_interval() -> None:
    found = mean([1.0, 2.0, 3.0])
    assert (found.value, found.high - found.value) == (2.0, pytest.approx(1.96 / 3**0.5)) and mean([2.0]).high == 2.0

"""Areas and shares of scores whose answer is known."""

from __future__ import annotations

import pytest
import torch
from scipy import stats

from fibecfed.audit.figures import Interval, MemberScores, auc, mean, named_by_chance, student, true_positives
from fibecfed.audit.views import AttackRow


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
    assert (found.value, found.high - found.value) == (2.0, pytest.approx(4.303 / 3**0.5)) and mean([2.0]).high == 2.0


def test_few_values_have_the_quantiles_of_student() -> None:
    for freedom in (1, 2, 4, 10, 11, 15, 30, 100):
        assert student(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=5e-4)


def test_others_that_are_the_same_for_every_client_are_drawn_together() -> None:
    """20 clients with 30 members each against the same 100 others: the variance of the area is about (1/100 + 1/600) / 12. Drawn anew for
    each client, the others would seem to be 2,000."""
    others, members = normal(100, 0.0, 0), [normal(30, 0.0, 1 + place) for place in range(20)]
    shared, apart = (auc([MemberScores(own, others, sample) for own in members]) for sample in (0, None))
    assert shared is not None and apart is not None and shared.value == apart.value
    half = 1.96 * ((1 / 100 + 1 / 600) / 12) ** 0.5
    assert (shared.high - shared.low) / 2 == pytest.approx(half, rel=0.2)
    assert apart.high - apart.low < 0.6 * (shared.high - shared.low)


def test_members_are_named_by_chance_as_often_as_is_said() -> None:
    """More often than 1 in 100 where there are few others: the third highest of 200 is above one in 67 at random."""
    found = list[float]()
    for seed in range(300):
        strata = [
            MemberScores(normal(40, 0.0, 3 * seed), normal(200, 0.0, 3 * seed + 1)),
            MemberScores(normal(80, 0.0, 3 * seed + 2), normal(50, 0.0, -1 - seed)),
        ]
        share = true_positives(strata)
        assert share is not None
        found.append(share.value)
    expected = (40 * 3 / 201 + 80 * 1 / 51) / 120
    assert named_by_chance(strata) == pytest.approx(expected)
    assert sum(found) / len(found) == pytest.approx(expected, abs=4 * torch.tensor(found).std().item() / len(found) ** 0.5)


def test_a_figure_tells_more_than_guessing_on_the_side_where_it_does() -> None:
    low, middle, high = Interval(0.2, 0.1, 0.3), Interval(0.5, 0.3, 0.7), Interval(0.8, 0.7, 0.9)
    views = {"low": low, "middle": middle, "high": high}
    for better, told in (("below", ["low"]), ("above", ["high"]), ("both", ["low", "high"])):
        row = AttackRow("", "", 0.5, views, better=better)
        assert [view for view in views if row.tells(view)] == told
    assert not AttackRow("", "", 0.5, views, guesses={"low": 0.1}).tells("low")

"""TCP's seconds for a message, against what was measured over a shaped cable and what must be."""

from __future__ import annotations

import numpy as np
import pytest

from fibecfed.core.clock import transfer_seconds
from fibecfed.engine.flower.tcp import FRAME, LONG, SEGMENT, transfer_draws


def seconds(size: int, mbit: float, trip_s: float, loss: float = 0.0, count: int = 1) -> np.ndarray:
    return transfer_draws(size, mbit, trip_s, loss, np.random.default_rng(0), count)


def test_without_a_delay_it_is_bytes_over_the_rate_and_what_frames_add() -> None:
    size = 1000 * SEGMENT
    assert seconds(size, 10.0, 0.0)[0] == pytest.approx(transfer_seconds(size, 10.0, 0.0) * FRAME / SEGMENT, rel=0.01)


def test_the_first_ten_segments_wait_for_nothing_and_twice_as_many_follow_with_each_round_trip() -> None:
    windows = (10, 20, 40, 80)
    for trips, segments in enumerate(np.cumsum(windows)):
        fast = 1e6  # Mbit/s
        assert seconds(int(segments) * SEGMENT, fast, 0.5)[0] == pytest.approx(0.5 * trips, abs=0.01)
        assert seconds(int(segments) * SEGMENT + 1, fast, 0.5)[0] == pytest.approx(0.5 * (trips + 1), abs=0.01)


@pytest.mark.parametrize(
    ("mbit", "trip_s", "loss", "measured", "within"),
    [(1.0, 0.4, 0.0, 3.08, 0.01), (50.0, 0.06, 0.0, 0.32, 0.06), (1.0, 0.4, 0.01, 5.14, 0.07)],
)
def test_transfers_of_263675_bytes_take_what_was_measured(mbit: float, trip_s: float, loss: float, measured: float, within: float) -> None:
    """Means of 24, 36 and 96 requests on kept connections, with ten small ones before each of the last; Linux 6.18, CUBIC, cables shaped by
    tests/helpers/shaper.py."""
    assert trip_s + seconds(263_675, mbit, trip_s, loss, 2000).mean() == pytest.approx(measured, rel=within)


def test_losses_cost_time_the_more_the_longer_the_way() -> None:
    means = [[seconds(10**6, 10.0, trip, loss, 500).mean() for loss in (0.0, 0.001, 0.01)] for trip in (0.02, 0.4)]
    for row in means:
        assert row[0] < row[1] < row[2]
    near, far = means
    assert far[2] / far[0] > 2 * near[2] / near[0] > 2


def test_a_long_message_goes_on_at_the_rate_of_its_beginning() -> None:
    for loss in (0.0, 0.01):
        short, long, longer = (seconds(LONG * SEGMENT * times, 10.0, 0.1, loss, 300).mean() for times in (1, 3, 5))
        assert longer - long == pytest.approx(long - short, rel=0.01) and long > 2.5 * short


def test_very_large_windows_are_no_error() -> None:
    assert seconds(LONG * SEGMENT, 1e5, 0.2)[0] > 0

"""Seconds of messages on their way, against what they must be."""

from __future__ import annotations

import pytest

from fibecfed.core.clock import Network, transfer_seconds
from fibecfed.engine.flower.pace import ASKING_TRIPS, ASKS_EVERY_S, PART, PARTS_TRIPS, START_S, network_seconds
from fibecfed.engine.flower.tcp import FRAME, SEGMENT


def test_without_a_delay_it_is_what_a_report_counts_for_the_bytes_but_for_the_start_of_a_process_and_what_frames_add() -> None:
    network = Network(10.0, 5.0, 0.0)
    expected = transfer_seconds(3_000_000, 5.0, 0.0) + transfer_seconds(1_000_000, 10.0, 0.0)
    assert network_seconds(3_000_000, 1_000_000, network) + START_S == pytest.approx(expected, rel=0.06)


def test_small_messages_cost_their_round_trips_of_which_those_before_the_answer_may_pass_while_a_process_starts() -> None:
    for latency in (100.0, 1000.0):
        trip = 2 * latency / 1e3
        expected = max(0.0, PARTS_TRIPS * trip - START_S) + (ASKING_TRIPS + PARTS_TRIPS) * trip
        assert network_seconds(1000, 1000, Network(100.0, 100.0, latency)) == pytest.approx(expected, rel=0.01)


def test_parts_of_a_long_message_share_the_link() -> None:
    network = Network(10.0, 10.0, 1.0)
    assert network_seconds(2 * PART, 1, network) - network_seconds(PART, 1, network) == pytest.approx(8e-7 * PART, rel=0.1)


@pytest.mark.parametrize(
    ("sent_s", "asked_for_at"), [(0.9, 1), (1.1, 3), (2.9, 3), (3.1, 7), (7.5, 15), (14.9, 15), (15.5, 25), (26.5, 35)]
)
def test_an_answer_that_takes_a_while_is_noticed_late_and_the_next_message_at_the_next_question(sent_s: float, asked_for_at: int) -> None:
    """Times are Flower's: 1 s after the announcement, then after 2, 4, 8, 10, 10, ... more."""
    up = int(sent_s * 10e6 / 8 * SEGMENT / FRAME)
    found = network_seconds(1000, up, Network(10.0, 1e6, 0.0))
    assert found == pytest.approx(sent_s + ASKS_EVERY_S * ((asked_for_at - sent_s) // ASKS_EVERY_S), rel=0.02)


def test_chance_in_those_times_averages_the_steps_and_very_long_answers_are_no_error() -> None:
    slow = Network(1.0, 1.0, 10.0)
    steady, chance = network_seconds(1000, 10**7, slow), network_seconds(1000, 10**7, slow, loss=1e-9)
    assert abs(steady - chance) < 10
    assert network_seconds(1000, 2 * 10**8, slow, loss=1e-9) > 1600


def test_with_losses_a_round_takes_longer_and_the_longer_the_more_are_waited_for() -> None:
    network = Network(1.0, 1.0, 200.0)
    found = [network_seconds(263_640, 263_672, network, loss, clients) for loss, clients in ((0.0, 1), (0.01, 1), (0.01, 3), (0.01, 10))]
    assert found == sorted(set(found))
    assert found[2] == network_seconds(263_640, 263_672, network, 0.01, 3)
    assert network_seconds(263_640, 263_672, network, 0.0, 10) == found[0]

"""Seconds of messages on their way, against what they must be."""

from __future__ import annotations

import pytest

from fibecfed.core.clock import Network, transfer_seconds
from fibecfed.engine.flower.pace import ROUND_TRIPS, network_seconds


def test_without_a_delay_it_is_what_a_report_counts_for_the_bytes() -> None:
    network = Network(10.0, 50.0, 0.0)
    expected = transfer_seconds(5_000_000, 50.0, 0.0) + transfer_seconds(1_000_000, 10.0, 0.0)
    assert network_seconds(5_000_000, 1_000_000, network) == pytest.approx(expected) == pytest.approx(1.6)


def test_each_round_trip_costs_the_delay_twice_whatever_the_size() -> None:
    slow, at_once = (network_seconds(1000, 1000, Network(1.0, 1.0, latency)) for latency in (200.0, 0.0))
    assert slow - at_once == pytest.approx(ROUND_TRIPS * 0.4)

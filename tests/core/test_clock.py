"""Modelled seconds of a round, against sums done by hand."""

from __future__ import annotations

from typing import Any

import pytest

from fibecfed.core.clock import Network, clock_in_words, joined, processor_share, round_seconds
from fibecfed.core.errors import UserError
from fibecfed.core.records import FailedAttempt, RoundRecord


def record(**more: Any) -> RoundRecord:
    """Two clients: a sends much, b computes long."""
    fields: dict[str, Any] = {
        "phase": "tune", "index": 0, "number": 0, "cohort": ("a", "b"), "bytes_down": {"a": 1_000_000, "b": 1_000_000},
        "bytes_up": {"a": 5_000_000, "b": 100_000}, "fields_down": {}, "fields_up": {}, "steps": {}, "examples": {}, "loss": {},
        "compute_s": {"a": 1.0, "b": 3.0}, "failures": {}, "server": {}, "seconds": 4.0, "cpu_s": 4.0,
    }  # fmt: skip
    return RoundRecord(**{**fields, **more})


def test_the_slowest_client_counts_with_its_transfers_latencies_and_compute():
    a = 0.03 + 8 / 50 + 1.0 + 0.03 + 40 / 10
    b = 0.03 + 8 / 50 + 3.0 + 0.03 + 0.8 / 10
    assert a > b
    assert round_seconds(record(), Network()) == pytest.approx(a)
    assert round_seconds(record(), Network(up_mbit=1000)) == pytest.approx(0.06 + 0.16 + 3 + 0.8 / 1000)


def test_each_part_of_the_network_acts_on_its_own_term():
    assert round_seconds(record(), Network(1e9, 1e9, 0, 2.0)) == pytest.approx(1.5, abs=1e-3)
    assert round_seconds(record(), Network(1e9, 1e9, 500, 1e9)) == pytest.approx(1.0, abs=1e-3)
    assert round_seconds(record(), Network(1e9, 1.0, 0, 1e9)) == pytest.approx(8.0, abs=1e-3)


def test_seconds_in_which_other_processes_had_the_processor_do_not_count():
    assert processor_share(record(seconds=8.0, cpu_s=4.0)) == 0.5
    assert round_seconds(record(seconds=8.0, cpu_s=4.0), Network(1e9, 1e9, 0)) == pytest.approx(1.5, abs=1e-3)
    several_threads, unknown, elsewhere, idle = record(cpu_s=9.0), record(cpu_s=0.0), record(seconds=2.0, cpu_s=1.0), record(cpu_s=0.1)
    assert [processor_share(one) for one in (several_threads, unknown, elsewhere, idle)] == [1.0, 1.0, 1.0, 1.0]


def test_processor_seconds_count_in_full_however_busy_the_machine_was_and_are_shared_by_the_threads():
    one = record(seconds=8.0, cpu_s=4.0, compute_clock="cpu")
    assert round_seconds(one, Network(1e9, 1e9, 0)) == pytest.approx(3.0, abs=1e-3)
    assert round_seconds(one, Network(1e9, 1e9, 0), threads=2) == pytest.approx(1.5, abs=1e-3)
    on_gpu = record(seconds=8.0, cpu_s=4.0, compute_clock="cuda")  # on clients of a server that has none
    assert round_seconds(on_gpu, Network(1e9, 1e9, 0), threads=2) == pytest.approx(3.0, abs=1e-3)


def test_counted_work_at_a_speed_takes_the_place_of_what_was_measured():
    notes = {"a": {"token_blocks": [600, 400]}, "b": {"token_blocks": [200, 0], "rank": 2}}
    slow, busy = (record(notes=notes, compute_s={"a": a, "b": 3.0}, steps={"a": 1, "b": 1}) for a in (1.0, 50.0))
    network = Network(1e9, 1e9, 0, tokens_per_s=500.0)
    assert round_seconds(slow, network) == round_seconds(busy, network, threads=4) == pytest.approx(2.0, abs=1e-3)
    assert round_seconds(slow, Network(1e9, 1e9, 0, 2.0, 500.0)) == pytest.approx(1.0, abs=1e-3)
    assert network.describe().endswith("500 tokens per second through a transformer block")
    with pytest.raises(UserError, match="--tokens-per-s: got records of tune round 0 without counted work"):
        round_seconds(record(steps={"a": 1}), network)
    with pytest.raises(UserError, match="--tokens-per-s: got -1"):
        Network(tokens_per_s=-1.0)


def test_clocks_of_several_are_named_together_and_once_in_words():
    assert [joined(kinds) for kinds in (["cpu", "cpu"], ["cuda", "cpu"], ["cpu+cuda", "wall"], [])] == [
        "cpu",
        "cpu+cuda",
        "cpu+cuda+wall",
        "wall",
    ]
    assert clock_in_words("cpu+cuda+mps") == "CPU seconds, or wall clock until the GPU was done"


def test_an_accelerator_works_while_the_process_waits_so_its_seconds_count_in_full():
    one = record(seconds=8.0, cpu_s=4.0)
    assert round_seconds(one, Network(1e9, 1e9, 0), device="cuda:0") == pytest.approx(3.0, abs=1e-3)


def test_a_client_that_failed_counts_with_what_it_did_and_an_empty_round_takes_no_time():
    failed = record(bytes_up={"b": 100_000}, compute_s={"b": 3.0})
    assert round_seconds(failed, Network()) == pytest.approx(0.03 + 0.16 + 3.0 + 0.03 + 0.08)
    assert round_seconds(record(cohort=()), Network()) == 0.0


def test_the_cohorts_of_a_repeated_round_come_one_after_the_other():
    attempt = FailedAttempt(("a", "c"), {"a": 1_000_000, "c": 1_000_000}, {"a": 5_000_000}, {"c": "gone"}, ())
    repeated = record(
        bytes_down={"a": 2_000_000, "b": 1_000_000, "c": 1_000_000}, bytes_up={"a": 10_000_000, "b": 100_000}, attempts=(attempt,)
    )
    discarded = 0.03 + 8 / 50 + 0.03 + 40 / 10
    assert round_seconds(repeated, Network()) == pytest.approx(discarded + round_seconds(record(), Network()))


@pytest.mark.parametrize(
    ("field", "value"), [("up_mbit", 0.0), ("down_mbit", -1.0), ("client_speed", float("nan")), ("latency_ms", float("inf"))]
)
def test_a_network_that_cannot_be_is_refused_by_its_option(field: str, value: float):
    with pytest.raises(UserError, match=f"--{field.replace('_', '-')}: got"):
        Network(**{field: value})

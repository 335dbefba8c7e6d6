"""A site whose cable is pulled in the middle of a run, and put in again."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = [pytest.mark.network, pytest.mark.slow]

FEW = 9
"""Rounds of this run; those of the other tests take a while."""


def test_a_site_that_vanishes_is_left_out_and_takes_part_again_once_it_is_back(sites: Any) -> None:
    from machines import WAIT_S
    from tiny_federation import NAMES, rounds_of

    from fibecfed.core.records import EvalRecord, read

    for name in NAMES:  # they know how many rounds a run has
        sites.stop(f"client-{name}")
    sites.rounds(FEW)
    sites.clients()
    out = sites.begun(1)
    sites.network.pull("b")
    sites.until_round(out, 2)
    sites.network.plug("b")
    sites.running.pop("flwr").wait(2 * WAIT_S)
    assert (out / "summary.json").is_file(), sites.log("flwr")
    rounds = rounds_of(out)
    without = [record.index for record in rounds if "b" in record.failures]
    print(f"\nrounds without b: {without} of {len(rounds)}; {[record.failures for record in rounds]}")
    assert without and all(set(record.failures) <= {"b"} for record in rounds)
    assert not rounds[0].failures and not rounds[-1].failures and set(rounds[-1].steps) == set(NAMES)
    last = [record for record in read(out / "records.jsonl")[1] if isinstance(record, EvalRecord)][-1]
    assert set(last.clients) == set(NAMES) and not last.failures

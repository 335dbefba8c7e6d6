"""Durations and shares in words."""

from __future__ import annotations

from fibecfed.core.units import duration, percent


def test_durations_and_shares_in_words() -> None:
    assert [duration(s) for s in (0.04, 9.96, 59.4, 60, 3599, 7500)] == ["0.0 s", "10.0 s", "59 s", "1 min 0 s", "59 min 59 s", "2 h 5 min"]
    assert [percent(x) for x in (None, float("nan"), 0.8125)] == ["-", "-", "81.2 %"]

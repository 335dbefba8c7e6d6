"""JSON that other languages read too."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

import fibecfed
from fibecfed.comparison.runner.tuning import choose, read_tuning, trial, write_tuning
from fibecfed.core.json_text import to_json, with_nan
from fibecfed.core.metrics import METRICS
from fibecfed.engine.checkpoint import Checkpoints

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(st.text(), inner),
)


def strict(text: str | bytes) -> Any:
    def reject(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=reject)


@given(VALUES)
def test_any_value_becomes_strict_json_and_all_that_is_finite_comes_back(value: Any) -> None:
    plain = json.loads(json.dumps(value), parse_constant=lambda constant: None)
    assert strict(to_json(value)) == plain


def test_null_becomes_nan_where_the_class_has_a_number() -> None:
    @dataclass
    class Some:
        loss: float
        by_client: Mapping[str, float]
        worst: float | None
        notes: Mapping[str, Any]

    found = with_nan(Some, {"loss": None, "by_client": {"a": None, "b": 1.0}, "worst": None, "notes": {"x": None}})
    assert math.isnan(found["loss"]) and math.isnan(found["by_client"]["a"])
    assert (found["by_client"]["b"], found["worst"], found["notes"]) == (1.0, None, {"x": None})


def test_checkpoints_and_rates_hold_no_number_that_is_none(tmp_path: Path) -> None:
    write_tuning(tmp_path, {"lora": choose("paper", [trial(0, {"training.learning_rate": 1.0}, {"a": math.nan})], METRICS["accuracy"])})
    assert strict((tmp_path / "tuning.json").read_text()) and read_tuning(tmp_path)["lora"].tried[0].scores == {"a": None}
    checkpoints = Checkpoints(tmp_path, 2)
    path = checkpoints.save(1, b"", checkpoints.open_states(None, 0), {"loss": math.inf})
    latest = checkpoints.load_latest()
    assert latest is not None and latest.extra == {"loss": None} == strict(path.read_text())["extra"]


def test_no_file_is_written_past_it() -> None:
    package = Path(fibecfed.__file__).parent
    texts = {path.relative_to(package).as_posix(): path.read_text(encoding="utf-8") for path in package.rglob("*.py")}
    assert not {name for name, text in texts.items() if re.search(r"write\w*\([^\n]*json\.dumps?\(", text)}

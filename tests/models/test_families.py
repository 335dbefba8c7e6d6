"""Some families of each kind, tried as `python tools/families.py` tries all: the table in docs/models.md says what becomes of them."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
from every_family import FAMILIES, METHODS, RUNS, outcome

ROOT = Path(__file__).resolve().parent.parent.parent
TRIED = (
    "albert", "bart", "bert", "bloom", "canine", "convbert", "deberta-v2", "deepseek_v3", "distilbert", "esmc", "falcon", "gemma2",
    "gpt2", "layoutlmv3", "longformer", "modernbert", "mpnet", "nystromformer", "openai-gpt", "opt", "perceiver", "phi3", "qwen2",
    "qwen3_5", "qwen3_5_text", "reformer", "roberta", "t5", "xlm-roberta", "xlnet", "xmod",
)  # fmt: skip


@pytest.fixture(scope="module")
def tool() -> Any:
    if not (ROOT / "tools" / "families.py").is_file():
        pytest.skip("tools/ is not here")
    spec = importlib.util.spec_from_file_location("families_tool", ROOT / "tools" / "families.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    before = list(sys.path)
    spec.loader.exec_module(module)
    sys.path[:] = before
    return module


@pytest.fixture(scope="module")
def rows(tool: Any) -> dict[str, str]:
    found = tool.MARKERS.search(tool.PAGE.read_text(encoding="utf-8"))
    assert found is not None
    return tool.rows(found[2])


@pytest.mark.parametrize("family", TRIED)
def test_the_table_says_what_becomes_of_a_family(family: str, tool: Any, rows: dict[str, str], tmp_path: Path) -> None:
    outcomes = [tool.shown(outcome(family, kind, tmp_path / kind)) for kind in METHODS]
    assert rows[family] == f"| `{family}` | {outcomes[0]} | {outcomes[1]} |"


def test_the_table_has_every_family_and_none_ends_otherwise_than_with_a_run_or_a_refusal(rows: dict[str, str]) -> None:
    assert list(rows) == list(FAMILIES)
    assert not any(f"| {word}" in row for row in rows.values() for word in ("fault", "unexpected", "Traceback"))
    assert sum(row.count(f"| {RUNS} |") > 0 for row in rows.values()) > 80

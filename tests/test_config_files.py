"""Files of a configuration that cannot be read, and tables of any content: sentences, never a traceback."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fibecfed.config import Config, from_table, keys, load
from fibecfed.core.errors import UserError
from fibecfed.methods.catalogue import METHODS
from fibecfed.models.base_models import find
from fibecfed.models.options import ModelOptions


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(text: str) -> Path:
    path = Path("a.toml")
    path.write_text(text, encoding="utf-8")
    return path


def mistakes(text: str, *overrides: str) -> str:
    with pytest.raises(UserError) as error:
        load(write(text), overrides)
    return str(error.value)


def test_files_that_cannot_be_read_are_named_with_the_place() -> None:
    with pytest.raises(UserError, match=r"none\.toml: got no such file"):
        load(Path("none.toml"))
    with pytest.raises(UserError, match="got a folder"):
        load(Path("."))
    assert "line 2, column 5" in mistakes("seed = 1\nx = \n")
    Path("a.toml").write_bytes(b'seed = "\xff"')
    with pytest.raises(UserError, match="UTF-8"):
        load(Path("a.toml"))


def test_missing_data_is_told_with_the_other_mistakes() -> None:
    text = mistakes('seed = -1\n[data]\npath = "none.csv"\ntest_path = "."\n')
    assert 'data.path: got "none.csv" (nothing there), expected a file' in text
    assert 'data.test_path: got "." (a folder), expected a file' in text and "seed: got -1" in text


def test_a_home_of_nobody_is_told_as_a_missing_file() -> None:
    text = mistakes('[data]\npath = "~nosuchuser/x"\n')
    assert 'data.path: got "~nosuchuser/x" (nothing there), expected a file' in text
    name = load(write('[data]\ntask = "mr"\n'), ["model.name=~nosuchuser/x"]).config.model.name
    with pytest.raises(UserError, match="there is no file or folder ~nosuchuser/x"):
        find(ModelOptions(name=name))


def test_bytes_that_are_no_text_are_refused() -> None:
    assert "UTF-8" in mistakes('[data]\ntask = "mr"\n', "model.name=a\udcff")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2),
    max_leaves=3,
).filter(lambda value: value is not None and "None" not in repr(value))
NAMES = sorted({"x", *(part for kind in METHODS for key in keys(kind) for part in key.name.split("."))})
TABLES = st.recursive(
    st.dictionaries(st.sampled_from(NAMES), JSON, max_size=3),
    lambda inner: st.dictionaries(st.sampled_from(NAMES), inner | JSON, max_size=3),
    max_leaves=6,
)


@given(table=TABLES)
@settings(max_examples=200, deadline=None)
def test_any_table_gives_a_configuration_or_sentences(table: dict[str, Any]) -> None:
    try:
        assert isinstance(from_table(table), Config)
    except UserError as error:
        assert str(error).startswith("the configuration has ")

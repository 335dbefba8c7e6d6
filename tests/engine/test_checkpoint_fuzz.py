"""Whatever the bytes of a checkpoint's files become, an older one takes its place with a warning, or the error is a sentence of ours."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fibecfed.core.errors import UserError
from fibecfed.engine.checkpoint import Checkpoints

QUICK = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
NUMBERS = (1, 2, 3)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three checkpoints, of which two are kept, each with its own pack."""
    folder = tmp_path_factory.mktemp("made")
    for number in NUMBERS:
        checkpoints = Checkpoints(folder, 2)
        states = checkpoints.open_states(checkpoints.load_latest(), 50)
        for client in ("a", "é/b", f"c{number}"):
            states.put(client, f"{client}@{number}".encode() * 9)
        checkpoints.save(
            number, f"server@{number}".encode() * 9, states, {"records_bytes": 10 * number, "standing": {"num_samples": {"a": 3}}}
        )
    return folder


@contextmanager
def copied(made: Path) -> Iterator[Path]:
    """A copy for one example."""
    with tempfile.TemporaryDirectory() as place:
        shutil.copytree(made, Path(place) / "checkpoints")
        yield Path(place) / "checkpoints"


def usable(folder: Path, forged: bool = False) -> None:
    """What a run does when it is resumed; only the two ways out that are ours. What is `forged` may say what it likes."""
    checkpoints = Checkpoints(folder, 2)
    try:
        latest = checkpoints.load_latest()
    except UserError as error:
        assert "no checkpoint can be used" in str(error) and "cannot be used: " in str(error)
    else:
        if latest is None:
            assert not list(folder.glob("checkpoint-*.json"))
            return
        states = checkpoints.open_states(latest, 50)
        found = [states.get(client) for client in ("a", "é/b")]
        if forged:
            return
        assert latest.server == f"server@{latest.number}".encode() * 9 and latest.extra["records_bytes"] == 10 * latest.number
        if latest.number != NUMBERS[-1] and (folder / "checkpoint-00000003.json").exists():
            assert latest.warnings and "checkpoint-00000003.json cannot be used: " in latest.warnings[0]
        assert found == [f"{client}@{latest.number}".encode() * 9 for client in ("a", "é/b")]


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@QUICK
@given(st.data())
def test_any_bytes_of_any_file(made: Path, data: st.DataObject) -> None:
    with copied(made) as folder:
        before = files(folder)
        names = st.sampled_from([str(path.relative_to(folder)) for path in before])
        for name in data.draw(st.lists(names, min_size=1, max_size=2, unique=True)):
            path = folder / name
            blob = bytearray(before[path])
            how = data.draw(st.sampled_from(["changed", "cut", "longer", "other", "gone"]))
            if how == "changed":
                for place in data.draw(st.lists(st.integers(0, len(blob) - 1), min_size=1, max_size=4)):
                    blob[place] = data.draw(st.integers(0, 255))
            elif how == "cut":
                blob = blob[: data.draw(st.integers(0, len(blob)))]
            elif how == "longer":
                blob += data.draw(st.binary(max_size=200))
            elif how == "other":
                blob = bytearray(data.draw(st.binary(max_size=200)))
            path.unlink() if how == "gone" else path.write_bytes(bytes(blob))
        usable(folder)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just("00" * 32) | st.just("../../server-1-a.state"),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


def signed(body: Any) -> bytes:
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    return json.dumps({**body, "sha256": digest}).encode()


@QUICK
@given(st.data())
def test_a_manifest_that_says_anything_under_a_right_checksum(made: Path, data: st.DataObject) -> None:
    """The checksum guards against accidents: whoever makes a file can make it too."""
    body = json.loads((made / "checkpoint-00000003.json").read_bytes())
    del body["sha256"]
    name = data.draw(st.sampled_from([*(name for name in body if name != "extra"), "file", "pack", "one of a pack", "nothing"]))
    value = data.draw(JSON)
    if name == "file":
        body["server"]["file"] = value
    elif name == "pack":
        body["packs"][0] = value
    elif name == "one of a pack":
        body["packs"][0][data.draw(st.integers(0, 2))] = value
    elif name == "nothing":
        del body[data.draw(st.sampled_from(list(body)))]
    else:
        body[name] = value
    with copied(made) as folder:
        (folder / "checkpoint-00000003.json").write_bytes(signed(body))
        usable(folder, forged=True)


@pytest.mark.parametrize("depth", [500, 900, 2000, 100_000])
def test_tables_in_tables(made: Path, depth: int) -> None:
    with copied(made) as folder:
        (folder / "checkpoint-00000003.json").write_text('{"a":' * depth + "1" + "}" * depth)
        usable(folder)


@pytest.mark.parametrize("name", ["checkpoint-00000009.json", "server-00000009-ab.state", "clients/00000009.pack"])
def test_a_folder_where_a_file_should_be(made: Path, name: str) -> None:
    with copied(made) as folder:
        (folder / name).mkdir()
        latest = Checkpoints(folder, 2).load_latest()
    assert latest is not None
    assert latest.number == 3
    assert len(latest.warnings) == ("checkpoint" in name)

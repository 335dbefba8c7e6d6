"""Every file of a run that a command reads, damaged in every way: a sentence that names it and exit code 2, or it is not needed."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from saved import run_config
from transformers import AutoModelForSequenceClassification
from typer.testing import CliRunner

import fibecfed
from fibecfed import session
from fibecfed.cli import app
from fibecfed.core.errors import UserError
from fibecfed.engine.events import RoundDone


def _half(data: bytes) -> bytes:
    """In the middle of an assignment, where there is one: what ends with a whole line of TOML is a file that a user may have written."""
    cut = data.find(b" = ", len(data) // 2)
    return data[: cut if cut >= 0 else len(data) // 2]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "truncated": _half,
    "last byte lost": lambda data: data.rstrip(b"\n")[:-1],
    "binary": lambda data: bytes(range(256)) * 4,
    "zeros": lambda data: bytes(len(data)),
    "a list": lambda data: b"[1, 2]\n",
    "a string": lambda data: b'"text"\n',
    "a number": lambda data: b"7\n",
    "null": lambda data: b"null\n",
    "an empty table": lambda data: b"{}\n",
    "deep": lambda data: b"[" * 100_000,
    "a long number": lambda data: b"7" * (len(data) + 5_000),
}


def damaged(path: Path, damage: str) -> None:
    path.write_bytes(DAMAGES[damage](path.read_bytes()))


def call(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, list(arguments))
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, " ".join(done.output.split())


@pytest.fixture(scope="module")
def stopped(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was interrupted in its third round."""
    out = tmp_path_factory.mktemp("stopped") / "run"

    def stop(event: object) -> None:
        if isinstance(event, RoundDone) and event.index == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        session.start(run_config(inputs), out, stop)
    return out


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["summary.json", "config.toml", "records.jsonl"])
def test_a_finished_runs_files(name: str, damage: str, whole: Any, tmp_path: Path) -> None:
    shutil.copytree(whole[0], tmp_path / "run")
    damaged(tmp_path / "run" / name, damage)
    for arguments in (("resume",), ("report", "--out", str(tmp_path / "out"))):
        code, text = call(arguments[0], str(tmp_path / "run"), *arguments[1:])
        assert "unexpected" not in text and "Traceback" not in text, text
        assert code in (0, 2), text
        if code == 2:
            assert name in text, text
        else:
            assert name not in _NEEDED[arguments[0]], text
    assert not (tmp_path / "run" / "traceback.txt").exists()


_NEEDED = {"resume": ("summary.json",), "report": ("summary.json", "records.jsonl")}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["config.toml", "records.jsonl"])
def test_an_interrupted_runs_files(name: str, damage: str, stopped: Path, tmp_path: Path) -> None:
    shutil.copytree(stopped, tmp_path / "run")
    damaged(tmp_path / "run" / name, damage)
    kept = (tmp_path / "run" / name).read_bytes()
    code, text = call("resume", str(tmp_path / "run"))
    if name == "records.jsonl" and damage == "last byte lost":  # behind what the checkpoint knows of, and written anew
        assert code == 0, text
        return
    assert code == 2 and name in text, text
    assert "unexpected" not in text and not (tmp_path / "run" / "traceback.txt").exists()
    assert (tmp_path / "run" / name).read_bytes() == kept, "what was left of it is lost"


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("kind", ["checkpoint-*.json", "server-*.state", "clients/*.pack"])
def test_the_newest_checkpoint_gives_way_to_an_older_one_and_without_any_it_is_said(
    kind: str, damage: str, stopped: Path, tmp_path: Path
) -> None:
    for number, which in enumerate((slice(-1, None), slice(None))):
        out = tmp_path / str(number) / "run"
        shutil.copytree(stopped, out)
        for path in sorted((out / "checkpoints").glob(kind))[which]:
            damaged(path, damage)
        code, text = call("resume", str(out))
        assert "unexpected" not in text and code in (0, 2), text
        if which == slice(None) and (kind, damage) != ("clients/*.pack", "last byte lost"):  # which only the newest needs
            assert code == 2 and "no checkpoint can be used" in text and Path(kind).suffix in text, text
        elif code == 0:
            assert "an older checkpoint is used instead" in text, text


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["adapter.json", "adapter.safetensors"])
def test_an_adapter_of_ours(name: str, damage: str, own: Path, inputs: Path, tmp_path: Path) -> None:
    shutil.copytree(own, tmp_path / "adapter")
    damaged(tmp_path / "adapter" / name, damage)
    base = AutoModelForSequenceClassification.from_pretrained(inputs / "backbone", num_labels=2)
    with pytest.raises(UserError, match=r"got no adapter that fibecfed saved|got tensors that do not fit"):
        fibecfed.load_adapter(base, tmp_path / "adapter")


@pytest.fixture(scope="module")
def own(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("own") / "run"
    session.start(run_config(inputs, method={"kind": "adapter"}, federation={"rounds": 1}), out)
    return out / "global"

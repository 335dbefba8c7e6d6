"""A run is resumed where its files were moved, and not with another configuration, other data or another model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from resumed import as_if_nothing_had_happened, begun, facts
from safetensors.torch import load_file, save_file
from saved import adapter_files, interrupted_at, run_config

from fibecfed import session
from fibecfed.config import to_toml
from fibecfed.core.errors import UserError
from fibecfed.engine.events import Warned


def test_another_configuration_is_not_resumed(inputs: Path, tmp_path: Path) -> None:
    begun(inputs, tmp_path, 6)
    (tmp_path / "config.toml").write_text(to_toml(run_config(inputs, training={"learning_rate": 0.01})))
    said = r"not the configuration of the checkpoint: training\.learning_rate: got 0\.01, expected 0\.02; set it back"
    with pytest.raises(UserError, match=said):
        session.resume(tmp_path)
    with pytest.raises(UserError, match=r"got training\.learning_rate, but a resumed run keeps its configuration; .* data\.path"):
        session.resume(tmp_path, overrides=["training.learning_rate=0.01"])


def moved_run(inputs: Path, tmp_path: Path) -> Path:
    """A run that was stopped, and whose data, model and own folder lie under other names since then."""
    shutil.copytree(inputs / "backbone", tmp_path / "old-model")
    shutil.copy(inputs / "reviews.csv", tmp_path / "old.csv")
    config = run_config(inputs, data={"path": str(tmp_path / "old.csv")}, model={"name": str(tmp_path / "old-model")})
    with pytest.raises(KeyboardInterrupt):
        session.start(config, tmp_path / "old-run", interrupted_at(6))
    for old, new in (("old-model", "new-model"), ("old.csv", "new.csv"), ("old-run", "new-run")):
        (tmp_path / old).rename(tmp_path / new)
    return tmp_path / "new-run"


def test_a_run_whose_files_were_moved_is_resumed_from_their_new_place(inputs: Path, whole: Any, tmp_path: Path) -> None:
    out = moved_run(inputs, tmp_path)
    with pytest.raises(
        UserError, match=r"found nothing at model\.name and data\.path; .*: fibecfed resume \S+ model\.name=NEW data\.path=NEW$"
    ):
        session.resume(out)
    events: list[Any] = []
    overrides = [f"data.path={tmp_path / 'new.csv'}", f"model.name={tmp_path / 'new-model'}"]
    with pytest.raises(KeyboardInterrupt):
        session.resume(out, interrupted_at(2), overrides=overrides)
    session.resume(out, events.append)  # config.toml names the new places by now
    assert events[0].completed > 0 and not [event for event in events if isinstance(event, Warned)]
    assert adapter_files(out) == adapter_files(whole[0]) and facts(out) == facts(whole[0])


def test_a_run_whose_files_were_moved_is_resumed_once_its_configuration_names_them(inputs: Path, whole: Any, tmp_path: Path) -> None:
    out = moved_run(inputs, tmp_path)
    text = (out / "config.toml").read_text()
    (out / "config.toml").write_text(text.replace("old.csv", "new.csv").replace("old-model", "new-model"))
    session.resume(out)
    assert adapter_files(out) == adapter_files(whole[0]) and facts(out) == facts(whole[0])


def test_other_bytes_at_the_new_place_are_refused(inputs: Path, tmp_path: Path) -> None:
    out = moved_run(inputs, tmp_path)
    (tmp_path / "new.csv").write_text((tmp_path / "new.csv").read_text().replace("film", "cast"))
    before = (out / "config.toml").read_bytes()
    with pytest.raises(UserError, match=r"data\.sha256: got \w{64}, expected \w{64}, which the run began with"):
        session.resume(out, overrides=[f"data.path={tmp_path / 'new.csv'}", f"model.name={tmp_path / 'new-model'}"])
    assert (out / "config.toml").read_bytes() == before


def test_other_bytes_are_refused_before_the_first_checkpoint_too(inputs: Path, tmp_path: Path) -> None:
    begun(inputs, tmp_path / "run", 1)
    assert not list((tmp_path / "run" / "checkpoints").glob("*.json"))
    (tmp_path / "new.csv").write_text((inputs / "reviews.csv").read_text().replace("film", "cast"))
    before = (tmp_path / "run" / "records.jsonl").read_bytes()
    with pytest.raises(UserError, match=r"data\.sha256: got \w{64}, expected \w{64}, which the run began with"):
        session.resume(tmp_path / "run", overrides=[f"data.path={tmp_path / 'new.csv'}"])
    assert (tmp_path / "run" / "records.jsonl").read_bytes() == before


def test_a_finished_run_cannot_be_made_longer_by_resuming_it(whole: Any) -> None:
    with pytest.raises(UserError, match=r"got federation\.rounds, but a resumed run keeps its configuration"):
        session.resume(whole[0], overrides=["federation.rounds=9"])


def test_a_key_of_a_later_version_does_not_make_the_configuration_another_one(inputs: Path, whole: Any, tmp_path: Path) -> None:
    """Records hold the keys of the version that made them."""
    begun(inputs, tmp_path, 6)
    records = tmp_path / "records.jsonl"
    header, rest = records.read_bytes().split(b"\n", 1)
    table = json.loads(header)
    del table["configuration"]["evaluation"]["batch_size"]
    older = json.dumps(table, ensure_ascii=False, separators=(",", ":")).encode()
    records.write_bytes(older + b" " * (len(header) - len(older)) + b"\n" + rest)
    summary, _ = session.resume(tmp_path)
    assert as_if_nothing_had_happened(tmp_path, summary, whole)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: text.replace("film", "cast"), r"data\.sha256: got \w{64}, expected \w{64}, which the run began with; put the files"),
        (lambda text: text.replace(",good", ",fine"), r"labels: got \['bad', 'fine'\], expected \['bad', 'good'\]"),
        (lambda text: "\n".join(text.splitlines()[:-9]), r"partition\.0\.\w+: got \[\d+, \d+\], expected \[\d+, \d+\]"),
    ],
    ids=["texts", "labels", "rows"],
)
def test_other_data_than_the_run_began_with_is_refused(
    change: Callable[[str], str], said: str, inputs: Path, whole: Any, tmp_path: Path
) -> None:
    reviews, out = tmp_path / "reviews.csv", tmp_path / "run"
    text = (inputs / "reviews.csv").read_text()
    reviews.write_text(text)
    with pytest.raises(KeyboardInterrupt):
        session.start(run_config(inputs, data={"path": str(reviews)}), out, interrupted_at(6))
    reviews.write_text(change(text))
    with pytest.raises(UserError, match=said):
        session.resume(out)
    reviews.write_text(text)
    session.resume(out)
    assert facts(out) == facts(whole[0])


def test_other_weights_than_the_run_began_with_are_refused(inputs: Path, tmp_path: Path) -> None:
    model, out = tmp_path / "backbone", tmp_path / "run"
    shutil.copytree(inputs / "backbone", model)
    with pytest.raises(KeyboardInterrupt):
        session.start(run_config(inputs, model={"name": str(model)}), out, interrupted_at(6))
    weights = {name: 2 * value for name, value in load_file(model / "model.safetensors").items()}
    save_file(weights, model / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"model\.files\.model\.safetensors: got \w{64}, expected \w{64}"):
        session.resume(out)


def test_records_without_a_checksum_of_the_data_are_gone_on_with(inputs: Path, whole: Any, tmp_path: Path) -> None:
    begun(inputs, tmp_path, 6)
    records = tmp_path / "records.jsonl"
    header, rest = records.read_bytes().split(b"\n", 1)
    table = json.loads(header)
    del table["data"]
    older = json.dumps(table, ensure_ascii=False, separators=(",", ":")).encode()
    records.write_bytes(older + b" " * (len(header) - len(older)) + b"\n" + rest)  # as long as the checkpoint knows it to be
    summary, _ = session.resume(tmp_path)
    assert as_if_nothing_had_happened(tmp_path, summary, whole)

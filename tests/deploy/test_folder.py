from __future__ import annotations

import subprocess
import tomllib
from pathlib import Path

import pytest

from fibecfed.config import common, from_table, load
from fibecfed.core.errors import UserError
from fibecfed.deploy.folder import make


def test_the_folder_holds_an_app_a_configuration_without_mistakes_and_flowers_environment(tmp_path: Path) -> None:
    make(tmp_path / "fed")
    app = tomllib.loads((tmp_path / "fed" / "pyproject.toml").read_text())
    flwr = app["tool"]["flwr"]["app"]
    assert flwr["fab-include"] == ["pyproject.toml"] and flwr["config"]["config"] == str(tmp_path / "fed" / "federation.toml")
    config = load(tmp_path / "fed" / "federation.toml").config
    assert config.federation.partition == "machines" and config.data.labels == ("negative", "positive")
    environment = (tmp_path / "fed" / "flower.env").read_text()
    for line in ("FLWR_TELEMETRY_ENABLED=0", "FLWR_DISABLE_UPDATE_CHECK=1", "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION=1"):
        assert f"export {line}" in environment
    connections = tomllib.loads((tmp_path / "fed" / ".flwr" / "config.toml").read_text())
    assert "insecure" not in connections["superlink"]["production"]


@pytest.mark.parametrize("name", ["😀", "$HOME `x`", 'a "b"', "it's"])
def test_a_folder_of_any_name_is_found_by_what_is_in_it(name: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    make(folder)
    app = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))
    assert app["tool"]["flwr"]["app"]["config"]["app"] == str(folder)
    connections = tomllib.loads((folder / ".flwr" / "config.toml").read_text(encoding="utf-8"))
    assert connections["superlink"]["production"]["root-certificates"] == str(folder / "certificates" / "ca.crt")
    shell = ["sh", "-c", '. "$0" && printf %s "$FLWR_HOME"', str(folder / "flower.env")]
    assert subprocess.run(shell, capture_output=True, check=True, encoding="utf-8").stdout == str(folder / ".flwr")


def test_a_folder_with_something_in_it_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("x")
    with pytest.raises(UserError, match="not an empty folder; nothing was changed"):
        make(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def machines(**data: object) -> dict[str, object]:
    federation = {"partition": "machines", "clients": 3, "clients_per_round": 2}
    return {"data": {"labels": ["a", "b"], **data}, "federation": federation}


def test_what_a_machine_sets_for_itself_is_not_in_what_it_must_share(tmp_path: Path) -> None:
    server = common(from_table(machines()), "abc")
    own = {**machines(path="mine.csv", text_column="t", label_column="l"), "resources": {"threads": 2}, "training": {"device": "cpu"}}
    assert common(from_table(own), "abc") == server
    assert common(from_table({**machines(), "seed": 1}), "abc") != server != common(from_table(machines()), "other weights")


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ({**machines(), "data": {}}, 'data.labels: not set, but with `federation.partition` = "machines"'),
        (machines(label_noise=0.1), "data.label_noise: got noise"),
        ({**machines(), "data": {"task": "sst2"}}, "data.task: got a task"),
        ({"data": {"path": "x"}, "federation": {"client_names": ["a"]}}, "federation.client_names: got"),
    ],
)
def test_what_does_not_go_with_machines_is_refused(table: dict[str, object], sentence: str) -> None:
    with pytest.raises(UserError) as error:
        from_table(table)
    assert sentence in str(error.value)


@pytest.mark.parametrize("names", [["a", "b"], ["a", "a", "b"], ["a", "b", "c/d"]])
def test_names_of_clients_are_checked(names: list[str]) -> None:
    table = machines()
    table["federation"] = {**table["federation"], "client_names": names}  # pyright: ignore[reportGeneralTypeIssues]
    with pytest.raises(UserError, match="client_names: got"):
        from_table(table)

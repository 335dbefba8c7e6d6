"""`fibecfed push`, with a hub that is a folder: what is published, and a sentence for whatever keeps it from being so."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError
from typer.testing import CliRunner

from fibecfed import cli


class FakeHub:
    """Repositories as folders, and what was asked of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[dict[str, Any]] = []
        self.error: Exception | None = None

    def create_repo(self, repo: str, **keywords: Any) -> None:
        if self.error is not None:
            raise self.error
        self.asked.append({"repo": repo, **keywords})
        (self.folder / repo).mkdir(parents=True, exist_ok=keywords["exist_ok"])

    def list_repo_files(self, repo: str, **keywords: Any) -> list[str]:
        return [path.name for path in (self.folder / repo).iterdir()]

    def upload_folder(self, *, repo_id: str, folder_path: Path, **keywords: Any) -> str:
        self.asked.append(keywords)
        shutil.copytree(folder_path, self.folder / repo_id, dirs_exist_ok=True)
        return f"https://hub/{repo_id}/commit/1"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    fake = FakeHub(tmp_path / "hub")
    monkeypatch.setattr("huggingface_hub.HfApi", lambda: fake)
    return fake


def call(*arguments: str | Path) -> tuple[int, str]:
    result = CliRunner().invoke(cli.app, ["push", *map(str, arguments)])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert "Traceback" not in result.output
    return result.exit_code, " ".join(result.output.split())


def test_the_adapter_and_its_card_are_published_in_a_private_repository(run: Path, hub: FakeHub) -> None:
    assert call(run, "owner/name") == (0, "published: https://hub/owner/name/commit/1")
    published = {path.name: path.read_bytes() for path in (hub.folder / "owner" / "name").iterdir()}
    assert published == {path.name: path.read_bytes() for path in (run / "global").iterdir()} and b"# Adapter of" in published["README.md"]
    assert [one.get("private") for one in hub.asked] == [True, None]
    assert hub.asked[1]["commit_message"] == "adapter of the global model, made with fibecfed"


def test_merged_weights_of_a_client_in_a_public_one(run: Path, hub: FakeHub) -> None:
    assert call(run, "owner/name", "--client", "1", "--merged", "--public")[0] == 0
    card = (hub.folder / "owner" / "name" / "README.md").read_text()
    assert hub.asked[0]["private"] is False and "# Merged model of client 1" in card
    assert (hub.folder / "owner" / "name" / "model.safetensors").is_file()


def test_a_repository_with_files_is_left_alone_unless_it_is_to_be_updated(run: Path, hub: FakeHub) -> None:
    there = hub.folder / "owner" / "name"
    there.mkdir(parents=True)
    (there / "other.bin").write_text("mine")
    code, said = call(run, "owner/name")
    assert code == 2 and "owner/name has files already (other.bin), and nothing is overwritten" in said
    assert [path.name for path in there.iterdir()] == ["other.bin"]
    assert call(run, "owner/name", "--update")[0] == 0 and (there / "other.bin").read_text() == "mine"


@pytest.mark.parametrize(
    ("error", "code", "problem"),
    [
        (HFValidationError("Repo id must be ..."), 2, "expected owner/name"),
        (LocalTokenNotFoundError("no token"), 2, "set HF_TOKEN, or run: hf auth login"),
        (HfHubHTTPError("403 Forbidden", response=SimpleNamespace(status_code=403, headers={}, request=None)), 2, "does not let you write"),
        (HfHubHTTPError("500 Error", response=SimpleNamespace(status_code=500, headers={}, request=None)), 1, "500 Error"),
        (ConnectionError("no route"), 1, "the hub cannot be reached (no route)"),
    ],
    ids=["name", "token", "rights", "server", "network"],
)  # pyright: ignore[reportArgumentType]
def test_what_the_hub_says_is_a_sentence(error: Exception, code: int, problem: str, run: Path, hub: FakeHub) -> None:
    hub.error = error
    found, said = call(run, "owner/name")
    assert found == code and problem in said


def test_a_hub_that_cannot_be_reached_is_told_in_a_sentence(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    real = huggingface_hub.HfApi
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: real(endpoint=f"http://127.0.0.1:{port}", token="hf_none"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    code, said = call(run, "owner/name")
    assert code == 1 and "the hub cannot be reached" in said and "Traceback" not in said


def test_a_run_without_the_model_asks_the_hub_for_nothing(run: Path, hub: FakeHub) -> None:
    assert call(run, "owner/name", "--client", "nobody")[0] == 2 and hub.asked == []

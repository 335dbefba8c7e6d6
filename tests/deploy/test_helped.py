"""Federations across machines whose sums a helper takes the masks off: the simulator's bits, and a helper that is lost."""

from __future__ import annotations

import json
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("flwr", reason="needs Flower: pip install fibecfed[flower], or make test-flower")

from made_flower import be_an_app, stop_time
from rich.console import Console
from served import Killed, resident, serve, write_files
from tiny_federation import NAMES, outcome, rounds_of
from typer.testing import CliRunner

from fibecfed import session
from fibecfed.cli import app
from fibecfed.config import load
from fibecfed.core.errors import RunFailed, UserError
from fibecfed.core.wire import decode, encode
from fibecfed.deploy import client as client_module
from fibecfed.deploy.client import ClientArguments, show_key
from fibecfed.deploy.helper import COMMAND, limits_of, own_keys, resident_helper, run
from fibecfed.deploy.status import Status
from fibecfed.engine.checkpoint import Checkpoints
from fibecfed.engine.flower.envelope import Reply, Request, packed
from fibecfed.engine.flower.helper import ResidentHelper
from fibecfed.engine.helped import HELPED, HelpedSums
from fibecfed.privacy.options import HELPER
from fibecfed.secure import identity

pytestmark = [pytest.mark.flower, pytest.mark.filterwarnings("ignore")]

HELPED_BY = """
[method]
kind = "lora"
[privacy]
secure_aggregation = "helper"
min_clients = 3
dropouts = 0
{more}
"""
KEYS = 'rounds = 2\nclients_per_round = 3\non_failure = "drop"\n'
PRIVATE = 'unit = "client"\nnoise_multiplier = 1.0\nclip_norm = 1.0\ndelta = 1e-3\n'


@pytest.fixture(autouse=True)
def _an_app(monkeypatch: pytest.MonkeyPatch) -> None:
    be_an_app()
    stop_time(monkeypatch)


def own_key(folder: Path, name: str) -> str:
    """What `--show-key` prints."""
    return show_key(ClientArguments(folder / "no.toml", (), folder / "no.sock", folder / name, name), COMMAND)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the model, the data, keys, sim.toml for the simulator and federation.toml for machines."""
    folder = tmp_path_factory.mktemp("helped")
    pinned = "[privacy.keys]\n" + "\n".join(own_key(folder, name) for name in (*NAMES, HELPER)) + "\n"
    return write_files(folder, KEYS + "max_samples = 100\n", HELPED_BY.format(more="") + pinned)


@pytest.fixture(scope="module")
def simulated(here: Path) -> Path:
    session.start(load(here / "sim.toml").config, here / "sim")
    return here / "sim"


class Parties:
    """Clients and the helper, each with a copy of its key in a folder of its own, and what the helper has said."""

    def __init__(self, here: Path, folder: Path) -> None:
        self.here, self.folder, self.said = here, folder, list[str]()
        for name in (*NAMES, HELPER):
            (folder / name).mkdir()
            (folder / name / identity.KEY).write_bytes((here / name / identity.KEY).read_bytes())
        HelpedSums.begin(folder / HELPER)
        self.clients = {name: resident(here, name, folder / name) for name in NAMES}
        self.helper = self.started_helper()

    def started_helper(self) -> ResidentHelper:
        config, folder = load(self.here / "federation.toml").config, self.folder / HELPER
        return resident_helper(config, limits_of(config), "of the helper", folder, self.said.append, Status(folder))

    def serve(self, again: Path | None = None, helper: Any = None) -> Path:
        return serve(self.here, self.folder / "runs", self.clients, again, helper=helper or self.helper.answer)


@pytest.fixture
def parties(here: Path, tmp_path: Path) -> Parties:
    return Parties(here, tmp_path)


def test_the_simulators_bits_and_no_update_on_the_way(parties: Parties, simulated: Path) -> None:
    out = parties.serve()
    assert outcome(out) == outcome(simulated)
    assert json.loads((out / "summary.json").read_text())["secure_aggregation"]["kind"] == "helper"
    assert json.loads((out / "flower.json").read_text())["clients"] == list(NAMES)
    for one, other in zip(rounds_of(out), rounds_of(simulated), strict=True):
        assert not one.failures and one.notes["sum"] == other.notes["sum"] and not one.steps and one.notes[HELPER]["bytes_up"] > 0
        assert one.fields_up["sum"] == other.fields_up["sum"]
    assert [text.split(":")[0] for text in parties.said] == ["hello", "key", "unmask", "unmask"]
    log = parties.folder / HELPER / HELPED
    assert log.read_bytes().count(b"\n") == 2 and stat.S_IMODE(log.stat().st_mode) == 0o600


def test_a_server_that_is_killed_goes_on_with_the_same_sums(parties: Parties, simulated: Path) -> None:
    """It dies before its checkpoint, when the helper has added up the masks of the round; the helper is started again meanwhile."""
    true, calls = Checkpoints.save, list[int]()

    def dies(*args: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise Killed
        return true(*args, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoints, "save", dies)
        with pytest.raises(Killed):
            parties.serve()
    (out,) = (parties.folder / "runs").iterdir()
    parties.helper = parties.started_helper()
    parties.serve(out)
    assert outcome(out) == outcome(simulated)
    assert (parties.folder / HELPER / HELPED).read_bytes().count(b"\n") == 2


def test_a_helper_that_fails_ends_the_run_which_can_be_resumed(parties: Parties, simulated: Path) -> None:
    def failing(blob: bytes) -> bytes:
        request = decode(Request, blob)
        reply = decode(Reply, parties.helper.answer(blob))
        return encode(
            replace(reply, status="failed", reason="its disk is full") if (request.action, request.index) == ("unmask", 1) else reply
        )

    with pytest.raises(RunFailed, match=r"tune round 1: the helper did not help, .* can be used: helper: failed: its disk is full"):
        parties.serve(helper=failing)
    (out,) = (parties.folder / "runs").iterdir()
    parties.serve(out)
    assert outcome(out) == outcome(simulated)


def test_a_helper_that_never_comes_ends_the_run_in_a_sentence(parties: Parties) -> None:
    with pytest.raises(RunFailed, match=r"the helper did not help, .*: helper is not connected"):
        serve(parties.here, parties.folder / "runs", parties.clients)


def test_a_run_that_is_private_for_clients_too(tmp_path: Path) -> None:
    pinned = "[privacy.keys]\n" + "\n".join(own_key(tmp_path, name) for name in (*NAMES, HELPER)) + "\n"
    write_files(tmp_path, KEYS, HELPED_BY.format(more=PRIVATE) + pinned)
    (tmp_path / "own").mkdir()
    out = Parties(tmp_path, tmp_path / "own").serve()
    summary = json.loads((out / "summary.json").read_text())
    assert summary["privacy"]["secure_aggregation"] and summary["secure_aggregation"]["kind"] == "helper"
    assert all(one.notes[HELPER]["bytes_up"] > 8 * 100 for one in rounds_of(out))


@pytest.mark.parametrize("action", ["train", "evaluate", "finish", "share"])
def test_the_helper_does_nothing_else(action: str, parties: Parties) -> None:
    request = Request(action, "0" * 16, HELPER, "", "tune", 0, 1, 0, packed(b""))
    reply = decode(Reply, parties.helper.answer(encode(request)))
    assert reply.status == "refused" and "this is the helper, which adds up masks and does nothing else" in reply.reason
    for wrong in (replace(request, run="x"), replace(request, client="a")):
        assert decode(Reply, parties.helper.answer(encode(wrong))).status == "refused"


def test_a_helper_with_other_limits_is_not_asked(here: Path, parties: Parties) -> None:
    config = load(here / "federation.toml", ("privacy.range=0.25",)).config
    parties.helper = replace(parties.helper, config=own_keys(config))
    with pytest.raises(RunFailed, match=r"client helper has another configuration: privacy.range is 0.25 on the client and 0.5 on the"):
        parties.serve()


def test_what_a_helper_cannot_start_with_is_said(here: Path, tmp_path: Path) -> None:
    def started(file: Path, folder: Path) -> None:
        run(ClientArguments(file, (), tmp_path / "s", folder, HELPER), print)

    with pytest.raises(UserError, match=r"identity.key: the key of client helper is missing.*have `fibecfed helper --show-key` make a new"):
        started(here / "federation.toml", tmp_path / "new")
    text = (here / "federation.toml").read_text()
    (tmp_path / "pairs.toml").write_text(text.replace('"helper"\nmin', '"pairs"\nmin').split('"helper" =')[0])
    with pytest.raises(UserError, match=r'privacy.secure_aggregation: got "pairs", expected "helper", without which a federation has none'):
        started(tmp_path / "pairs.toml", tmp_path / "new")
    folder = tmp_path / "damaged"
    folder.mkdir()
    (folder / identity.KEY).write_bytes((here / HELPER / identity.KEY).read_bytes())
    (folder / HELPED).write_text("{}\n")
    with pytest.raises(UserError, match=r"helped.jsonl: line 1 is damaged, and says which sums .* give the helper a new --folder"):
        started(here / "federation.toml", folder)
    (folder / HELPED).unlink()
    with pytest.raises(UserError, match=r"helped.jsonl: is missing, and says which sums .* give the helper a new --folder"):
        started(here / "federation.toml", folder)


def test_no_client_has_the_helpers_name(here: Path, tmp_path: Path) -> None:
    options = ClientArguments(here / "federation.toml", (), tmp_path / "s", tmp_path / "own", HELPER)
    with pytest.raises(UserError, match="--name: got 'helper', which is the name of the helper"):
        client_module.run(options, print, Console(quiet=True))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ((), "--config: not given; give the federation's configuration with it"),
        (("--config", "x.toml", "--json"), "--json: got it without --status"),
        (("--config", "x.toml", "--key", "k"), "--key: got it without --superlink"),
        (("--config", "x.toml"), "x.toml: got no such file"),
        (("--status", "--folder", "nowhere"), "nowhere/status.json does not exist"),
    ],
)
def test_a_mistake_on_the_command_line_is_a_sentence(options: tuple[str, ...], text: str) -> None:
    done = CliRunner().invoke(app, ["helper", *options])
    assert done.exit_code == 2 and text in done.output


def test_the_command_prints_the_line_that_pins_the_key(tmp_path: Path) -> None:
    command = ["helper", "--config", str(tmp_path / "not-yet.toml"), "--folder", str(tmp_path / "own"), "--show-key"]
    first, again = (CliRunner().invoke(app, command).output for _ in range(2))
    assert (tmp_path / "own" / HELPED).read_bytes() == b""
    assert first == again and first.startswith('"helper" = "') and len(first) == len('"helper" = ""\n') + 64

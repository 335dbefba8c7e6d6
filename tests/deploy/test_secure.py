"""Federations across machines with secure aggregation: the simulator's bits, keys that are pinned, and a server that lies."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("flwr", reason="needs Flower: pip install fibecfed[flower], or make test-flower")

from made_flower import be_an_app, stop_time
from rich.console import Console
from served import Killed, resident, serve, write_files
from tiny_federation import NAMES, outcome, rounds_of

from fibecfed import session
from fibecfed.config import load
from fibecfed.core.errors import RunFailed, UserError
from fibecfed.core.wire import decode, encode
from fibecfed.deploy import client as client_module
from fibecfed.deploy.client import ClientArguments, show_key
from fibecfed.engine.checkpoint import Checkpoints
from fibecfed.engine.flower.envelope import Reply, Request, packed, unpacked
from fibecfed.engine.flower.resident import Resident
from fibecfed.engine.sum_exchanges import Told, remembered
from fibecfed.secure import identity

pytestmark = [pytest.mark.flower, pytest.mark.filterwarnings("ignore")]

SECURE = """
[method]
kind = "lora"
[privacy]
secure_aggregation = true
min_clients = 3
dropouts = 0
"""
KEYS = 'rounds = 2\nclients_per_round = 3\nmax_samples = 100\non_failure = "drop"\n'


@pytest.fixture(autouse=True)
def _an_app(monkeypatch: pytest.MonkeyPatch) -> None:
    be_an_app()
    stop_time(monkeypatch)


def own_key(folder: Path, name: str) -> str:
    """What `fibecfed client --show-key` prints."""
    return show_key(ClientArguments(folder / "no.toml", (), folder / "no.sock", folder / name, name))


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the model, the data, the clients' keys, sim.toml for the simulator and federation.toml for machines."""
    folder = tmp_path_factory.mktemp("secure")
    pinned = "[privacy.keys]\n" + "\n".join(own_key(folder, name) for name in NAMES) + "\n"
    return write_files(folder, KEYS, SECURE + pinned)


@pytest.fixture
def told() -> dict[str, list[str]]:
    return {name: [] for name in NAMES}


@pytest.fixture
def clients(here: Path, tmp_path: Path, told: dict[str, list[str]]) -> dict[str, Resident]:
    found: dict[str, Resident] = {}
    for name in NAMES:
        (tmp_path / name).mkdir()
        (tmp_path / name / identity.KEY).write_bytes((here / name / identity.KEY).read_bytes())
        found[name] = resident(here, name, tmp_path / name, told[name].append)
    return found


@pytest.fixture(scope="module")
def simulated(here: Path) -> Path:
    session.start(load(here / "sim.toml").config, here / "sim")
    return here / "sim"


def test_the_simulators_bits_and_no_update_on_the_way(here: Path, clients: dict[str, Resident], simulated: Path, tmp_path: Path) -> None:
    actions = list[str]()

    def heard(name: str) -> Callable[[bytes], bytes]:
        def answer(blob: bytes) -> bytes:
            actions.append(decode(Request, blob).action)
            return clients[name].answer(blob)

        return answer

    out = serve(here, tmp_path / "runs", clients, instead={name: heard(name) for name in NAMES})
    assert outcome(out) == outcome(simulated)
    assert set(actions) - {"start"} == {"hello", "train", "share", "mask", "confirm", "reveal", "finish"}
    summary = json.loads((out / "summary.json").read_text())
    assert summary["adapters"]["personal"] == 0 and summary["clients_that_took_part"] == 3
    for one, other in zip(rounds_of(out), rounds_of(simulated), strict=True):
        assert not one.failures and one.notes == other.notes and not one.steps and one.fields_up["sum"] == other.fields_up["sum"]


def test_a_server_that_is_killed_goes_on_with_the_same_sums(
    here: Path, clients: dict[str, Resident], simulated: Path, tmp_path: Path
) -> None:
    """It dies before its checkpoint, when clients have helped to unmask the round: they help again, since the sum is the same."""
    true, calls = Checkpoints.save, list[int]()

    def dies(*args: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise Killed
        return true(*args, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoints, "save", dies)
        with pytest.raises(Killed):
            serve(here, tmp_path / "runs", clients)
    (out,) = (tmp_path / "runs").iterdir()
    serve(here, tmp_path / "runs", clients, again=out)
    assert outcome(out) == outcome(simulated)


def test_a_server_that_names_other_survivors_is_named_by_its_clients(
    here: Path, clients: dict[str, Resident], told: dict[str, list[str]], tmp_path: Path
) -> None:
    def lied_to(blob: bytes) -> bytes:
        request = decode(Request, blob)
        if request.action != "confirm":
            return clients["a"].answer(blob)
        fewer = encode(Told(("a", "b")))
        lie = Request(
            request.action, request.run, request.client, request.config, request.phase, request.index, request.num_rounds, request.number,
            packed(fewer),
        )  # fmt: skip
        return clients["a"].answer(encode(lie))

    with pytest.raises(RunFailed, match="secure aggregation got the signatures of 2 of 3 clients, expected at least 3"):
        serve(here, tmp_path / "runs", clients, instead={"a": lied_to})
    assert any("refused (the server continues with the answers of 2 clients, expected at least 3)" in text for text in told["a"])
    assert not any(remembered(folder) for name in NAMES for folder in (tmp_path / name).iterdir() if folder.is_dir())


def test_a_plain_broadcast_is_not_answered_with_an_update(here: Path, clients: dict[str, Resident], tmp_path: Path) -> None:
    replies = list[Reply]()

    def bare(blob: bytes) -> bytes:
        request = decode(Request, blob)
        if request.action == "train":
            opening = unpacked(request.payload)
            plain = Request(
                "train", request.run, "a", request.config, request.phase, request.index, request.num_rounds, request.number,
                packed(opening[:100]),
            )  # fmt: skip
            replies.append(decode(Reply, clients["a"].answer(encode(plain))))
        return clients["a"].answer(blob)

    serve(here, tmp_path / "runs", clients, instead={"a": bare})
    assert replies and all(reply.status in ("failed", "refused") and not len(reply.payload) for reply in replies)


def test_a_key_is_made_once_shown_and_readable_by_its_owner_alone(tmp_path: Path) -> None:
    first = own_key(tmp_path, "a")
    assert first == own_key(tmp_path, "a") and first.startswith('"a" = "') and len(first) == len('"a" = ""') + 64
    assert stat.S_IMODE((tmp_path / "a" / identity.KEY).stat().st_mode) == 0o600


def test_a_lost_damaged_or_unpinned_key_is_refused_in_a_sentence(here: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"identity.key: the key of client a is missing, which others know its messages by; restore it"):
        resident(here, "a", tmp_path)
    (tmp_path / identity.KEY).write_bytes((here / "b" / identity.KEY).read_bytes())
    with pytest.raises(UserError, match=r"identity.key: got a key that is not the one pinned for client a \(privacy.keys\)"):
        resident(here, "a", tmp_path)
    (tmp_path / identity.KEY).write_text("zz")
    with pytest.raises(
        UserError, match=r"identity.key: got no key of 64 hexadecimal digits.* move it away, have `fibecfed client --show-key`"
    ):
        resident(here, "a", tmp_path)
    with pytest.raises(UserError, match=r"privacy.keys: got no key of client x, expected one"):
        identity.own(here / "a", "x", {})


def test_a_client_looks_for_its_key_before_it_loads_anything(here: Path, tmp_path: Path) -> None:
    data = tmp_path / "broken.csv"
    data.write_bytes(b"\xff\x00")
    options = ClientArguments(here / "federation.toml", (f"data.path={data}",), tmp_path / "s", tmp_path / "own", "a")
    for start in (
        lambda: client_module.run(options, print, Console(quiet=True)),
        lambda: client_module.try_out(options, Console(quiet=True)),
    ):
        with pytest.raises(UserError, match=r"identity.key: the key of client a is missing"):
            start()

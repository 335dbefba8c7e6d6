from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("flwr", reason="needs Flower: pip install fibecfed[flower], or make test-flower")

import torch
from bad_updates import BAD
from made import KEY, federation, made_data, made_method, made_task
from made_flower import CONFIG, RUN, Other, ask, be_an_app, connected, gone, residents

from fibecfed.core.errors import RunFailed
from fibecfed.core.trees import checksum
from fibecfed.core.types import Failure, Round
from fibecfed.core.wire import decode, encode
from fibecfed.engine.flower import connections
from fibecfed.engine.flower import transport as transport_module
from fibecfed.engine.flower.envelope import Finish, Hello, Reply, Request, packed, unpacked
from fibecfed.engine.flower.resident import Resident
from fibecfed.engine.flower.transport import FlowerTransport
from fibecfed.engine.loop import Step, run
from fibecfed.engine.options import FederationOptions
from fibecfed.engine.runtime import Scored
from fibecfed.engine.transport import exchange

pytestmark = pytest.mark.flower

DROP = FederationOptions(on_failure="drop", round_timeout_s=60.0, max_samples=10_000, max_update_norm=100.0)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    be_an_app()
    monkeypatch.setattr(transport_module, "POLL_S", 0.01)
    monkeypatch.setattr(connections, "HANDSHAKE_S", 1.0)


def trained(
    transport: FlowerTransport, *, rounds: int = 4, per_round: int = 2, start: int = 0, server: Any = None, **more: Any
) -> list[Step]:
    method, task = made_method(rounds=rounds), made_task()
    first = method.init(task, KEY.fold("run", "init")) if server is None else server
    return list(run(method, transport, made_data().clients, per_round=per_round, key=KEY.fold("run"), server=first, start=start, **more))


def facts(steps: list[Step]) -> list[Any]:
    """Everything recorded that must not depend on the engine."""
    return [
        (s.record.phase, s.record.index, s.record.cohort, s.record.bytes_down, s.record.bytes_up, s.record.fields_up, s.record.fields_down,
         s.record.steps, s.record.examples, s.record.loss, s.record.failures)
        for s in steps
    ]  # fmt: skip


def test_server_state_records_and_what_stays_on_the_clients_are_the_simulators_byte_for_byte(tmp_path: Path) -> None:
    simulated = federation(made_method())
    expected = simulated.finish()
    clients = residents(tmp_path)
    got = trained(connected(clients)[0])
    assert encode(got[-1].server) == encode(expected[-1].server)
    assert facts(got) == facts(expected)
    kept = {client: sorted((tmp_path / client / RUN).glob("state-*"))[-1].read_bytes() for client in simulated.states.clients() if
            list((tmp_path / client / RUN).glob("state-*"))}  # fmt: skip
    assert kept == {client: simulated.states.get(client) for client in simulated.states.clients()}


def test_a_server_that_goes_back_to_a_checkpoint_ends_with_the_same_bits(tmp_path: Path) -> None:
    """Killed after round 4, with a checkpoint after round 2: clients are ahead of the server, and forget what it has not seen."""
    whole = trained(connected(residents(tmp_path / "whole"))[0])
    clients = residents(tmp_path / "killed")
    steps = trained(connected(clients)[0])[:4]
    again = connected(residents(tmp_path / "killed"), completed=2)[0]  # the clients' processes are new as well
    rest = trained(again, start=2, server=decode(type(steps[1].server), encode(steps[1].server)))
    assert encode(rest[-1].server) == encode(whole[-1].server) and facts(rest) == facts(whole[2:])
    for client in clients:
        numbers = {path.name: path.read_bytes() for path in (tmp_path / "killed" / client / RUN).glob("state-*")}
        assert numbers == {path.name: path.read_bytes() for path in (tmp_path / "whole" / client / RUN).glob("state-*")}


def test_personal_models_are_saved_by_their_clients_and_only_a_checksum_comes_back(tmp_path: Path) -> None:
    simulated = federation(made_method())
    steps = simulated.finish()
    last, phase = steps[-1].now, simulated.method.phases[-1]
    blob = encode(phase.broadcast(steps[-1].server, last))
    transport, _, told = connected(residents(tmp_path))
    trained(transport)
    digests = transport.finish(dict.fromkeys(made_data().clients, Finish(packed(blob), "", "{}", "{}")), last, 5)
    expected = {c: checksum(simulated.runtime.personal_params(c, blob, last)) for c in simulated.states.clients()}
    assert digests == expected and not told
    assert {c: (tmp_path / c / RUN / "adapter" / "checksum").read_text() for c in expected} == expected


def test_counts_of_an_evaluation_are_the_simulators(tmp_path: Path) -> None:
    simulated = federation(made_method())
    steps = simulated.finish()
    transport, _, _ = connected(residents(tmp_path))
    trained(transport)
    blob = encode(simulated.method.phases[-1].broadcast(steps[-1].server, steps[-1].now))
    requests = dict.fromkeys(made_data().clients, blob)
    expected = dict(exchange(simulated.transport.inner, "evaluate", steps[-1].now, requests))
    got = dict(exchange(transport, "evaluate", steps[-1].now, requests))
    assert got == expected and all(isinstance(decode(Scored, reply), Scored) for reply in got.values())


def test_another_configuration_is_refused_naming_the_keys_and_both_values(tmp_path: Path) -> None:
    clients = residents(tmp_path)
    clients["1"] = replace(clients["1"], config={**CONFIG, "training.batch_size": 8, "data.max_length": 9})
    transport, _, told = connected(clients)
    (reply,) = (reply for _, reply in exchange(transport, "train", Round("tune", 0, 4, 1), {"1": b""}, 1.0))
    sentence = "client 1 has another configuration: data.max_length is 9 on the client and not set on the server; "
    sentence += "training.batch_size is 8 on the client and 4 on the server"
    assert isinstance(reply, Failure) and sentence in reply.reason and sentence in told


def test_a_client_that_starts_again_with_another_configuration_is_refused_in_the_middle_of_a_run(tmp_path: Path) -> None:
    clients = residents(tmp_path)
    transport, grid, _ = connected(clients)
    assert all(not isinstance(reply, Failure) for _, reply in exchange(transport, "train", Round("importance", 0, 1, 0), {"0": ask()}, 5))
    grid.nodes[1] = replace(clients["0"], config={**CONFIG, "seed": 8}).answer
    ((_, reply),) = exchange(transport, "train", Round("importance", 0, 1, 0), {"0": ask()}, 5)
    assert isinstance(reply, Failure) and "another configuration: seed is 8 on the client and 7 on the server" in reply.reason


def test_a_client_that_draws_other_initial_tensors_is_sent_the_servers_once_counted_and_ends_with_the_same_bits(tmp_path: Path) -> None:
    expected = trained(connected(residents(tmp_path / "a"))[0])
    clients = residents(tmp_path / "b", task=Other(made_task()))
    transport, _, told = connected(clients)
    got = trained(transport)
    assert encode(got[-1].server) == encode(expected[-1].server)
    noted = [(client, note["initial_bytes"]) for step in got for client, note in step.record.notes.items()]
    took_part = sorted({client for step in got for client in step.record.cohort})
    size = len(encode(connections.Start(made_task().init_params(KEY.fold("run", "init")))))
    assert sorted(noted) == [(client, size) for client in took_part] and len(told) == len(noted)


def test_a_late_answer_is_not_taken_for_one_of_the_round_that_is_under_way(tmp_path: Path) -> None:
    clients = residents(tmp_path)
    transport, grid, _ = connected(clients)
    list(exchange(transport, "train", Round("importance", 0, 1, 0), {"0": ask()}, 5))
    grid.nodes[1] = None
    ((_, late),) = exchange(transport, "train", Round("importance", 0, 2, 0), {"0": ask()}, 0.05)
    assert late == Failure("client 0 did not answer within 0.05 s")
    grid.deliver_late(clients["0"].answer)
    ((_, still),) = exchange(transport, "train", Round("importance", 1, 2, 1), {"0": ask()}, 0.05)
    assert isinstance(still, Failure) and "did not answer within" in still.reason


def test_an_answer_to_another_round_run_or_client_is_refused(tmp_path: Path) -> None:
    clients = residents(tmp_path)
    for change in ({"number": 5}, {"run": "f" * 16}, {"client": "1"}, {"action": "evaluate"}):
        transport, grid, _ = connected(clients)
        grid.nodes[1] = on_reply(clients["0"], lambda reply, change=change: replace(reply, **change))
        ((_, reply),) = exchange(transport, "train", Round("importance", 0, 1, 0), {"0": ask()}, 5)
        assert isinstance(reply, Failure) and "its answer is for another request" in reply.reason


def on_reply(resident: Resident, change: Callable[[Reply], Reply]) -> Callable[[bytes], bytes]:
    """The resident, whose replies to all but a handshake are changed."""

    def answer(blob: bytes) -> bytes:
        reply = resident.answer(blob)
        return reply if decode(Request, blob).action == "hello" else encode(change(decode(Reply, reply)))

    return answer


def test_a_client_that_goes_away_and_comes_back_behind_another_node_takes_part_again(tmp_path: Path) -> None:
    clients = residents(tmp_path)
    transport, grid, _ = connected(clients)
    grid.nodes[1] = gone
    ((_, reply),) = exchange(transport, "train", Round("importance", 0, 1, 0), {"0": ask()}, 5)
    assert isinstance(reply, Failure) and "went away" in reply.reason
    del grid.nodes[1]
    ((_, reply),) = exchange(transport, "train", Round("importance", 0, 1, 0), {"0": ask()}, 1)
    assert isinstance(reply, Failure) and "client 0 is not connected" in reply.reason
    grid.nodes[77] = clients["0"].answer
    ((_, reply),) = exchange(transport, "train", Round("importance", 0, 1, 0), {"0": ask()}, 5)
    assert isinstance(reply, bytes)


def test_a_run_that_goes_on_waits_for_a_client_whose_first_greeting_was_lost_and_says_so(tmp_path: Path) -> None:
    """Its SuperNode was still busy with a message of the run that was killed."""
    clients = residents(tmp_path)
    transport, grid, told = connected(clients)
    grid.nodes[2] = None

    def say(text: str) -> None:
        told.append(text)
        grid.nodes[2] = clients["1"].answer

    transport.say = say
    assert transport.wait_for(3, ("0", "1", "2"), 60.0) == ("0", "1", "2")
    assert told == ["waiting up to 60 s for 1"]
    ((client, reply),) = exchange(transport, "train", Round("importance", 0, 1, 0), {"1": ask()}, 5)
    assert client == "1" and isinstance(reply, bytes)


def test_two_clients_of_one_name_are_told_apart(tmp_path: Path) -> None:
    clients = residents(tmp_path)
    clients["1"] = replace(clients["1"], name="0")
    transport, _, told = connected(clients)
    assert set(transport.wait_for(4, None, 1.0)) == {"0", "2", "3", "4"}
    assert "two clients are called 0; start one of them with another --name" in told


def test_the_clients_are_those_that_are_named_or_the_first_that_come(tmp_path: Path) -> None:
    clients = residents(tmp_path)
    assert connected(clients)[0].wait_for(3, None, 1.0) == ("0", "1", "2")
    assert connected(clients)[0].wait_for(2, ("9", "1"), 0.0) == ("1", "9")
    with pytest.raises(RunFailed, match=r"5 of 6 clients are here \(0, 1, 2, 3, 4\)"):
        connected(clients)[0].wait_for(6, None, 0.0)
    with pytest.raises(RunFailed, match=r"seed is 7 on the client and 1 on the server"):
        connected(clients, config={**CONFIG, "seed": 1})[0].wait_for(1, None, 0.0)


# ---- updates that are not what they must be


def run_with(tmp_path: Path, bad: Callable[[Reply], Reply] | None) -> list[Step]:
    """A run whose client 2 answers its tuning rounds badly; None: not at all."""
    clients = residents(tmp_path)
    transport, grid, _ = connected(clients)
    honest = clients["2"].answer

    def answer(blob: bytes) -> bytes:
        request = decode(Request, blob)
        if request.phase != "tune":
            return honest(blob)
        if bad is None:
            raise OSError("went away")
        return encode(bad(decode(Reply, honest(blob))))

    grid.nodes[3] = answer
    return trained(transport, rounds=2, per_round=3, tolerance=DROP)


@pytest.fixture(scope="module")
def without(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The server's state of a run in which that client never answers."""
    be_an_app()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transport_module, "POLL_S", 0.01)
        steps = run_with(tmp_path_factory.mktemp("without"), None)
    assert any("2" in step.record.failures for step in steps)
    return encode(steps[-1].server)


@pytest.mark.parametrize("kind", BAD)
def test_an_update_is_rejected_by_name_and_the_result_is_that_without_its_sender(tmp_path: Path, kind: str, without: bytes) -> None:
    steps = run_with(tmp_path, lambda reply: replace(reply, payload=packed(BAD[kind](unpacked(reply.payload)))))
    rejected = [step.record for step in steps if "2" in step.record.failures]
    assert rejected and all(record.refused == ("2",) and "client 2, tune round" in record.failures["2"] for record in rejected)
    assert encode(steps[-1].server) == without


def test_bytes_that_are_no_reply_at_all_are_rejected_as_well(tmp_path: Path, without: bytes) -> None:
    clients = residents(tmp_path)
    transport, grid, _ = connected(clients)
    honest = clients["2"].answer
    grid.nodes[3] = lambda blob: honest(blob) if decode(Request, blob).phase != "tune" else b"\xff" * 64
    steps = trained(transport, rounds=2, per_round=3, tolerance=DROP)
    assert encode(steps[-1].server) == without
    assert any(step.record.refused == ("2",) for step in steps)


BYTES_THAT_ARE_NONE = [torch.tensor(1.0), torch.zeros(2, 2, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64)]


@pytest.mark.parametrize("payload", BYTES_THAT_ARE_NONE)
def test_a_reply_whose_payload_is_no_bytes_is_handed_on_to_be_refused(tmp_path: Path, payload: torch.Tensor) -> None:
    clients = residents(tmp_path)
    transport, grid, _ = connected(clients)
    grid.nodes[1] = on_reply(clients["0"], lambda reply: replace(reply, payload=payload))
    ((_, reply),) = exchange(transport, "train", Round("importance", 0, 1, 0), {"0": ask()}, 5)
    assert isinstance(reply, bytes)


def handshakes_with(resident: Resident, **change: Any) -> Callable[[bytes], bytes]:
    """The resident, whose handshake is changed."""

    def answer(blob: bytes) -> bytes:
        reply = decode(Reply, resident.answer(blob))
        if decode(Request, blob).action == "hello":
            hello = replace(decode(Hello, unpacked(reply.payload)), **change)
            reply = replace(reply, payload=packed(encode(hello)))
        return encode(reply)

    return answer


@pytest.mark.parametrize("name", ["", "a b", "x" * 65, "../up", "\x1b[2Jevil\n"])
def test_a_client_with_an_impossible_name_is_not_seated_and_its_name_is_shown_harmlessly(tmp_path: Path, name: str) -> None:
    clients = residents(tmp_path)
    transport, grid, told = connected(clients)
    grid.nodes[1] = handshakes_with(clients["0"], name=name)
    assert transport.wait_for(4, None, 1.0) == ("1", "2", "3", "4")
    assert any("calls itself" in text for text in told) and all(text.isprintable() for text in told)


def test_what_a_client_says_of_its_versions_is_shown_for_what_the_server_knows_alone(tmp_path: Path) -> None:
    clients = residents(tmp_path)
    transport, grid, told = connected(clients)
    grid.nodes[1] = handshakes_with(clients["0"], versions=json.dumps({"torch": "2\x1b[2J", **{f"x{i}": "1" for i in range(1000)}}))
    transport.wait_for(5, None, 1.0)
    assert told == ['client 0 has torch "2\\u001b[2J", the server "1": results may differ in the last bits']
    grid.nodes[1] = handshakes_with(clients["0"], config="[" * 200_000)
    again, grid2, told = connected(clients)
    grid2.nodes[1] = grid.nodes[1]
    assert again.wait_for(4, None, 1.0) == ("1", "2", "3", "4") and "another configuration" in told[0]


def test_a_name_belongs_to_who_had_it_first_also_after_a_failure(tmp_path: Path) -> None:
    clients = residents(tmp_path)
    transport, grid, told = connected(clients)
    transport.wait_for(5, None, 1.0)
    grid.nodes[1] = gone
    ((_, reply),) = exchange(transport, "train", Round("importance", 0, 1, 0), {"0": ask()}, 1)
    assert isinstance(reply, Failure) and "went away" in reply.reason
    del grid.nodes[1]
    grid.nodes[99] = replace(clients["0"], identity="another's").answer
    ((_, reply),) = exchange(transport, "train", Round("importance", 0, 1, 0), {"0": ask()}, 1)
    assert isinstance(reply, Failure) and "two clients are called 0; start one of them with another --name" in told


def test_initial_tensors_are_counted_whoever_they_were_sent_for(tmp_path: Path) -> None:
    clients = residents(tmp_path, task=Other(made_task()))
    transport, _, _ = connected(clients)
    list(exchange(transport, "evaluate", Round("importance", 0, 1, 0), {"3": ask()}, 5))
    list(exchange(transport, "train", Round("importance", 0, 1, 0), {"0": ask()}, 5))
    assert set(transport.notes()) == {"0", "3"} and not transport.notes()


HOSTILE = "\x1b]0;owned\x07\x1b[2J\u202egnp\x9b31m\nwarning: all is well\r\u2066"
"""A terminal's title, a cleared screen, letters in another order, colours, lines that are none of ours."""


def raises(text: str) -> Callable[[bytes], bytes]:
    def answer(blob: bytes) -> bytes:
        raise OSError(text)

    return answer


def test_nothing_that_a_client_says_steers_the_servers_terminal_or_ends_up_in_a_record(tmp_path: Path) -> None:
    clients = residents(tmp_path)
    honest = clients["0"]
    answers: list[Callable[[bytes], bytes]] = [
        raises(HOSTILE),
        lambda blob: HOSTILE.encode(),
        lambda blob: encode(Reply("failed", HOSTILE, HOSTILE, HOSTILE, HOSTILE, 0, packed(b""))),
        lambda blob: encode(Reply("refused", HOSTILE, HOSTILE, HOSTILE, HOSTILE, 0, packed(json.dumps({HOSTILE: HOSTILE}).encode()))),
        handshakes_with(honest, name=HOSTILE),
        handshakes_with(honest, config=json.dumps({**CONFIG, "seed": HOSTILE, HOSTILE: 1})),
        handshakes_with(honest, versions=json.dumps({"torch": HOSTILE})),
    ]
    answers += [on_reply(honest, lambda reply, name=name: replace(reply, **{name: HOSTILE})) for name in ("status", "reason", "run")]
    for answer in answers:
        transport, grid, told = connected({**clients, "0": honest})
        grid.nodes[1] = answer
        for step in trained(transport, rounds=1, per_round=5, tolerance=DROP):
            assert all(reason.isprintable() for reason in step.record.failures.values())
        assert all(text.isprintable() for text in told)
        with pytest.raises(RunFailed) as failed:
            transport.wait_for(6, None, 0.0)
        assert str(failed.value).isprintable()

"""What every federated method must keep to, whatever it computes: each law a function that raises `AssertionError` where it is broken."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from typing import Any

import torch

from ..core.method import Received
from ..core.task import DELTA
from ..core.trees import checksum
from ..core.types import Round
from ..core.wire import decode, encode, field_kinds, payload_bytes, tensors_of
from ..engine.checks import expected
from ..engine.counting import TOKEN_BLOCKS
from ..engine.simulator import SideBySide
from ..engine.traffic import plan
from .federation import KEY, Shuffled, Spy, client_view, in_double, same
from .returned import every_function_returns_what_it_must
from .subject import KEPT, Subject, blobs, split, without_times

WORK_BYTES = 32
"""Behind every answer: what the client did, see `engine.runtime.frame`."""


def a_run_reaches_its_end(subject: Subject) -> None:
    """Every round of every phase runs without an error, and no tensor stops being finite. The other laws are about runs that do."""
    _, _, records = subject.finished
    assert records, "its phases have no rounds"


def a_method_is_a_value_that_prints_pickles_and_compares(subject: Subject) -> None:
    """Frozen dataclasses with functions of the module as fields are."""
    one = subject.make()
    assert pickle.loads(pickle.dumps(one)) == one == subject.make(), "two methods of the same options differ"
    assert "object at 0x" not in repr(one), f"its text names a place in memory: {one!r}"


def the_same_seed_gives_the_same_bits(subject: Subject) -> None:
    """On another task of the same weights too: nothing random is drawn elsewhere than from the keys given."""
    _, moments, records = subject.finished
    again = subject.begun(task=subject.task())
    repeated = [without_times(step.record) for step in again.run()]
    assert blobs(again) == moments[-1], "a second run ends in other states"
    assert repeated == [without_times(record) for record in records], "a second run has other records"


def the_order_in_which_clients_answer_changes_nothing(subject: Subject) -> None:
    """The loop sorts answers; a method that remembers more than its states would still show."""
    everybody = len(subject.data.clients)
    other, plain = subject.begun(wrap=Shuffled, per_round=everybody), subject.begun(per_round=everybody)
    for a, b in zip(plain.run(), other.run(), strict=True):
        assert encode(a.server) == encode(b.server), f"the server's state differs after round {a.number}"
        assert without_times(a.record) == without_times(b.record), f"the record of round {a.number} differs"
    assert blobs(plain) == blobs(other), "clients' states differ"


def clients_side_by_side_give_what_they_give_one_after_the_other(subject: Subject) -> None:
    """Up to the rounding of float64, with their passes joined where that can be."""
    task = subject.task()
    if not hasattr(task, "together"):
        return
    task = in_double(task)
    everybody = len(subject.data.clients)
    plain = subject.begun(task=task, per_round=everybody)
    other = subject.begun(task=task, per_round=everybody, wrap=lambda inner: Spy(SideBySide(inner.runtime, everybody - 1)))
    for a, b in zip(plain.run(), other.run(), strict=True):
        one, two = ({**without_times(step.record), "loss": None, "notes": None} for step in (a, b))
        assert one == two, f"the record of round {a.number} differs"
        for client, loss in a.record.loss.items():
            assert math.isclose(loss, b.record.loss[client], rel_tol=1e-9, abs_tol=1e-12), f"round {a.number}: the loss of {client}"
            work = [record.notes.get(client, {}).get(TOKEN_BLOCKS) for record in (a.record, b.record)]
            assert work[0] == work[1], f"round {a.number}: the work of {client}"
    found = [{name: _values(world.method, name, blob) for name, blob in blobs(world).items()} for world in (plain, other)]
    assert found[0].keys() == found[1].keys(), "other clients have states"
    for name, (tensors, others) in found[0].items():
        assert others == found[1][name][1], f"the state of {name or 'the server'} differs"
        for place, value in tensors.items():
            same = torch.allclose(value.double(), found[1][name][0][place].double(), rtol=1e-5, atol=1e-9, equal_nan=True)
            assert same, f"{place} in the state of {name or 'the server'} differs"


def _values(method: Any, name: str, blob: bytes) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The tensors of a state, and its other fields."""
    kept = next((phase.kept for phase in method.phases if phase.kept is not None), None)
    kind: Any = kept if name.endswith(KEPT) else method.client_state if name else method.server_state
    state = decode(kind, blob)
    tensors = {f"{field} {tensor}": value for field, of in tensors_of(state).items() for tensor, value in of.items()}
    return tensors, {field: getattr(state, field) for field, what in field_kinds(kind).items() if what not in ("tensor", "tensors")}


def the_base_model_keeps_every_byte(subject: Subject) -> None:
    """Nothing is left written, hooked or switched in the module that all clients share."""
    task = subject.task()
    before = checksum(copy.deepcopy(task.model.state_dict()))
    subject.begun(task=task).finish()
    assert checksum(task.model.state_dict()) == before, "a weight was written"
    assert task.model.training is False, "the module was left in training mode"
    assert not any(module._forward_hooks for module in task.model.modules()), "a hook was left"


def the_recorded_bytes_are_those_that_were_sent(subject: Subject) -> None:
    """By client and by field, both ways."""
    world, _, records = subject.finished
    for record in records:
        carried = [(client, down, up) for client, _, now, down, up in world.transport.carried if now.number == record.number]
        assert dict(record.bytes_down) == {client: len(down) for client, down, _ in carried}, f"round {record.number}, down"
        assert dict(record.bytes_up) == {client: len(up) for client, _, up in carried}, f"round {record.number}, up"
        assert sum(record.fields_down.values()) == sum(record.bytes_down.values()), f"round {record.number}, fields down"
        assert sum(record.fields_up.values()) == sum(record.bytes_up.values()), f"round {record.number}, fields up"


def every_message_has_the_size_that_was_foretold(subject: Subject) -> None:
    """By round and client, both ways; `outlook` says what is known of it before the run."""
    world, _, records = subject.finished
    num_samples = {client: len(subject.data.client(client).train) for client in subject.data.clients}
    foretold = plan(world.method, world.task, num_samples, world.per_round, KEY.fold("run"))
    for record, exchange in zip(records, foretold, strict=True):
        where = f"{record.phase} round {record.index}"
        for way, sent, spans in (("down", record.bytes_down, exchange.down), ("up", record.bytes_up, exchange.up)):
            assert tuple(spans) == record.cohort, f"{where}: asked {record.cohort}, foretold {tuple(spans)}"
            for client, size in sent.items():
                span = spans[client]
                assert span.least <= size <= span.most, f"{where}, {client}: {size} bytes {way}, foretold {span.least} to {span.most}"


def sizes_of_messages_do_not_depend_on_the_clock(subject: Subject) -> None:
    """All clients of a round of tuning send the same tensors."""
    _, _, records = subject.finished
    for record in records:
        if record.phase == "tune":
            assert len(set(record.bytes_up.values())) == 1, f"round {record.number}: {sorted(set(record.bytes_up.values()))} bytes"


def the_server_knows_what_every_answer_must_look_like(subject: Subject) -> None:
    """Each field of tensors of an answer is in the broadcast, in the server's state, or in the phase's template."""
    world, moments, records = subject.finished
    phases = {phase.name: phase for phase in world.method.phases}
    for record, before in zip(records, moments[:-1], strict=True):
        phase, server = phases[record.phase], decode(world.method.server_state, before[""])
        now = Round(phase.name, record.index, phase.num_rounds, record.number)
        known = expected(phase, server, phase.broadcast(server, now), now).like
        fields = {field for field, kind in field_kinds(phase.up).items() if kind in ("tensor", "tensors")}
        assert fields == known.keys() & fields, f"{phase.name}: give the phase a template for {sorted(fields - known.keys())}"


def answers_that_are_folded_give_what_those_that_are_held_do(subject: Subject) -> None:
    """Up to rounding, in each phase that can fold them."""
    world, moments, records = subject.finished
    phases = {phase.name: phase for phase in world.method.phases}
    for record, before in zip(records, moments[:-1], strict=True):
        phase, server = phases[record.phase], decode(world.method.server_state, before[""])
        now = Round(phase.name, record.index, phase.num_rounds, record.number)
        folding = None if phase.fold is None else phase.fold(server, now)
        if folding is None:
            continue
        replies = {client: up for client, _, sent, _, up in world.transport.carried if sent.number == record.number}
        answers = [Received(client, decode(phase.up, replies[client][:-WORK_BYTES])) for client in sorted(replies)]
        for answer in answers:
            folding.add(answer)
        folded, held = tensors_of(folding.state()), tensors_of(phase.aggregate(server, answers, now))
        where = f"round {record.number}"
        assert folded.keys() == held.keys(), where
        for field, tensors in held.items():
            assert folded[field].keys() == tensors.keys(), f"{where}, {field}"
            for name, value in tensors.items():
                assert torch.allclose(folded[field][name].double(), value.double(), rtol=1e-5, atol=1e-7), f"{where}, {field} {name}"


def what_a_buffered_phase_answers_is_what_it_was_sent(subject: Subject) -> None:
    """A phase with "buffered" among its `schedules`: every tensor of an answer is one of the broadcast, so that its change is known."""
    world, moments, records = subject.finished
    phases = {phase.name: phase for phase in world.method.phases}
    for record, before in zip(records, moments[:-1], strict=True):
        phase, server = phases[record.phase], decode(world.method.server_state, before[""])
        if "buffered" not in phase.schedules or phase.cohort != "sampled" or phase.num_rounds < 2:
            continue
        assert phase.address is None, f"{phase.name}: each client is sent a message of its own"
        now = Round(phase.name, record.index, phase.num_rounds, record.number)
        sent = tensors_of(phase.broadcast(server, now))
        for _, _, then, _, up in world.transport.carried:
            if then.number == record.number:
                for field, tensors in tensors_of(decode(phase.up, up[:-WORK_BYTES])).items():
                    unknown = sorted(tensors.keys() - sent.get(field, {}).keys())
                    assert not unknown, f"round {record.number}, {field}: {unknown[:3]} are in no broadcast"


def on_the_server_only_what_was_sent_moves(subject: Subject) -> None:
    """A tensor of the global model that no client sent keeps its bits."""
    world, moments, records = subject.finished
    phases = {phase.name: phase for phase in world.method.phases}
    for record, before, after in zip(records, moments[:-1], moments[1:], strict=True):
        a, b = (world.method.server_params(decode(world.method.server_state, moment[""])) for moment in (before, after))
        replies = [up for _, _, now, _, up in world.transport.carried if now.number == record.number]
        answers = [tensors_of(decode(phases[record.phase].up, up[:-WORK_BYTES])) for up in replies]
        sent = {name for fields in answers for tensors in fields.values() for name in tensors if name in a}
        moved = [name for name in subject.one_task.names if name not in sent and not torch.equal(a[name], b[name])]
        assert not moved, f"round {record.number}: {moved[:3]} moved"
        assert not sent or any(not torch.equal(a[name], b[name]) for name in sent), f"round {record.number}: nothing moved"


def a_client_changes_only_in_the_rounds_it_takes_part_in(subject: Subject) -> None:
    """Neither its state nor what the server keeps of it."""
    _, moments, records = subject.finished
    for record, before, after in zip(records, moments[:-1], moments[1:], strict=True):
        for client in set(after) - {"", *record.cohort, *(client + KEPT for client in record.cohort)}:
            assert after[client] == before[client], f"{client} in round {record.number}"


def a_client_that_never_takes_part_has_no_state(subject: Subject) -> None:
    """So that memory and disk follow the clients that train."""
    world = subject.begun(per_round=1)
    seen: set[str] = set()
    for step in world.run():
        seen |= set(step.record.cohort)
        assert set(world.states.clients()) == seen, f"after round {step.number}"
    assert subject.asks_everybody or seen < set(subject.data.clients), "every client took part; run fewer rounds"


def a_run_continued_after_any_round_ends_with_the_same_bits(subject: Subject) -> None:
    """Everything that matters is in the states."""
    world, moments, _ = subject.finished
    for number, moment in enumerate(moments):
        states, kept = split(moment)
        resumed = subject.begun(states=states, kept=kept, server=decode(world.method.server_state, moment[""]))
        resumed.finish(start=number)
        assert blobs(resumed) == moments[-1], f"continued after {number} rounds"


def the_servers_state_does_not_grow_with_the_clients_that_took_part(subject: Subject) -> None:
    """Tensors as many and as large after the last round of a phase as after its first, by when others have taken part."""
    world, moments, records = subject.finished
    sizes: dict[str, set[int]] = {}
    for record, moment in zip(records, moments[1:], strict=True):
        state = decode(world.method.server_state, moment[""])
        sizes.setdefault(record.phase, set()).add(sum(payload_bytes(state)[field] for field in tensors_of(state)))
    assert all(len(found) == 1 for found in sizes.values()), f"bytes of its tensors after each round: {sizes}"
    asked = {client for record in records for client in record.cohort}
    assert len(asked) > min(len(record.cohort) for record in records), (
        f"the same {len(asked)} clients took part in every round, so that nothing could grow: at least three rounds that ask a sample of "
        f"the clients are needed, got {len(records)} in all"
    )


def a_message_that_came_in_is_never_written_to(subject: Subject) -> None:
    """Nor the state that a client began with, nor the server's."""
    world = subject.begun()
    for phase in world.method.phases:
        now = Round(phase.name, 0, phase.num_rounds, 0)
        down = phase.broadcast(world.server, now)
        client = client_view(world, subject.data.clients[1])
        before = encode(down), encode(client.state), encode(world.server)
        update = phase.client_update(client, down, now)
        for part in (update.message, update.state):  # encoding them must not write to it either
            encode(part)
        _unwritten(before, (down, client.state, world.server), f"phase {phase.name}, client_update")
        phase.aggregate(world.server, [Received(client.id, update.message)], now)
        _unwritten(before, (down, client.state, world.server), f"phase {phase.name}, aggregate")


def _unwritten(before: tuple[bytes, ...], values: tuple[Any, ...], where: str) -> None:
    for name, blob, value in zip(("the broadcast", "the client's state", "the server's state"), before, values, strict=True):
        assert encode(value) == blob, f"{where} wrote to {name}"


def a_newcomer_has_a_model(subject: Subject) -> None:
    """A client that never took part can answer with every tensor of the task."""
    world, moments, _ = subject.finished
    phase = world.method.phases[-1]
    server = decode(world.method.server_state, moments[-1][""])
    down = phase.broadcast(server, Round(phase.name, phase.num_rounds - 1, phase.num_rounds, 0))
    model = world.method.personalise(down, world.method.init_client(subject.one_task, "new", KEY.fold("run", "init")))
    beside = {name + DELTA for name in subject.one_task.adapted_weights()}
    missing, unknown = sorted(set(subject.one_task.names) - set(model)), sorted(set(model) - beside - set(subject.one_task.names))
    assert not missing and not unknown, f"a client that never took part lacks {missing[:3]} and has unknown {unknown[:3]}"


def unless_it_says_so_every_client_answers_with_the_global_model(subject: Subject) -> None:
    """Where `is_personal` is False, an evaluation asks the clients alone and takes their scores for the global model's."""
    world, moments, records = subject.finished
    if world.method.is_personal:
        return
    for record, moment in zip(records, moments[1:], strict=True):
        server = decode(world.method.server_state, moment[""])
        phase = next(phase for phase in world.method.phases if phase.name == record.phase)
        if not phase.trains:  # no evaluation follows
            continue
        down = phase.broadcast(server, Round(phase.name, record.index, phase.num_rounds, record.number))
        for client in (*world.data.clients, "new"):
            stored = moment.get(client)
            newcomer = world.method.init_client(subject.one_task, client, KEY.fold("run", "init"))
            state = newcomer if stored is None else decode(world.method.client_state, stored)
            assert same(world.method.personalise(down, state), world.method.server_params(server)), (
                f"client {client} answers round {record.number} with another model than the global one; set is_personal = True"
            )


LAWS: tuple[Callable[[Subject], None], ...] = (
    every_function_returns_what_it_must,
    a_run_reaches_its_end,
    a_method_is_a_value_that_prints_pickles_and_compares,
    the_base_model_keeps_every_byte,
    a_message_that_came_in_is_never_written_to,
    the_same_seed_gives_the_same_bits,
    the_order_in_which_clients_answer_changes_nothing,
    clients_side_by_side_give_what_they_give_one_after_the_other,
    the_recorded_bytes_are_those_that_were_sent,
    every_message_has_the_size_that_was_foretold,
    sizes_of_messages_do_not_depend_on_the_clock,
    the_server_knows_what_every_answer_must_look_like,
    answers_that_are_folded_give_what_those_that_are_held_do,
    what_a_buffered_phase_answers_is_what_it_was_sent,
    on_the_server_only_what_was_sent_moves,
    a_client_changes_only_in_the_rounds_it_takes_part_in,
    a_client_that_never_takes_part_has_no_state,
    a_run_continued_after_any_round_ends_with_the_same_bits,
    the_servers_state_does_not_grow_with_the_clients_that_took_part,
    a_newcomer_has_a_model,
    unless_it_says_so_every_client_answers_with_the_global_model,
)
"""Every law, in the order they are tried: what breaks an early one often breaks later ones too."""

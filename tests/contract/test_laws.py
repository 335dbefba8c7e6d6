"""What every method must keep to, whatever it computes: one table of methods, one set of laws."""

from __future__ import annotations

import copy
import math
import pickle
from dataclasses import asdict
from functools import cache
from typing import Any

import pytest
import torch
from made import KEY, TRAINING, Federation, Shuffled, Spy, federation, made_data, made_method, made_options, made_task, same, seat

from fibecfed.core.task import DELTA
from fibecfed.core.trees import checksum, pick
from fibecfed.core.types import Params, Round
from fibecfed.core.wire import decode, encode, field_kinds, payload_bytes, tensors_of
from fibecfed.engine.checks import expected
from fibecfed.local.batches import shuffled_batches
from fibecfed.local.optimise import fit
from fibecfed.methods.catalogue import METHODS
from fibecfed.methods.fibecfed import FibecFed, GlobalLayers

ROUNDS, CLIENTS = 3, 4
SHORT = TRAINING.model_copy(update={"batch_size": 3})
MEASURERS = {"importance_clients": 2, "spectrum_clients": 1, "importance_examples": 4}
LAST = {"rule": "last", "value": 1}
ALL = {"layers": {"rule": "all"}, "neurons": {"rule": "all"}, "curriculum": {"pace": "none"}}

VARIANTS: dict[str, dict[str, Any]] = {
    "lora": {"kind": "lora"},
    "lora, then personal": {"kind": "lora", "finetune": True},
    "lora-finetune": {"kind": "lora-finetune"},
    "lora, exact, personal head": {"kind": "lora", "aggregation": "exact", "head": "personal"},
    "exact global layers": {"aggregation": "exact", "layers": {"importance_clients": 2}},
    "ffa on global layers, personal head, then personal": {"aggregation": "ffa", "head": "personal", "finetune": True},
    "fedadam on global layers": {"aggregation": "fedadam", "layers": {"importance_clients": 2}},
    "fedprox": {"kind": "fedprox", "proximal": 1.0},
    "scaffold": {"kind": "scaffold"},
    "fedavgm": {"kind": "fedavgm"},
    "fedadam": {"kind": "fedadam"},
    "fedyogi": {"kind": "fedyogi"},
    "local": {"kind": "local"},
    "fibecfed": {"layers": MEASURERS},
    "published order": {"layers": MEASURERS, "score_after": 0, "curriculum": {"order_within_round": "easy_to_hard"}},
    "closing round": {"layers": MEASURERS, "closing_round": True},
    "layers alone": {"layers": LAST, "neurons": {"rule": "all"}, "curriculum": {"pace": "none"}},
    "layer_gap, coverage, rescored": {
        "layers": {**MEASURERS, "rule": "layer_gap"},
        "neurons": {"rule": "coverage"},
        "curriculum": {"rescore_every": 1, "labels": "model"},
    },
    "random throughout": {"layers": {"rule": "random"}, "neurons": {"rule": "random"}, "curriculum": {"order": "random"}},
    "everything off": ALL,
    "everything shared": {"layers": {"rule": "all"}, "curriculum": {"beta": 0.5}, "score_after": 1},
    "voc": {"kind": "voc"},
    "slw": {"kind": "slw"},
    "shortformer": {"kind": "shortformer"},
    "self-evolution": {"kind": "self-evolution"},
    "ffa-lora": {"kind": "ffa-lora"},
    "fedsa-lora": {"kind": "fedsa-lora"},
    "adapter": {"kind": "adapter", "adapter": {"size": 3}},
    "prompt-tuning": {"kind": "prompt-tuning", "adapter": {"num_tokens": 3}},
    "fedprompt": {"kind": "fedprompt", "adapter": {"num_tokens": 3, "start": "random"}},
    "p-tuning-v2": {"kind": "p-tuning-v2", "adapter": {"num_tokens": 3}},
    "idpg": {"kind": "idpg", "adapter": {"num_tokens": 2, "size": 3}},
    "attempt": {"kind": "attempt", "adapter": {"num_tokens": 3, "size": 3}},
    "lpt": {"kind": "lpt", "adapter": {"num_tokens": 2, "size": 3}},
    "fedalt": {"kind": "fedalt"},
    "slora": {"kind": "slora", "density": 0.1},
    "fedex-lora": {"kind": "fedex-lora"},
    "fedpeptao": {"kind": "fedpeptao"},
    "momd": {"kind": "momd"},
    "moms-adamw": {"kind": "moms-adamw"},
    "hetlora": {"kind": "hetlora", "min_rank": 1, "decay": 0.5, "penalty": 10.0},
}
_SCORES = "not everything is shared: some layers stay on the client, and are trained in part"
EXEMPT: dict[str, dict[str, str]] = {
    "consecutive": {
        "fibecfed": _SCORES,
        "published order": _SCORES,
        "closing round": _SCORES,
        "layers alone": "no scores, no masks: what is left of it is `everything off`",
        "layer_gap, coverage, rescored": _SCORES,
        "random throughout": _SCORES,
        "fedpeptao": "its server takes another step than to the mean",
        "moms-adamw": "its server takes another step than to the mean",
        "exact global layers": _SCORES,
        "ffa on global layers, personal head, then personal": _SCORES,
        "fedadam on global layers": _SCORES,
        **dict.fromkeys(("fedavgm", "fedadam", "fedyogi"), "its server takes another step than to the mean"),
        "scaffold": "its steps are corrected by what it remembers",
        "slora": "between its stages the model is put into another form",
    },
    "newcomers": {
        "lora, then personal": "its last phase asks everybody",
        "lora-finetune": "its last phase asks everybody",
        "ffa on global layers, personal head, then personal": "its last phase asks everybody",
        "fedpeptao": "its first phase asks everybody",
    },
    "equal sizes": {"hetlora": "clients of different ranks send differently large tensors"},
}
"""Law -> variant -> why it need not hold there."""
every_method = pytest.mark.parametrize("variant", VARIANTS)


def must(law: str, variant: str) -> None:
    """Skip the test, with the reason, where the table exempts the variant from the law."""
    if variant in EXEMPT[law]:
        pytest.skip(f"{variant} is exempt: {EXEMPT[law][variant]}")


def method(variant: str, clients: int = CLIENTS) -> Any:
    return made_method(**VARIANTS[variant], rounds=ROUNDS, clients=clients, training=SHORT)


DATA = made_data(CLIENTS, 6)


def new_task(variant: str) -> Any:
    """A task with what the variant trains."""
    return made_task(2, made_options(**VARIANTS[variant]))


@cache
def task_of(variant: str) -> Any:
    """One task for all tests of the variants that train the same."""
    adapter = getattr(made_options(**VARIANTS[variant]), "adapter", None)
    return new_task(variant) if adapter is not None or variant == "lora" else task_of("lora")


def begun(variant: str, **more: Any) -> Federation:
    return federation(method(variant), **{"task": task_of(variant), "data": DATA, **more})


def blobs(world: Federation) -> dict[str, bytes]:
    """The server's and every client's state, as bytes; under a client's name and `KEPT` what the server keeps of it."""
    own = {client: world.states.get(client) or b"" for client in world.states.clients()}
    return {"": encode(world.server), **own, **{client + KEPT: blob for client, blob in world.kept().items()}}


KEPT = " on the server"


def split(moment: dict[str, bytes]) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """The clients' states, and what the server keeps of them."""
    kept = {name.removesuffix(KEPT): blob for name, blob in moment.items() if name.endswith(KEPT)}
    return {name: blob for name, blob in moment.items() if name and not name.endswith(KEPT)}, kept


@cache
def finished(variant: str) -> tuple[Federation, list[dict[str, bytes]], list[Any]]:
    """A run to its end, the states after each round, and its records."""
    world = begun(variant)
    moments, records = [blobs(world)], []
    for step in world.run():
        moments.append(blobs(world))
        records.append(step.record)
    return world, moments, records


def without_times(record: Any) -> dict[str, Any]:
    return {name: value for name, value in asdict(record).items() if name not in ("seconds", "cpu_s", "compute_s")}


def test_the_table_has_every_method():
    assert {options.get("kind", "fibecfed") for options in VARIANTS.values()} == set(METHODS)


@every_method
def test_a_method_is_a_value_that_prints_pickles_and_compares(variant: str):
    one = method(variant)
    assert pickle.loads(pickle.dumps(one)) == one == method(variant)
    assert "object at 0x" not in repr(one)


@every_method
def test_the_same_seed_gives_the_same_bits(variant: str):
    _, moments, records = finished(variant)
    again = begun(variant, task=new_task(variant), data=made_data(CLIENTS, 6))
    repeated = [without_times(step.record) for step in again.run()]
    assert blobs(again) == moments[-1]
    assert repeated == [without_times(record) for record in records]


@every_method
def test_the_order_in_which_clients_answer_changes_nothing(variant: str):
    other = begun(variant, wrap=Shuffled, per_round=CLIENTS)
    plain = begun(variant, per_round=CLIENTS)
    for a, b in zip(plain.run(), other.run(), strict=True):
        assert encode(a.server) == encode(b.server)
        assert without_times(a.record) == without_times(b.record)
    assert blobs(plain) == blobs(other)


@every_method
def test_the_backbone_keeps_every_byte(variant: str):
    task = new_task(variant)
    before = checksum(copy.deepcopy(task.model.state_dict()))
    begun(variant, task=task).finish()
    assert checksum(task.model.state_dict()) == before
    assert task.model.training is False
    assert not any(module._forward_hooks for module in task.model.modules())


@every_method
def test_the_recorded_bytes_are_those_that_travelled(variant: str):
    world, _, records = finished(variant)
    assert isinstance(world.transport, Spy)
    for record in records:
        carried = [(client, down, up) for client, _, now, down, up in world.transport.carried if now.number == record.number]
        assert dict(record.bytes_down) == {client: len(down) for client, down, _ in carried}
        assert dict(record.bytes_up) == {client: len(up) for client, _, up in carried}
        assert sum(record.fields_down.values()) == sum(record.bytes_down.values())
        assert sum(record.fields_up.values()) == sum(record.bytes_up.values())


@every_method
def test_sizes_of_messages_do_not_hang_on_the_clock(variant: str):
    must("equal sizes", variant)
    _, _, records = finished(variant)
    for record in records:
        if record.phase == "tune":
            assert len(set(record.bytes_up.values())) == 1  # all clients send the same tensors


@every_method
def test_the_server_knows_what_every_answer_must_look_like(variant: str):
    world, moments, records = finished(variant)
    phases = {phase.name: phase for phase in world.method.phases}
    for record, before in zip(records, moments[:-1], strict=True):
        phase, server = phases[record.phase], decode(world.method.server_state, before[""])
        now = Round(phase.name, record.index, phase.num_rounds, record.number)
        known = expected(phase, server, phase.broadcast(server, now), now).like
        fields = {field for field, kind in field_kinds(phase.up).items() if kind in ("tensor", "tensors")}
        assert fields == known.keys() & fields, f"{phase.name}: give the phase a template"


@every_method
def test_on_the_server_only_what_was_sent_moves(variant: str):
    world, moments, records = finished(variant)
    phases = {phase.name: phase for phase in world.method.phases}
    for record, before, after in zip(records, moments[:-1], moments[1:], strict=True):
        a, b = (world.method.server_params(decode(world.method.server_state, moment[""])) for moment in (before, after))
        replies = [up for _, _, now, _, up in world.transport.carried if now.number == record.number]
        sent = {name for up in replies for name in getattr(decode(phases[record.phase].up, up[:-32]), "shared", {})}
        assert all(torch.equal(a[name], b[name]) for name in task_of(variant).names if name not in sent)
        assert not sent or any(not torch.equal(a[name], b[name]) for name in sent)


@every_method
def test_a_client_changes_in_the_rounds_it_takes_part_in_alone(variant: str):
    _, moments, records = finished(variant)
    for record, before, after in zip(records, moments[:-1], moments[1:], strict=True):
        for client in set(after) - {"", *record.cohort, *(client + KEPT for client in record.cohort)}:
            assert after[client] == before[client]


@every_method
def test_a_client_that_never_takes_part_has_no_state(variant: str):
    world = begun(variant, per_round=1)
    seen: set[str] = set()
    for step in world.run():
        seen |= set(step.record.cohort)
        assert set(world.states.clients()) == seen
    if variant not in EXEMPT["newcomers"]:
        assert seen < set(DATA.clients)


@every_method
def test_a_run_continued_after_any_round_ends_with_the_same_bits(variant: str):
    world, moments, _ = finished(variant)
    for number, moment in enumerate(moments):
        states, kept = split(moment)
        server = decode(world.method.server_state, moment[""])
        resumed = begun(variant, states=states, kept=kept, server=server)
        resumed.finish(start=number)
        assert blobs(resumed) == moments[-1], f"continued after {number} rounds"


@every_method
def test_the_servers_state_does_not_grow_with_the_clients_that_took_part(variant: str):
    """Tensors as many and as large after the last round of a phase as after its first, by when others have taken part."""
    world, moments, records = finished(variant)
    sizes: dict[str, set[int]] = {}
    for record, moment in zip(records, moments[1:], strict=True):
        state = decode(world.method.server_state, moment[""])
        sizes.setdefault(record.phase, set()).add(sum(payload_bytes(state)[field] for field in tensors_of(state)))
    assert all(len(found) == 1 for found in sizes.values()), sizes
    assert len({client for record in records for client in record.cohort}) > min(len(record.cohort) for record in records)


@every_method
def test_a_message_that_came_in_is_never_written_to(variant: str):
    world = begun(variant)
    for phase in world.method.phases:
        now = Round(phase.name, 0, phase.num_rounds, 0)
        down = phase.broadcast(world.server, now)
        client = seat(world, "1")
        before = encode(down), encode(client.state), encode(world.server)
        update = phase.client_update(client, down, now)
        encode(update.message), encode(update.state)
        assert (encode(down), encode(client.state), encode(world.server)) == before


@every_method
def test_a_newcomer_has_a_model(variant: str):
    world, moments, _ = finished(variant)
    phase = world.method.phases[-1]
    server = decode(world.method.server_state, moments[-1][""])
    down = phase.broadcast(server, Round(phase.name, phase.num_rounds - 1, phase.num_rounds, 0))
    model = world.method.personalise(down, world.method.init_client(task_of(variant), "new", KEY.fold("run", "init")))
    beside = {name + DELTA for name in task_of(variant).adapted_weights()}
    assert set(model) - beside == set(task_of(variant).names)


@every_method
def test_unless_it_says_so_every_client_answers_with_the_global_model(variant: str):
    world, moments, records = finished(variant)
    if world.method.is_personal:
        pytest.skip("its clients have models of their own")
    for record, moment in zip(records, moments[1:], strict=True):
        server = decode(world.method.server_state, moment[""])
        phase = next(phase for phase in world.method.phases if phase.name == record.phase)
        down = phase.broadcast(server, Round(phase.name, record.index, phase.num_rounds, record.number))
        for client in (*world.data.clients, "new"):
            stored = moment.get(client)
            newcomer = world.method.init_client(task_of(variant), client, KEY.fold("run", "init"))
            state = newcomer if stored is None else decode(world.method.client_state, stored)
            assert same(world.method.personalise(down, state), world.method.server_params(server)), f"{client}, round {record.number}"


FROZEN: dict[str, tuple[str, ...]] = {"ffa-lora": ("lora_A",)}
"""Variant -> parts of the names of tensors that it never trains."""
HALF_OF_THE_ROWS = ("fibecfed", "published order", "closing round", "random throughout")
"""Variants that train half of the rows of each tensor that stays on a client."""


@every_method
def test_on_a_client_what_is_not_trained_keeps_its_bits(variant: str):
    """Under strong weight decay, in every round of training."""
    decaying = SHORT.model_copy(update={"weight_decay": 0.5})
    world = federation(made_method(**VARIANTS[variant], rounds=ROUNDS, clients=CLIENTS, training=decaying), task_of(variant), DATA)
    phases, states = {phase.name: phase for phase in world.method.phases}, {}
    rows_moved = 0
    for step in world.run():
        phase = phases[step.now.phase]
        for client, down, up in [(client, down, up) for client, _, now, down, up in world.transport.carried if now == step.now]:
            state = states.get(client) or world.method.init_client(world.task, client, KEY.fold("run", "init"))
            start = world.method.personalise(decode(phase.down, down), state) if phase.name in ("tune", "sparse") else {}
            kept = getattr(world.state(client), "own", {})
            for name, end in {**kept, **getattr(decode(phase.up, up[:-32]), "shared", {})}.items():
                if name in start and start[name].shape == end.shape:
                    moved = int((start[name] != end).reshape(len(end), -1).any(1).sum())
                    rows_moved += moved
                    if any(part in name for part in FROZEN.get(variant, ())):
                        assert moved == 0, name
                    if variant in HALF_OF_THE_ROWS and name in kept:
                        assert moved <= math.ceil(len(end) / 2), name
        states = {client: world.state(client) for client in world.states.clients()}
    assert rows_moved > 0


@pytest.mark.parametrize("variant", ["lora", "everything off"])
def test_one_client_that_shares_everything_trains_as_if_there_were_no_federation(variant: str):
    data = made_data(1, 12)
    world = federation(method(variant, 1), task_of(variant), data, per_round=1)
    params = task_of(variant).init_params(KEY.fold("run", "init"))
    for step in world.run():
        client = seat(world, data.clients[0], step.now.number)
        everything = torch.arange(12)
        epochs = [shuffled_batches(client.data.train, everything, SHORT, client.key.fold("order", e)) for e in range(SHORT.local_epochs)]
        params = fit(task_of(variant), params, epochs, SHORT, client.key).params
        assert same(step.server.params, params)


def trained(method: Any, client: Any, params: Params, now: Round) -> Params:
    """What the method's own trainer makes of `params`."""
    if isinstance(method, FibecFed):  # its trainer answers a message, which holds everything here
        return method.phases[0].client_update(client, GlobalLayers(method.init(client.task, KEY).layers, dict(params)), now).message.shared
    return method.train(client, params, now).params


@every_method
def test_rounds_of_one_client_are_consecutive_trainings_by_the_same_trainer(variant: str):
    must("consecutive", variant)
    data = made_data(1, 12)
    world = federation(method(variant, 1), task_of(variant), data, per_round=1)
    (client,) = data.clients
    params = task_of(variant).init_params(KEY.fold("run", "init"))
    state = None
    for step in world.run():
        params = trained(world.method, seat(world, client, step.now.number, state), params, step.now)
        state = world.state(client)
        phase = next(phase for phase in world.method.phases if phase.name == step.now.phase)
        personal = world.method.personalise(phase.broadcast(step.server, step.now), world.state(client))
        assert same(pick(personal, task_of(variant).names), pick(params, task_of(variant).names)), f"after round {step.now.number}"
        assert not any(value.any() for name, value in personal.items() if name.endswith(DELTA))

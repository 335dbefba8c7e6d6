"""What every method must keep to, whatever it computes: one table of methods, one set of laws."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import pytest
import torch
from made import KEY, TRAINING, client_view, federation, made_data, made_method, made_options, made_task, same

from fibecfed.core.task import DELTA
from fibecfed.core.trees import pick
from fibecfed.core.types import Params, Round
from fibecfed.core.wire import decode
from fibecfed.engine.traffic import by_phase, plan
from fibecfed.local.batches import shuffled_batches
from fibecfed.local.optimise import fit
from fibecfed.methods.catalogue import METHODS
from fibecfed.methods.fibecfed import FibecFed, GlobalLayers
from fibecfed.models.options import ModelOptions
from fibecfed.models.shapes import shaped_task
from fibecfed.models.tiny import tiny_config
from fibecfed.testing.laws import LAWS, Subject, blobs

ROUNDS, CLIENTS = 3, 4
SHORT = TRAINING.model_copy(update={"batch_size": 3})
MEASURERS = {"importance_clients": 2, "spectrum_clients": 1, "importance_examples": 4}
LAST = {"rule": "last", "value": 1}
ALL = {"layers": {"rule": "all"}, "neurons": {"rule": "all"}, "curriculum": {"pace": "none"}}

VARIANTS: dict[str, dict[str, Any]] = {
    "lora": {"kind": "lora"},
    "lora, then personal": {"kind": "lora", "finetune": True},
    "lora-finetune": {"kind": "lora-finetune"},
    "lora, last training validated": {"kind": "lora", "finetune": "validated"},
    "lora, last rounds averaged": {"kind": "lora", "tail_average": 0.5},
    "fibecfed, last rounds averaged, closing round, then validated": {
        "tail_average": 0.5,
        "finetune": "validated",
        "closing_round": True,
        "layers": LAST,
    },
    "lora, exact, personal head": {"kind": "lora", "aggregation": "exact", "head": "personal"},
    "exact global layers": {"aggregation": "exact", "layers": {"importance_clients": 2}},
    "exact global layers, closing round": {"aggregation": "exact", "closing_round": True, "layers": {"importance_clients": 2}},
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
    "scored in training": {"layers": MEASURERS, "score_after": 0, "curriculum": {"scoring": "training"}, "neurons": {"every": 2}},
    "importance in the first round": {"layers": {"importance_round": "first", "rule": "count", "value": 1}, "closing_round": True},
    "importance in the first round, last layers, exact": {
        "layers": {"importance_round": "first", "first_layers": "last"},
        "aggregation": "exact",
        "head": "personal",
        "finetune": True,
    },
    "importance in the first round, layer_gap, depth": {
        "layers": {**MEASURERS, "importance_round": "first", "rule": "layer_gap"},
        "depth": 0.3,
        "depth_rule": "coverage",
        "curriculum": {"scoring": "training"},
    },
    "layers alone": {"layers": LAST, "neurons": {"rule": "all"}, "curriculum": {"pace": "none"}},
    "layer_gap, coverage, rescored": {
        "layers": {**MEASURERS, "rule": "layer_gap"},
        "neurons": {"rule": "coverage"},
        "curriculum": {"rescore_every": 1, "labels": "model"},
    },
    "random throughout": {"layers": {"rule": "random"}, "neurons": {"rule": "random"}, "curriculum": {"order": "random"}},
    "everything off": ALL,
    "everything shared": {"layers": {"rule": "all"}, "curriculum": {"beta": 0.5}, "score_after": 1},
    "depth by Fisher information": {"layers": MEASURERS, "depth": 1},
    "depth by coverage, all rules": {
        "layers": {**MEASURERS, "rule": "count", "value": 2},
        "depth": 0.3,
        "depth_rule": "coverage",
        "closing_round": True,
        "finetune": True,
        "curriculum": {"scoring": "training"},
    },
    "depth by position, exact": {"layers": {"rule": "all"}, "depth": 0.5, "depth_rule": "last", "aggregation": "exact"},
    "lora, depth by Fisher information, then personal": {"kind": "lora", "depth": 1, "finetune": True},
    "lora, depth by coverage, exact, personal head": {
        "kind": "lora",
        "depth": 0.3,
        "depth_rule": "coverage",
        "aggregation": "exact",
        "head": "personal",
    },
    "fedadam, depth by position": {"kind": "fedadam", "depth": 0.5, "depth_rule": "last"},
    "scaffold, depth by Fisher information": {"kind": "scaffold", "depth": 1},
    "local, depth by position": {"kind": "local", "depth": 1, "depth_rule": "last"},
    "lora, the head alone": {"kind": "lora", "depth": 0},
    "ffa-lora, depth by position": {"kind": "ffa-lora", "depth": 1, "depth_rule": "last"},
    "agreement": {"layers": {"rule": "agreement", "after": 1, "mean_every": 3}, "head": "agreement"},
    "agreement, all rules": {
        "layers": {"rule": "agreement", "after": 1, "mean_every": 0},
        "depth": 1,
        "aggregation": "exact",
        "closing_round": True,
        "finetune": True,
        "curriculum": {"scoring": "training"},
    },
    "means of what stays": {"layers": {**LAST, "mean_every": 2, "pull": 0.5}, "closing_round": True, "finetune": True},
    "a mean in the first round": {"layers": {**MEASURERS, "importance_round": "first", "mean_every": 1, "pull": 1.0}, "head": "personal"},
    "preset best": {"preset": "best"},
    "preset fast": {"preset": "fast"},
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
FIRST = [variant for variant in VARIANTS if variant.startswith("importance in the first round")]
AVERAGED = [variant for variant in VARIANTS if "averaged" in variant]
DEPTH = [variant for variant in VARIANTS if ", depth by" in variant and "by position, exact" not in variant]
_SCORES = "not everything is shared: some layers stay on the client, and are trained in part"
EXEMPT: dict[str, dict[str, str]] = {
    "the_servers_state_does_not_grow_with_the_clients_that_took_part": dict.fromkeys(
        AVERAGED, "from the first round that is averaged on it holds one model more, the mean so far: tests/methods/test_averaged.py"
    ),
    "consecutive": {
        **dict.fromkeys(AVERAGED, "its last model is the mean of several: tests/methods/test_averaged.py"),
        "fibecfed": _SCORES,
        "published order": _SCORES,
        "closing round": _SCORES,
        "scored in training": _SCORES,
        **dict.fromkeys(FIRST, _SCORES),
        "layers alone": "no scores, no masks: what is left of it is `everything off`",
        "layer_gap, coverage, rescored": _SCORES,
        "random throughout": _SCORES,
        "fedpeptao": "its server takes another step than to the mean",
        "moms-adamw": "its server takes another step than to the mean",
        "exact global layers": _SCORES,
        "exact global layers, closing round": _SCORES,
        "depth by Fisher information": _SCORES,
        "depth by coverage, all rules": _SCORES,
        "agreement, all rules": _SCORES,
        "means of what stays": _SCORES,
        "a mean in the first round": _SCORES,
        "lora, last training validated": "its last training is kept as far as the validation part speaks for it",
        "preset best": "its last training is kept as far as the validation part speaks for it",
        "preset fast": "which blocks are trained comes with the message",
        "depth by position, exact": _SCORES,
        "ffa on global layers, personal head, then personal": _SCORES,
        "fedadam on global layers": _SCORES,
        **dict.fromkeys(("fedavgm", "fedadam", "fedyogi"), "its server takes another step than to the mean"),
        **dict.fromkeys([*DEPTH, "lora, the head alone"], "which blocks are trained comes with the message"),
        "scaffold": "its steps are corrected by what it remembers",
        "slora": "between its stages the model is put into another form",
    },
    "newcomers": {
        "lora, then personal": "its last phase asks everybody",
        "lora-finetune": "its last phase asks everybody",
        "lora, last training validated": "its last phase asks everybody",
        "fibecfed, last rounds averaged, closing round, then validated": "its last phase asks everybody",
        "ffa on global layers, personal head, then personal": "its last phase asks everybody",
        **dict.fromkeys(["fedpeptao", *(one for one in DEPTH if "position" not in one)], "its first phase asks everybody"),
        "importance in the first round, last layers, exact": "its last phase asks everybody",
        "depth by coverage, all rules": "its last phase asks everybody",
        **dict.fromkeys(["agreement, all rules", "preset best", "preset fast", "means of what stays"], "its last phase asks everybody"),
    },
    "sizes_of_messages_do_not_depend_on_the_clock": {"hetlora": "clients of different ranks send differently large tensors"},
}
"""Law -> variant -> why it need not hold there."""
every_method = pytest.mark.parametrize("variant", VARIANTS)


def must(law: str, variant: str) -> None:
    """Skip the test, with the reason, where the table exempts the variant from the law."""
    if variant in EXEMPT.get(law, {}):
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


@cache
def subject(variant: str) -> Subject:
    return Subject(lambda: method(variant), lambda: new_task(variant), DATA, variant in EXEMPT["newcomers"])


def test_the_table_has_every_method():
    assert {options.get("kind", "fibecfed") for options in VARIANTS.values()} == set(METHODS)


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
@every_method
def test_the_law_holds(variant: str, law: Any):
    must(law.__name__, variant)
    law(subject(variant))


OPEN = {
    "depth by coverage, all rules": "the Fisher information of the clients says how many blocks are trained",
    **dict.fromkeys(("agreement", "agreement, all rules", "preset best"), "training says which layers stay on the clients"),
    "layer_gap, coverage, rescored": "the curvature of the clients' loss says how many layers travel",
    "importance in the first round, layer_gap, depth": "the Fisher information says how many blocks are trained",
    "lora, depth by coverage, exact, personal head": "the Fisher information of the clients says how many blocks are trained",
    "hetlora": "training says whose rank falls",
}
"""Variant -> why the sizes of its messages are not known before the run."""


@every_method
def test_the_bytes_of_a_run_are_foretold_to_the_last_one_from_shapes_alone(variant: str):
    world, _, records = subject(variant).finished
    adapter = getattr(made_options(**VARIANTS[variant]), "adapter", None)
    shaped = shaped_task(tiny_config("bert"), ModelOptions(rank=2), num_classes=2, adapter=adapter)
    assert {name: value.shape for name, value in shaped.params().items()} == {n: v.shape for n, v in task_of(variant).params().items()}
    num_samples = {client: len(DATA.client(client).train) for client in DATA.clients}
    foretold = by_phase(plan(method(variant), shaped, num_samples, world.per_round, KEY.fold("run")))
    assert [(row.phase, row.num_rounds) for row in foretold] == [(phase.name, phase.num_rounds) for phase in world.method.phases]
    for row in foretold:
        for way, span in (("bytes_down", row.total_down), ("bytes_up", row.total_up)):
            sent = sum(sum(getattr(record, way).values()) for record in records if record.phase == row.phase)
            assert span.least <= sent <= span.most, f"{row.phase}, {way}"
            assert variant in OPEN or span.least == span.most, f"{row.phase}, {way}"
    assert (variant in OPEN) == any(row.total.least < row.total.most for row in foretold)


@every_method
def test_the_steps_of_a_round_are_foretold(variant: str):
    world, _, records = subject(variant).finished
    phases, before = {phase.name: phase for phase in world.method.phases}, set[str]()
    for record in records:
        now = Round(record.phase, record.index, phases[record.phase].num_rounds, record.number)
        rest = before if getattr(world.method, "trains_others", lambda _: False)(now) else ()
        for client, steps in record.steps.items():
            expected = 0 if client in rest else world.method.load(len(DATA.client(client).train), now, 0.5).steps
            assert expected == steps, f"{record.phase} round {record.index}"
        before = set(record.steps)


LEAVE_A_LOWER_PART = ("depth by Fisher information", "depth by coverage, all rules", "depth by position, exact", "lpt", *DEPTH)


@pytest.mark.parametrize("budget", [2**22, 3_000])
@pytest.mark.parametrize("variant", [*LEAVE_A_LOWER_PART, "lora", "fedpeptao", "slora"])
def test_kept_activations_change_no_bit(variant: str, budget: int):
    """Neither of a state, nor of what a client predicts."""
    task = new_task(variant)
    task.keep_activations(budget)
    world = subject(variant).begun(task=task)
    world.finish()
    whole, moments, _ = subject(variant).finished
    assert blobs(world) == moments[-1]
    phase = world.method.phases[-1]
    now = Round(phase.name, phase.num_rounds - 1, phase.num_rounds, 0)
    for client in world.data.clients:
        state = world.state(client) if client in world.states.clients() else world.method.init_client(task, client, KEY.fold("run", "init"))
        params = world.method.personalise(phase.broadcast(world.server, now), state)
        batch = world.data.client(client).test.batch([0])
        assert torch.equal(task.logits(params, batch), whole.task.logits(params, batch))
    if budget == 2**22 and variant in ("depth by position, exact", "lpt"):
        assert task.lower_blocks is not None and task.lower_blocks.found > 0


FROZEN: dict[str, tuple[str, ...]] = {
    "ffa-lora": ("lora_A",),
    "ffa-lora, depth by position": ("lora_A", "layer.0."),
    **dict.fromkeys(("depth by position, exact", "fedadam, depth by position", "local, depth by position"), ("layer.0.",)),
}
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
        client = client_view(world, data.clients[0], step.now.number)
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
        params = trained(world.method, client_view(world, client, step.now.number, state), params, step.now)
        state = world.state(client)
        phase = next(phase for phase in world.method.phases if phase.name == step.now.phase)
        personal = world.method.personalise(phase.broadcast(step.server, step.now), world.state(client))
        assert same(pick(personal, task_of(variant).names), pick(params, task_of(variant).names)), f"after round {step.now.number}"
        assert not any(value.any() for name, value in personal.items() if name.endswith(DELTA))

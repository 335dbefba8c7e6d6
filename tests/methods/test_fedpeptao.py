"""FedPepTAO: layer scores, what travels, and the server's step as its formulas say; and the rows with momentum."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from made import KEY, client_view, federation, made_data, made_method, names_of_layers

from fibecfed.adapters.options import PrefixAdapter
from fibecfed.core.method import Received
from fibecfed.core.types import Round
from fibecfed.core.wire import encode
from fibecfed.engine.checks import Refused, checked, expected
from fibecfed.engine.failures import STOP
from fibecfed.engine.runtime import frame
from fibecfed.local.curriculum import ceil_share
from fibecfed.methods.aggregation import ServerMomentum
from fibecfed.methods.catalogue import METHODS
from fibecfed.methods.fedpeptao import LocalLayersAndSteps, Scores, layer_scores
from fibecfed.methods.ratio import Ratio
from fibecfed.models.tiny import tiny_task

TASK, DATA = tiny_task("bert", layers=4, adapter=PrefixAdapter(num_tokens=3)), made_data()
EXACT = tiny_task("bert", layers=4, adapter=PrefixAdapter(num_tokens=3), dtype=torch.float64)
SCORE = Round("score", 0, 1, 0)


def test_the_score_is_that_of_the_eigenvalues_of_the_cosines_and_the_last_layer_has_none():
    hidden = [torch.randn(5, 3, 4, generator=KEY.fold(layer).generator(), dtype=torch.float64) for layer in range(3)]
    found = layer_scores(hidden).tolist()
    for layer in range(2):
        flat = hidden[layer].numpy().reshape(5, 12)
        cosines = [[a @ b / (np.linalg.norm(a) * np.linalg.norm(b)) for b in flat] for a in flat]
        eigenvalues = np.linalg.eigvals(np.array(cosines)) + 1e-5
        assert found[layer] == pytest.approx(np.sum(np.log(eigenvalues) + 1 / eigenvalues), rel=1e-9)
    assert found[2] == 0.0
    same = torch.ones(2, 3, 4)
    assert layer_scores([same, same])[0] == pytest.approx(math.log(2 + 1e-5) + 1 / (2 + 1e-5) + math.log(1e-5) + 1e5, rel=1e-6)


def test_every_client_scores_once_and_the_best_half_of_the_layers_by_the_weighted_mean_travels():
    world = federation(made_method("fedpeptao", rounds=2), TASK, DATA)
    steps = world.run()
    first = next(steps)
    assert first.now.phase == "score" and first.record.cohort == DATA.clients
    assert first.record.fields_up["scores"] == 5 * 4 * 8
    method, phase = made_method("fedpeptao", rounds=2), world.method.phases[0]
    fresh = federation(method, TASK, DATA)
    answers = {c: phase.client_update(client_view(fresh, c), phase.broadcast(fresh.server, SCORE), SCORE).message for c in DATA.clients}
    mean = np.average([a.scores.numpy() for a in answers.values()], axis=0, weights=[a.num_samples for a in answers.values()])
    np.testing.assert_allclose(first.server.scores.numpy(), mean, rtol=1e-12)
    assert first.server.layers == tuple(sorted(np.argsort(-mean)[:2].tolist()))
    second = next(steps)
    sent = set(world.method.phases[1].broadcast(second.server, second.now).shared)
    assert sent == names_of_layers(TASK, [*first.server.layers, None])
    for client in second.record.cohort:
        assert set(world.state(client).own) == set(TASK.names) - sent


@pytest.mark.parametrize(("ratios", "layers"), [((0.0, 0.0), 1), ((0.25, 0.75), 3), ((1.0, 1.0), 4)])
def test_by_the_plateau_rule_as_many_layers_travel_as_the_spectra_call_for(ratios: tuple[float, float], layers: int):
    """The mean by n_k of (0.25, 1 example) and (0.75, 3 examples) is 0.625: ceil(2.5) of 4 layers."""
    method = made_method("fedpeptao", rule="plateau", layers=0.25, spectrum_clients=2)
    world = federation(method, TASK, DATA)
    spectrum, score, _ = method.phases
    assert [(phase.name, phase.cohort) for phase in method.phases] == [("spectrum", 2), ("score", 5), ("tune", "sampled")]
    received = [Received(client, Ratio(ratio, n)) for client, ratio, n in zip("ab", ratios, (1, 3), strict=True)]
    server = spectrum.aggregate(world.server, received, Round("spectrum", 0, 1, 0))
    server = score.aggregate(server, [Received("a", Scores(torch.tensor([4.0, 3.0, 2.0, 1.0]).double(), 1))], SCORE)
    assert server.layers == tuple(range(layers))
    assert method.summary(server)["ratio"] == pytest.approx((ratios[0] + 3 * ratios[1]) / 4)


def test_the_plateau_rule_asks_the_spectrum_of_the_prefixes_and_the_run_goes_on_with_its_layers():
    method = made_method("fedpeptao", rule="plateau", spectrum_clients=1, rounds=1)
    world = federation(method, TASK, DATA)
    first, second, _ = world.finish()
    (notes,) = first.record.notes.values()
    assert first.now.phase == "spectrum" and first.server.ratio == notes["ratio"] and len(notes["eigenvalues"]) == 30
    assert len(second.server.layers) == ceil_share(notes["ratio"], 4)


@pytest.mark.parametrize("gradient", ["update", "difference"])
def test_the_servers_step_is_a_transcription_of_its_formulas_over_three_rounds(gradient: str):
    """w from the second round on; three rounds, so that velocity and controls of a round before count."""
    method = made_method("fedpeptao", clients=10, gradient=gradient)
    world = federation(method, EXACT, DATA)
    server = replace(world.server, layers=(1, 2))
    rate, num_clients, server_rate = method.training.learning_rate, 10, 0.05
    generator = KEY.generator()
    shared = method.phases[1].broadcast(server, Round("tune", 0, 3, 1)).shared
    tensors = {name: value.double().numpy() for name, value in shared.items()}
    c = {name: np.zeros_like(value) for name, value in tensors.items()}
    v = {name: np.zeros_like(value) for name, value in tensors.items()}
    c_k = {(k, name): np.zeros_like(value) for k in "abc" for name, value in tensors.items()}
    d_before: dict[str, np.ndarray] = {}
    kept: dict[str, Any] = {}
    for t, cohort in enumerate([("a", "b"), ("b", "c"), ("a", "c")]):
        sizes, steps = dict(zip(cohort, (3, 5), strict=True)), dict(zip(cohort, (2, 4), strict=True))
        sent = {
            k: {
                name: torch.from_numpy(w) + 0.01 * torch.randn(w.shape, generator=generator, dtype=torch.float64)
                for name, w in tensors.items()
            }
            for k in cohort
        }
        received = [Received(k, LocalLayersAndSteps(sent[k], sizes[k], steps[k]), kept.get(k)) for k in cohort]
        kept |= {r.client: method.phases[1].keep(server, r) for r in received}
        server = method.phases[1].aggregate(server, received, Round("tune", t, 3, t + 1))
        server_rate *= 0.99 if t else 1.0
        for name, w in list(tensors.items()):
            w_k = {k: sent[k][name].double().numpy() for k in cohort}
            w_mean = (sizes[cohort[0]] * w_k[cohort[0]] + sizes[cohort[1]] * w_k[cohort[1]]) / 8
            if EXACT.layer_of(name) is None:
                tensors[name] = w_mean
            else:
                d = w - w_mean
                old = {k: c_k[k, name] for k in cohort}
                for k in cohort:
                    c_k[k, name] = old[k] - c[name] + (w - w_k[k]) / (steps[k] * rate)
                c[name] = c[name] + 2 / num_clients * sum(steps[k] * (c_k[k, name] - old[k]) for k in cohort) / 6
                tensors[name] = w_mean
                if t:
                    g = d if gradient == "update" else d_before[name] - d
                    v[name] = sum(sizes[k] / 8 * (0.9 * v[name] + 0.1 * g + c[name] - c_k[k, name]) for k in cohort)
                    tensors[name] = w_mean - server_rate * v[name]
                d_before[name] = d
                np.testing.assert_allclose(server.velocity[name].numpy(), v[name], rtol=1e-10, atol=1e-12)
                np.testing.assert_allclose(server.control[name].numpy(), c[name], rtol=1e-10, atol=1e-12)
                for k in cohort:
                    np.testing.assert_allclose(kept[k].control[name].numpy(), c_k[k, name], rtol=1e-10, atol=1e-12)
            np.testing.assert_allclose(server.params[name].numpy(), tensors[name], rtol=1e-10, atol=1e-12)
    stays = names_of_layers(TASK, [0, 3])
    assert all(torch.equal(server.params[name], world.server.params[name]) for name in stays)


def test_the_servers_rate_falls_to_its_least():
    method = made_method("fedpeptao")
    assert method.server_rate(1) == pytest.approx(0.05 * 0.99)
    assert method.server_rate(10_000) == 1e-4


def test_the_rows_with_momentum_train_prefixes_of_five_and_say_where_the_momentum_is():
    for kind in ("fedpeptao", "momd", "moms-adamw"):
        assert METHODS[kind]().adapter == PrefixAdapter(num_tokens=5)  # pyright: ignore[reportAttributeAccessIssue]
    on_clients, on_server = made_method("momd"), made_method("moms-adamw")
    assert (on_clients.training.optimizer, on_clients.training.momentum) == ("sgd", 0.9)
    assert (on_server.training.optimizer, on_server.aggregation) == ("adamw", ServerMomentum(0.3, 0.9))


@pytest.mark.parametrize("steps", [0, -3])
def test_an_answer_without_steps_is_refused_since_the_server_divides_by_them(steps: int):
    world = federation(made_method("fedpeptao"), TASK, DATA)
    next(world.run())
    now = Round("tune", 0, 4, 1)
    phase = world.method.phases[1]
    down = phase.broadcast(world.server, now)
    update = phase.client_update(client_view(world, "0", 1), down, now)
    expect = expected(phase, world.server, down, now)
    checked(frame(encode(update.message), update.work), expect, STOP, None)
    with pytest.raises(Refused, match=f"it took {steps} steps, expected at least 1"):
        checked(frame(encode(replace(update.message, steps=steps)), update.work), expect, STOP, None)

"""A method from a package of its own: installed, found, run, compared, put under the laws; and what is said of one that breaks them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from saved import run_config, save_backbone, write_reviews

import fibecfed
from fibecfed.core.errors import RunFailed, UserError
from fibecfed.testing import BrokenLaw, check_method
from fibecfed.testing.laws import LAWS

ROOT = Path(__file__).parents[2]
TRAINING = fibecfed.TrainingOptions(local_epochs=1, batch_size=3, learning_rate=0.01)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which the example's package was installed."""
    target = tmp_path_factory.mktemp("site")
    source = tmp_path_factory.mktemp("source")
    for file in (ROOT / "examples" / "own-method").glob("*.*"):
        (source / file.name).write_bytes(file.read_bytes())
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index", "--target", target, source]
    subprocess.run(list(map(str, pip)), check=True, capture_output=True)
    return target


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    save_backbone(folder / "backbone")
    write_reviews(folder / "reviews.csv", 60)
    return folder


def command(site: Path, *words: str, code: str | None = None) -> subprocess.CompletedProcess[str]:
    program = ["-c", code] if code is not None else ["-m", "fibecfed", *words]
    paths = os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *program], capture_output=True, text=True, env=environment, check=False)


def test_an_installed_methods_kind_is_listed_checked_run_and_resumed(site: Path, inputs: Path, tmp_path: Path) -> None:
    listed = command(site, "list", "methods")
    assert "pull" in listed.stdout and "towards the model that a client was sent" in listed.stdout
    file = tmp_path / "run.toml"
    file.write_text(
        f'[model]\nname = "{inputs}/backbone"\nrank = 2\n[data]\npath = "{inputs}/reviews.csv"\ntext_column = "review"\n'
        'label_column = "verdict"\n[federation]\nclients = 4\nclients_per_round = 2\nrounds = 2\n[training]\nprecision = "float32"\n'
        '[method]\nkind = "pull"\nmu = 0.5\n'
    )
    checked = command(site, "check", str(file))
    assert checked.returncode == 0 and "tune" in checked.stdout, checked.stderr
    done = command(site, "run", str(file), "method.mu=0.25", "--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["method"] == "pull" and "mu = 0.25" in (tmp_path / "out" / "config.toml").read_text()
    wrong = command(site, "check", str(file), "method.nu=0.5")
    assert wrong.returncode == 2 and "method.nu" in wrong.stderr and "Traceback" not in wrong.stderr


def test_a_package_that_cannot_be_loaded_is_left_out_and_named_to_who_asks_for_it(site: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    (broken / "bad-1.dist-info").mkdir(parents=True)
    (broken / "bad-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: bad\nVersion: 1\n")
    (broken / "bad-1.dist-info" / "entry_points.txt").write_text("[fibecfed.methods]\nbad = bad_module:ROW\n")
    (broken / "bad_module.py").write_text("raise RuntimeError('needs a newer thing')\n")
    listed = command(broken, "list", "methods")
    assert listed.returncode == 0 and "the package bad offers it, but it cannot be loaded" in listed.stderr
    file = tmp_path / "run.toml"
    file.write_text('[data]\ntask = "sst2"\n[method]\nkind = "bad"\n')
    found = command(broken, "check", str(file))
    assert found.returncode == 2 and "Traceback" not in found.stderr
    assert "the package bad offers it, but it cannot be loaded (RuntimeError: needs a newer thing)" in " ".join(found.stderr.split())


def test_a_package_whose_method_has_the_name_of_another_is_left_out_and_named(inputs: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    (site / "like-1.dist-info").mkdir(parents=True)
    (site / "like-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: like\nVersion: 1\n")
    (site / "like-1.dist-info" / "entry_points.txt").write_text("[fibecfed.methods]\nlora = like_module:ROW\n")
    why = 'method.kind = "lora": the package like offers it too, but that name is taken; rename it there, or uninstall that package'
    listed = command(site, "list", "methods")
    assert listed.returncode == 0 and why in listed.stderr and "lora" in listed.stdout
    file = tmp_path / "run.toml"
    file.write_text(
        f'[model]\nname = "{inputs}/backbone"\nrank = 2\n[data]\npath = "{inputs}/reviews.csv"\ntext_column = "review"\n'
        'label_column = "verdict"\n[federation]\nclients = 4\nrounds = 2\n[training]\nprecision = "float32"\n'
    )
    checked = command(site, "check", str(file), "method.kind=lora")
    assert checked.returncode == 0 and f"note: {why}" in " ".join(checked.stderr.split())
    other = command(site, "check", str(file), "method.kind=fedprox")
    assert other.returncode == 0 and "taken" not in other.stderr


def test_a_method_of_ten_lines_in_a_program_outside_keeps_every_law(site: Path) -> None:
    code = """
from dataclasses import dataclass
import fibecfed
from fibecfed.testing import check_method

@dataclass(frozen=True)
class HalfWay(fibecfed.FedAvg):
    '''The server goes half of the way to the mean.'''
    def _aggregate(self, server, received, now):
        mean = super()._aggregate(server, received, now).params
        return type(server)({name: (value + mean[name]) / 2 for name, value in server.params.items()})

check_method(HalfWay(fibecfed.TrainingOptions(batch_size=3, learning_rate=0.01), 3))
print("kept", len(fibecfed.testing.laws.LAWS))
"""
    found = command(site, code=code.replace("'''", '"""'))
    assert found.returncode == 0 and found.stdout.strip() == f"kept {len(LAWS)}", found.stderr
    outside = """
import dataclasses, torch, fibecfed
from fibecfed.testing import check_method

@dataclasses.dataclass(frozen=True)
class Median:
    def start(self, task): return {}
    def beside(self, server, shared): return {}
    def step(self, server, received):
        median = {n: torch.stack([r.message.shared[n] for r in received]).median(0).values for n in received[0].message.shared}
        return dataclasses.replace(server, params={**server.params, **median})

check_method(fibecfed.FedAvg(fibecfed.TrainingOptions(batch_size=3, learning_rate=0.01), 3, aggregation=Median()))
"""
    found = command(site, code=outside)  # an aggregation that does not say how answers are folded in one by one
    assert found.returncode == 0, found.stderr


def test_a_method_given_as_an_object_runs_and_is_resumed_with_it(inputs: Path, tmp_path: Path) -> None:
    from fibecfed.engine.events import RoundDone

    config = run_config(inputs, federation={"rounds": 3})

    def make(context: fibecfed.MethodContext) -> Any:
        return replace(fibecfed.FedAvg(context.training, context.num_rounds), proximal=0.5)

    whole = fibecfed.run(config, tmp_path / "whole", method=make)
    assert whole["method"] == "custom"

    def stop(event: object) -> None:
        if isinstance(event, RoundDone) and event.index == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fibecfed.run(config, tmp_path / "part", stop, method=make)
    with pytest.raises(UserError, match=r"fibecfed\.resume\(out, method=\.\.\.\)"):
        fibecfed.resume(tmp_path / "part")
    with pytest.raises(UserError, match=r"method: got proximal=0\.25.*, expected proximal=0\.5.*, which the run began with"):
        fibecfed.resume(tmp_path / "part", method=lambda context: replace(make(context), proximal=0.25))
    summary, _ = fibecfed.resume(tmp_path / "part", method=make)
    assert summary["adapters"] == whole["adapters"]
    plain = fibecfed.run(run_config(inputs, federation={"rounds": 3}, method={"kind": "fedprox", "proximal": 0.5}), tmp_path / "plain")
    assert plain["adapters"] == whole["adapters"]
    with pytest.raises((UserError, RunFailed), match="got the class FedAvg"):
        fibecfed.run(config, tmp_path / "class", method=fibecfed.FedAvg)


def test_what_breaks_the_contract_is_named_by_its_law() -> None:
    plain = fibecfed.FedAvg(TRAINING, 3)
    check_method(plain)

    class Remembers(fibecfed.FedAvg):
        """Keeps something outside its states."""

        def _aggregate(self, server: Any, received: Any, now: Any) -> Any:
            seen.append(now)
            moved = super()._aggregate(server, received, now).params
            return type(server)({name: value + 1e-3 * len(seen) for name, value in moved.items()})

    class Writes(fibecfed.FedAvg):
        """Writes into the message that came in."""

        def _tune(self, client: Any, message: Any, now: Any) -> Any:
            update = super()._tune(client, message, now)
            next(iter(message.shared.values())).mul_(2)
            return update

    class Personal(fibecfed.FedAvg):
        """Answers with a model of its own and does not say so."""

        is_personal = False

        def personalise(self, message: Any, state: Any) -> Any:
            return {name: value * 2 for name, value in message.shared.items()}

    class Grows(fibecfed.FedAvg):
        """Sends more from the second round on, and does not say so."""

        def _aggregate(self, server: Any, received: Any, now: Any) -> Any:
            return replace(super()._aggregate(server, received, now), extra={"more": torch.zeros(100)})

        def _broadcast(self, server: Any, now: Any) -> Any:
            return replace(super()._broadcast(server, now), residual=server.extra)

        def personalise(self, message: Any, state: Any) -> Any:
            return message.shared

    seen: list[Any] = []
    with pytest.raises(BrokenLaw, match="the_same_seed_gives_the_same_bits"):
        check_method(Remembers(TRAINING, 3), exempt=("a_method_is_a_value_that_prints_pickles_and_compares",))
    with pytest.raises(BrokenLaw, match="a_message_that_came_in_is_never_written_to"):
        check_method(Writes(TRAINING, 3), exempt=("a_method_is_a_value_that_prints_pickles_and_compares",))
    with pytest.raises(BrokenLaw, match=r"size_that_was_foretold: tune round 1, .* bytes down, foretold \d+ to \d+"):
        check_method(Grows(TRAINING, 3), exempt=("a_method_is_a_value_that_prints_pickles_and_compares",))
    with pytest.raises(BrokenLaw, match="unless_it_says_so_every_client_answers_with_the_global_model"):
        check_method(Personal(TRAINING, 3), exempt=("a_method_is_a_value_that_prints_pickles_and_compares",))
    with pytest.raises(BrokenLaw, match="follows_the_contract: object has no phases, server_state"):
        check_method(object())
    with pytest.raises(BrokenLaw, match="prints_pickles_and_compares"):
        check_method(Personal(TRAINING, 3))


class NoName(fibecfed.FedAvg):
    """Looks for a tensor that is not there."""

    def personalise(self, message: Any, state: Any) -> Any:
        return {**super().personalise(message, state), "head": message.shared["head"]}


class NotFinite(fibecfed.FedAvg):
    """Divides by zero on the server, in the last round."""

    def _aggregate(self, server: Any, received: Any, now: Any) -> Any:
        mean = super()._aggregate(server, received, now).params
        return type(server)({name: value / (now.num_rounds - 1 - now.index) for name, value in mean.items()})


class HalfPrecision(fibecfed.FedAvg):
    """Sends tensors that the task cannot compute with."""

    def _broadcast(self, server: Any, now: Any) -> Any:
        message = super()._broadcast(server, now)
        return replace(message, shared={name: value.half() for name, value in message.shared.items()})


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (NoName, "KeyError: 'head'"),
        (NotFinite, "Diverged: tune round 2, .* not finite"),
        (HalfPrecision, "RuntimeError: .* must have the same dtype"),
    ],
)
def test_a_method_that_breaks_off_is_named_by_the_law_that_runs_reach_their_end(broken: type[fibecfed.FedAvg], said: str) -> None:
    with pytest.raises(BrokenLaw, match=f"^a_run_reaches_its_end: {said}"):
        check_method(broken(TRAINING, 3))


def changed(**changes: Any) -> Any:
    """A method whose only phase has other values."""

    class Changed(fibecfed.FedAvg):
        @property
        def phases(self) -> Any:
            return (replace(super().phases[0], **changes),)

    return Changed


def answering(**changes: Any) -> Any:
    """A method whose clients' updates have other values."""

    class Answering(fibecfed.FedAvg):
        def _tune(self, client: Any, message: Any, now: Any) -> Any:
            return replace(super()._tune(client, message, now), **changes)

    return Answering


def having(**functions: Any) -> Any:
    return type("Having", (fibecfed.FedAvg,), functions)


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (having(init=lambda *_: None), "init: the result is NoneType, expected Server"),
        (having(init_client=lambda *_: {}), "init_client: the result is dict, expected OwnTensors"),
        (having(_broadcast=lambda *_: {}), "phase 'tune', broadcast: the result is dict, expected Shared"),
        (having(_tune=lambda *_: None), "phase 'tune', client_update: the result is NoneType, expected Update"),
        (answering(message=3), "phase 'tune', client_update: its message is int, expected LocalModel"),
        (answering(state=None), "phase 'tune', client_update: its state is NoneType, expected OwnTensors"),
        (answering(work=7), "phase 'tune', client_update: its work is int, expected Work"),
        (answering(notes={"x": object()}), "phase 'tune', client_update: its notes: expected values that JSON knows"),
        (having(_aggregate=lambda *_: None), "phase 'tune', aggregate: the result is NoneType, expected Server"),
        (having(load=lambda *_: 3), "phase 'tune', load: the result is int, expected Load"),
        (having(personalise=lambda *_: None), "phase 'tune', personalise: the result is NoneType, expected Mapping"),
        (having(summary=lambda *_: {"x": object()}), "summary: the result: expected values that JSON knows"),
    ],
)
def test_a_function_that_returns_something_else_is_named_with_what_it_must_return(broken: type[fibecfed.FedAvg], said: str) -> None:
    with pytest.raises(BrokenLaw, match=f"^every_function_returns_what_it_must: {re.escape(said)}"):
        check_method(broken(TRAINING, 3))


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (changed(cohort="everyone"), "phase 'tune': cohort is 'everyone', expected \"sampled\" or a number of clients"),
        (changed(cohort=0), "phase 'tune': cohort is 0"),
        (changed(num_rounds=-1), "phase 'tune': num_rounds is -1, expected an integer of at least 0"),
        (changed(aggregate=None), "phase 'tune': aggregate is None, expected a function"),
        (changed(fold=3), "phase 'tune': fold is 3, expected a function"),
        (having(is_personal="no"), "is_personal is 'no', expected True or False"),
        (having(uses=("logits",)), "uses has 'logits', which is unknown, expected some of per-example gradients, layer"),
    ],
)
def test_a_value_that_a_method_may_not_have_is_named_before_it_is_run(broken: type[fibecfed.FedAvg], said: str) -> None:
    with pytest.raises(BrokenLaw, match=f"^follows_the_contract: .*{re.escape(said)}"):
        check_method(broken(TRAINING, 3))


def test_what_is_written_into_the_base_model_is_named_before_what_follows_from_it() -> None:
    def write(self: Any, client: Any, message: Any, now: Any) -> Any:
        with torch.no_grad():
            next(client.task.model.parameters()).add_(0.1)
        return fibecfed.FedAvg._tune(self, client, message, now)

    with pytest.raises(BrokenLaw, match=r"^the_base_model_keeps_every_byte: a weight was written"):
        check_method(having(_tune=write)(TRAINING, 3), exempt=("a_method_is_a_value_that_prints_pickles_and_compares",))


def test_a_method_without_rounds_or_with_too_few_to_see_growth_is_told_how_many_are_needed() -> None:
    with pytest.raises(BrokenLaw, match=r"^a_run_reaches_its_end: its phases have no rounds"):
        check_method(fibecfed.FedAvg(TRAINING, 0))
    with pytest.raises(BrokenLaw, match=r"^the_servers_state_does_not_grow.* took part in every round, .* at least three rounds .*, got 1"):
        check_method(fibecfed.FedAvg(TRAINING, 1))


def test_the_method_of_the_documentation_keeps_every_law_and_one_that_writes_in_place_does_not(site: Path) -> None:
    code = """
import fibecfed
from fibecfed.testing import BrokenLaw, check_method
from fibecfed_pull import Pull

training = fibecfed.TrainingOptions(batch_size=3, learning_rate=0.01)
check_method(Pull(training, num_rounds=3, mu=0.1))

class InPlace(Pull):
    def aggregate(self, server, received, now):
        for name, value in super().aggregate(server, received, now).params.items():
            server.params[name].copy_(value)
        return server

try:
    check_method(InPlace(training, num_rounds=3, mu=0.1))
except BrokenLaw as error:
    print(error)
"""
    found = command(site, code=code)
    assert found.returncode == 0, found.stderr
    law, _, what = found.stdout.partition(": ")
    assert (law, what) == ("a_message_that_came_in_is_never_written_to", "phase tune, aggregate wrote to the broadcast\n")


@pytest.mark.parametrize("wrong", [lambda: 1, 7, lambda a, b: None])
def test_what_is_no_method_is_said_before_anything_is_written(inputs: Path, tmp_path: Path, wrong: Any) -> None:
    with pytest.raises(UserError, match="method: "):
        fibecfed.run(run_config(inputs), tmp_path / "run", method=wrong)
    assert not (tmp_path / "run").exists()

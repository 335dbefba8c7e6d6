"""What a model is asked for before anything starts, and in which sentence it is rejected where it fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from every_family import config_of_run, quiet, save_tiny
from published import published
from saved import write_reviews

from fibecfed.core.errors import UserError
from fibecfed.core.rng import Key
from fibecfed.local.options import TrainingOptions
from fibecfed.methods.catalogue import METHODS, MethodContext, make
from fibecfed.models.base_models import build_task, find
from fibecfed.models.heads import UnsupportedModel
from fibecfed.models.objectives import ClassHead
from fibecfed.models.options import ModelOptions
from fibecfed.models.probe import rejecting, try_out
from fibecfed.models.tiny import tiny_task, tiny_words
from fibecfed.session import start

ALL = ("per-example gradients", "layer importance", "hidden states", "curvature")


def tried(task: Any, *uses: Any) -> None:
    try_out(task, "mine", "odd", pad=0, uses=uses)


def method(kind: str, **options: Any) -> Any:
    return make(METHODS[kind].model_validate(published({"kind": kind, **options})), MethodContext(TrainingOptions(), 4, 4, Key(0), 16))


# The sentence


def rejection(error: BaseException, **more: str) -> str:
    with pytest.raises(UserError) as found, rejecting("mine", "odd", "a test run", **more):
        raise error
    return str(found.value)


def test_whatever_a_model_raises_becomes_one_sentence() -> None:
    text = rejection(RuntimeError("\n  shapes do not fit.\nmore of it"))
    said = "a test run of this odd model failed with RuntimeError: shapes do not fit"
    assert text == f"model.name: mine cannot be used: {said}; docs/models.md lists what can"
    assert "failed with KeyError: no message; docs" in rejection(KeyError())
    assert "mine cannot be used with this method: a test run" in rejection(TypeError("x"), use=" with this method")
    assert len(rejection(RuntimeError("x" * 1000))) < 400


def test_a_reason_that_is_known_stands_alone_and_a_refusal_stays_as_it_is() -> None:
    assert rejection(UnsupportedModel("it has no head")) == "model.name: mine cannot be used: it has no head; docs/models.md lists what can"
    assert rejection(UserError("method.kind: of another kind")) == "method.kind: of another kind"


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory"), KeyboardInterrupt()])
def test_memory_that_runs_out_is_not_the_models_fault(error: BaseException) -> None:
    with pytest.raises(type(error)), rejecting("mine", "odd", "a test run"):
        raise error


# What is tried


@pytest.mark.parametrize("family", ["bert", "roberta", "gpt2", "llama"])
def test_models_that_can_do_everything_pass(family: Any) -> None:
    tried(tiny_task(family), *ALL)
    words = tiny_words(family)
    tried(tiny_task(family, words=words), *ALL)


@pytest.mark.parametrize(
    ("use", "broken"),
    [
        ("per-example gradients", "traced"),
        ("layer importance", "hidden_states"),
        ("layer importance", "embed"),
        ("hidden states", "hidden_states"),
        ("curvature", "exact"),
    ],
)
def test_only_what_the_method_uses_is_tried(use: str, broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise NotImplementedError("not in this family")

    task = tiny_task("bert")
    monkeypatch.setattr(task, broken, fail)
    tried(task)
    with pytest.raises(UserError, match=f"cannot be used with this method: {use} of this odd model failed with NotImplementedError"):
        tried(task, use)


def test_a_gradient_that_does_not_reach_the_adapter_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    task = tiny_task("bert")
    losses = task.losses
    frozen = {name: value for name, value in task.params().items() if task.layer_of(name) is not None}
    monkeypatch.setattr(task, "losses", lambda params, batch: losses({**params, **frozen}, batch))
    with pytest.raises(UserError, match="no gradient reaches the adapter in the layers of this odd model"):
        tried(task)


def test_a_loss_that_is_not_finite_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    task = tiny_task("bert")
    losses = task.losses
    monkeypatch.setattr(task, "losses", lambda params, batch: losses(params, batch) * float("nan"))
    with pytest.raises(UserError, match="the losses of this odd model are not finite numbers"):
        tried(task)


@pytest.mark.parametrize(
    ("kind", "options", "uses"),
    [
        ("lora", {}, set()),
        ("fibecfed", {}, {"per-example gradients", "layer importance"}),
        ("fibecfed", {"layers": {"rule": "plateau"}}, {"per-example gradients", "layer importance", "curvature"}),
        ("fibecfed", {"curriculum": {"pace": "none"}, "neurons": {"rule": "all"}, "layers": {"rule": "last"}}, set()),
        ("fedpeptao", {"rule": "share"}, {"hidden states"}),
        ("fedpeptao", {"rule": "plateau"}, {"hidden states", "curvature"}),
    ],
)
def test_methods_say_what_they_use(kind: str, options: dict[str, Any], uses: set[str]) -> None:
    assert set(getattr(method(kind, **options), "uses", ())) == uses


# Families


def build(folder: Path, kind: str = "lora") -> Any:
    chosen, found = ModelOptions(name=str(folder), rank=2), METHODS[kind]()
    with quiet():
        return build_task(
            find(chosen),
            chosen,
            TrainingOptions(precision="float32", device="cpu"),
            objective=ClassHead(2),
            pad_token_id=0,
            key=Key(0),
            adapter=getattr(found, "adapter", None),
            uses=getattr(method(kind), "uses", ()),
        )


def test_a_body_that_takes_no_embeddings_serves_the_methods_that_need_none(tmp_path: Path) -> None:
    save_tiny("esmc", tmp_path)
    assert build(tmp_path).num_layers == 2
    with pytest.raises(UserError, match="cannot be used with this method: layer importance of this esmc model failed with TypeError"):
        build(tmp_path, "fibecfed")


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("p-tuning-v2", "a test run with a prefix of this qwen3_5_text model failed with ValueError: Cannot get conv state"),
        ("fedpeptao", "a test run with a prefix of this qwen3_5_text model failed with ValueError: Cannot get conv state"),
        ("prompt-tuning", "its logits depend on the padding of the batch"),
    ],
)
def test_adapters_that_a_hybrid_of_attention_and_recurrence_cannot_serve_are_refused(kind: str, why: str, tmp_path: Path) -> None:
    save_tiny("qwen3_5_text", tmp_path)
    assert build(tmp_path).num_layers == 2
    with pytest.raises(UserError, match=rf"^model\.name: .* cannot be used with this method: .*{why}"):
        build(tmp_path, kind)


def test_nothing_is_written_where_a_model_is_refused(tmp_path: Path) -> None:
    save_tiny("canine", tmp_path / "backbone")
    write_reviews(tmp_path / "reviews.csv", 24)
    with quiet(), pytest.raises(UserError, match="a test run of this canine model failed with NotImplementedError"):
        start(config_of_run(tmp_path, "fibecfed"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_trial_leaves_the_random_stream_and_the_model_as_they_were() -> None:
    task = tiny_task("bert")
    before, state = task.params(), torch.get_rng_state()
    tried(task, *ALL)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in task.params().items())

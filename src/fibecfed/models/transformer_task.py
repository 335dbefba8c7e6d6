"""A Hugging Face classifier with an adapter, as functions of its trainable tensors (implements `core.task.Task`)."""

from __future__ import annotations

import contextlib
import copy
import inspect
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy

from ..core.rng import Key
from ..core.task import Tape, TracedLinear
from ..core.types import Batch, Params
from .heads import classifier_head


class TransformerTask:
    """Any Hugging Face sequence classifier, usually wrapped by PEFT, for `fibecfed`'s functions.

    The module is used, never written: its parameters stay what they were, and every method takes the trainable tensors as `params`
    under the names of `model.named_parameters()`. The task runs the body itself, takes the hidden state of the first token that is
    not padding (encoders) or of the last one (decoders), and applies the head to it, so that the logits of an example depend neither
    on the padding of its batch nor on the side it stands on.

    Args:
        model: a classifier with at least one parameter that requires a gradient.
        precision: "float32" (the parameters' own dtype, so also float64) or "bf16" (autocast).
        device: where to compute; the module is moved there.
        dropout: rate inside `training`; the module's own rates must have been set to it when it was built.

    Raises:
        ValueError: nothing is trainable, or a body or head of a kind that is not known here.
    """

    def __init__(
        self, model: nn.Module, *, precision: str = "float32", device: str | torch.device = "cpu", dropout: float = 0.0
    ) -> None:
        if precision not in ("float32", "bf16"):
            raise ValueError(f"precision: got {precision!r}, expected 'float32' or 'bf16'")
        self.model = model.to(device).eval()
        self.precision = precision
        self.dropout = dropout
        self._device = torch.device(device)
        self._classifier = _Classifier(self.model)
        self._twice = False
        trainable = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        if not trainable:
            raise ValueError("the model has no parameter that requires a gradient; wrap it with peft.get_peft_model first")
        self._names = tuple(sorted(trainable))
        self._name_set = frozenset(self._names)
        self._shapes = {name: trainable[name].shape for name in self._names}
        self._layers = {name: self._find_layer(name) for name in self._names}
        self._linears = _trained_linears(self.model, self._names)
        self._adapted = _adapted_weights(self.model)

    # What it is

    @property
    def num_layers(self) -> int:
        """L, transformer blocks of the backbone."""
        return len(self._classifier.blocks)

    @property
    def num_classes(self) -> int:
        """Classes of the head."""
        return self._classifier.config.num_labels

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self._device

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the trainable tensors, sorted."""
        return self._names

    def params(self) -> dict[str, Tensor]:
        """A copy of the model's trainable tensors under their `named_parameters()` names, on the CPU."""
        own = dict(self.model.named_parameters())
        return {name: own[name].detach().to("cpu", copy=True) for name in self._names}

    def init_params(self, key: Key) -> dict[str, Tensor]:
        """P at the start, drawn from `key`: LoRA's A uniform in +-1/sqrt(d_in) and B zero as in PEFT, the head's matrices normal with
        the backbone's `initializer_range` and its biases zero; anything else as it is in the module."""
        std = getattr(self._classifier.config, "initializer_range", 0.02)
        params = self.params()
        for name, value in params.items():
            generator = key.fold(name).generator()
            if "lora_A" in name:
                bound = 1 / math.sqrt(value.shape[1])
                params[name] = torch.empty(value.shape).uniform_(-bound, bound, generator=generator).to(value.dtype)
            elif "lora_B" in name or (self._layers[name] is None and value.ndim == 1):
                params[name] = torch.zeros_like(value)
            elif self._layers[name] is None and value.ndim == 2:
                params[name] = torch.empty(value.shape).normal_(0.0, std, generator=generator).to(value.dtype)
        return params

    def layer_of(self, name: str) -> int | None:
        """The 0-based transformer block that a trainable tensor sits in; None: the head."""
        return self._layers[name]

    def adapted_weights(self) -> Mapping[str, Tensor]:
        """The frozen weights that LoRA stands beside, by name."""
        return self._adapted

    # What it computes

    def losses(self, params: Params, batch: Batch, embeddings: Tensor | None = None) -> Float[Tensor, " batch"]:
        """-log p(label given the text; params) of each example, in nat, float32 or better."""
        return cross_entropy(self._logits(params, batch, embeddings), batch["labels"].to(self._device), reduction="none")

    @torch.no_grad()
    def logits(self, params: Params, batch: Batch) -> Float[Tensor, "batch classes"]:
        """Class scores, float32 or better, without a graph."""
        return self._logits(params, batch)

    def predict(self, params: Params, batch: Batch) -> Int[Tensor, " batch"]:
        """The most likely class of each example, without a graph."""
        return self.logits(params, batch).argmax(-1)

    @torch.no_grad()
    def embed(self, batch: Batch) -> Float[Tensor, "batch token hidden"]:
        """Input embeddings of the tokens, before positions or anything else is added to them."""
        return self._classifier.body.get_input_embeddings()(batch["input_ids"].to(self._device))

    def hidden_states(
        self, params: Params, batch: Batch, embeddings: Tensor | None = None
    ) -> tuple[Float[Tensor, "batch token hidden"], ...]:
        """The output of each of the L blocks (before any final norm)."""
        outputs: list[Tensor] = []
        handles = [
            block.register_forward_hook(lambda _module, _args, out: outputs.append(out[0] if isinstance(out, tuple) else out))
            for block in self._classifier.blocks
        ]
        with _removing(handles):
            self._logits(params, batch, embeddings)
        return tuple(outputs)

    def traced(self, params: Params, batch: Batch) -> tuple[Float[Tensor, " batch"], Tape]:
        """Losses, and the trained linear maps that led to them, with the inputs and outputs that per-example gradients are made of.

        Raises:
            ValueError: a trainable tensor that is not the weight or bias of a linear map.
        """
        covered = {name for _, weight, bias in self._linears for name in (weight, bias) if name}
        if covered != self._name_set:
            raise ValueError(f"per-example gradients need linear maps; these are not: {sorted(self._name_set - covered)[:5]}")
        records: list[TracedLinear] = []
        handles = []
        for module, weight, bias in self._linears:

            def record(_module: nn.Module, args: tuple[Tensor, ...], out: Tensor, w: str = weight, b: str | None = bias) -> None:
                records.append(TracedLinear(w, b, args[0].detach(), out))

            handles.append(module.register_forward_hook(record))
        with _removing(handles):
            losses = self.losses(params, batch)
        return losses, Tape(tuple(records))

    @contextlib.contextmanager
    def training(self, key: Key) -> Iterator[None]:
        """Inside, dropout is on and draws from `key`; the global generators are put back afterwards."""
        if self.dropout == 0:
            yield
            return
        devices = [self._device] if self._device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(key.seed())
            self.model.train()
            try:
                yield
            finally:
                self.model.eval()

    def exact(self) -> TransformerTask:
        """The same function in float32, or float64 if the model is, with attention that has second derivatives. A copy."""
        model = copy.deepcopy(self.model)
        if next(iter(self.params().values())).dtype != torch.float64:
            model = model.float()
        other = TransformerTask(model, device=self._device)
        other._twice = True
        return other

    # How

    def _logits(self, params: Params, batch: Batch, embeddings: Tensor | None = None) -> Tensor:
        if params.keys() != self._name_set:
            self._check_names(params)
        swapped = {f"model.{name}": value.to(self._device) for name, value in params.items()}
        inputs = {name: value.to(self._device) for name, value in batch.items() if name != "labels"}
        autocast = torch.autocast(self._device.type, torch.bfloat16) if self.precision == "bf16" else contextlib.nullcontext()
        attention = sdpa_kernel(SDPBackend.MATH) if self._twice else contextlib.nullcontext()
        with autocast, attention:
            logits = functional_call(self._classifier, swapped, (inputs, embeddings), tie_weights=False)
        return logits if logits.dtype == torch.float64 else logits.float()

    def _check_names(self, params: Params) -> None:
        missing = sorted(self._name_set - params.keys())
        unknown = sorted(params.keys() - self._name_set - self._adapted.keys())
        if missing or unknown:
            raise KeyError(f"params must be the task's own tensors: missing {missing[:3]}, unknown {unknown[:3]}")

    def _find_layer(self, name: str) -> int | None:
        prefix = self._classifier.blocks_name + "."
        return int(name[len(prefix) :].split(".", 1)[0]) if name.startswith(prefix) else None


class _Classifier(nn.Module):
    """Body, pooling by the attention mask, head."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.config = base.config
        self.body: nn.Module = getattr(base, base.base_model_prefix)
        self.blocks_name, self.blocks = _find_blocks(model, self.config.num_hidden_layers)
        self.head, self.pool_last = classifier_head(base, self.body)
        self._takes = frozenset(inspect.signature(self.body.forward).parameters)
        # RoBERTa counts positions from behind the padding index
        table = getattr(self.body, "embeddings", None)
        self._first_position = table.padding_idx + 1 if hasattr(table, "create_position_ids_from_input_ids") else 0

    def forward(self, inputs: Mapping[str, Tensor], embeddings: Tensor | None) -> Tensor:
        mask = inputs["attention_mask"]
        keywords: dict[str, Any] = {name: value for name, value in inputs.items() if name in self._takes}
        if "position_ids" in self._takes and "position_ids" not in keywords:
            keywords["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0) + self._first_position
        if "use_cache" in self._takes:
            keywords["use_cache"] = False
        if embeddings is not None:
            del keywords["input_ids"]
            keywords["inputs_embeds"] = embeddings
        hidden = self.body(**keywords).last_hidden_state
        index = _last(mask) if self.pool_last else mask.argmax(1)
        return self.head(hidden[torch.arange(len(mask), device=hidden.device), index])


def _last(mask: Tensor) -> Tensor:
    return (mask * torch.arange(1, mask.shape[1] + 1, device=mask.device)).argmax(1)


def _find_blocks(model: nn.Module, number: int) -> tuple[str, nn.ModuleList]:
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == number and "lora" not in name:
            return name, module
    raise ValueError(f"no list of {number} transformer blocks in {type(model).__name__}")


def _trained_linears(model: nn.Module, names: tuple[str, ...]) -> list[tuple[nn.Module, str, str | None]]:
    trained = set(names)
    found = []
    for path, module in model.named_modules():
        weight = f"{path}.weight"
        if isinstance(module, nn.Linear) and weight in trained:
            bias = f"{path}.bias"
            found.append((module, weight, bias if bias in trained else None))
    return found


def _adapted_weights(model: nn.Module) -> dict[str, Tensor]:
    modules = {path: module for path, module in model.named_modules() if hasattr(module, "lora_A") and hasattr(module, "base_layer")}
    return {f"{path}.base_layer.weight": module.base_layer.weight for path, module in modules.items()}


@contextlib.contextmanager
def _removing(handles: list[torch.utils.hooks.RemovableHandle]) -> Iterator[None]:
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()

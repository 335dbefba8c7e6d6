"""A Hugging Face model with an adapter, as functions of its trainable tensors: implements `core.task.Task`."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, Self

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..adapters.make import norms
from ..core.process import bound_freed_memory
from ..core.rng import Key
from ..core.statistics import Statistics
from ..core.task import DELTA, LowRank, Tape
from ..core.trees import moved
from ..core.types import Batch, Params
from .checkpointing import recomputed
from .depth import begins_of, graph_from
from .heads import UnsupportedModel
from .keeping import KeepsActivations
from .maps import adapted_weights, low_rank_maps, recorded, removing, trained_linears
from .network import ADAPTER, AdaptedNetwork
from .objectives import Objective
from .together import JoinedPasses
from .turns import KERNELS, lock_of, one_at_a_time

_NOT_INPUTS = ("labels", "targets", "weights")
_FREED = 2**32
"""Bytes of freed memory that stay with the process for the next batch."""


class AdaptedModel(KeepsActivations):
    """A Hugging Face model, usually wrapped by PEFT or with an adapter of ours, for `fibecfed`'s functions; what it predicts is the
    objective's.

    The module is never left written: after each call its parameters are what they were before, and every method takes the trainable
    tensors as `params` under the names of `model.named_parameters()`. During a call they stand in the module, so one call at a time is
    made on it, and a second thread waits: with dropout until the other has left `training`.

    The task runs the body itself and applies the head to its hidden states, so that the scores of an example depend neither on the padding
    of its batch nor on the side it stands on. Both are tried when it is made, on one example of four tokens: a family whose own call
    computes something else is rejected.

    Args:
        model: as the objective's `model_class` loads it, with at least one parameter that requires a gradient.
        precision: "float32" (the parameters' own dtype, so also float64) or "bf16" (autocast).
        device: where to compute; the module is moved there.
        dropout: rate inside `training`; the module's own rates must have been set to it when it was built.

    Raises:
        ValueError: nothing is trainable, or an unknown precision.
        UnsupportedModel: a body or head of a kind that is not known here (a ValueError as well).
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        objective: Objective,
        precision: str = "float32",
        device: str | torch.device = "cpu",
        dropout: float = 0.0,
    ) -> None:
        if precision not in ("float32", "bf16"):
            raise ValueError(f"precision: got {precision!r}, expected 'float32' or 'bf16'")
        self.model = model.to(device).eval()
        self.dropout = dropout
        self._device = torch.device(device)
        self._objective = objective
        self._network = AdaptedNetwork(self.model, objective)
        self.lock = lock_of(self._network.body)
        self._start: tuple[Key, Mapping[str, Tensor]] | None = None
        self._twice = False
        self._fused: str | None = None
        trainable = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        if not trainable:
            raise ValueError("the model has no parameter that requires a gradient; wrap it with peft.get_peft_model first")
        self._names = tuple(sorted(trainable))
        self._name_set = frozenset(self._names)
        self._layers = {name: self._find_layer(name) for name in self._names}
        self._norms = frozenset(norms(self.model))
        adapter = self._network.adapter
        front = self.num_layers // 2 if adapter is not None and adapter.from_middle else 0
        self._begins = begins_of(self._layers, self._norms, ADAPTER, front, self.num_layers)
        self.recomputes_blocks = False  # in the backward pass, from their inputs: `checkpointing`
        self.linears = trained_linears(self.model, self._name_set)
        self._adapted = adapted_weights(self.model)
        self._low_rank, self._transposed = low_rank_maps(self.model, self._name_set)
        coarse = any(p.dtype in (torch.bfloat16, torch.float16) for p in self.model.parameters())
        self.precision = precision if coarse else "float32"
        self._try_out(tolerance=0.05 if coarse else 1e-3)
        self.precision = precision

    # What it is

    @property
    def num_layers(self) -> int:
        """L, transformer blocks of the base model."""
        return len(self._network.blocks)

    @property
    def objective(self) -> Objective:
        """What it predicts."""
        return self._objective

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self._device

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the trainable tensors, sorted."""
        return self._names

    @one_at_a_time
    def params(self) -> dict[str, Tensor]:
        """A copy of the model's trainable tensors under their `named_parameters()` names, on the CPU."""
        return {name: self.model.get_parameter(name).detach().to("cpu", copy=True) for name in self._names}

    def init_params(self, key: Key) -> dict[str, Tensor]:
        """P at the start, drawn from `key`: LoRA's A uniform in +-1/sqrt(d_in) and B zero as in PEFT, the head's matrices normal with
        the base model's `initializer_range` and its biases zero; what another adapter says of its own; anything else, as normalisation
        layers, as it is in the module. The last start is kept, since every client begins with the same; what is returned is a copy."""
        start = self._start
        if start is None or start[0] != key:
            self._start = start = key, self._drawn(key)
        return {name: value.clone() for name, value in start[1].items()}

    def _drawn(self, key: Key) -> dict[str, Tensor]:
        std = getattr(self._network.config, "initializer_range", 0.02)
        vocabulary = self._network.body.get_input_embeddings().weight
        params = self.params()
        for name, value in params.items():
            generator = key.fold(name).generator()
            if name.startswith(ADAPTER) and self._network.adapter is not None:
                params[name] = self._network.adapter.draw(name.removeprefix(ADAPTER), value, generator, vocabulary)
            elif name in self._norms:
                continue
            elif "lora_A" in name:
                bound = 1 / math.sqrt(value.shape[1])
                params[name] = torch.empty(value.shape).uniform_(-bound, bound, generator=generator).to(value.dtype)
            elif "lora_B" in name or (self._layers[name] is None and value.ndim == 1):
                params[name] = torch.zeros_like(value)
            elif self._layers[name] is None and value.ndim == 2:
                params[name] = torch.empty(value.shape).normal_(0.0, std, generator=generator).to(value.dtype)
        return params

    def layer_of(self, name: str) -> int | None:
        """The 0-based transformer block that a trainable tensor sits in or belongs to; None: the head, or a prompt of the whole model."""
        return self._layers[name]

    def adapted_weights(self) -> Mapping[str, Tensor]:
        """The frozen weights that LoRA stands beside, by name."""
        return self._adapted

    def low_rank(self) -> tuple[LowRank, ...]:
        """The LoRA maps whose A and B are trained, in order of their weights."""
        return self._low_rank

    # What it computes

    def losses(self, params: Params, batch: Batch, embeddings: Tensor | None = None) -> Float[Tensor, " batch"]:
        """The objective's loss of each example, in nat, float32 or better."""
        return self._objective.losses(self._logits(params, batch, embeddings), batch)

    @one_at_a_time
    @torch.no_grad()
    def scores(self, params: Params, batch: Batch) -> Tensor:
        """The head's scores, float32 or better, without a graph."""
        with self._without_graph():
            return self._logits(params, batch)

    @property
    def statistics(self) -> Statistics:
        """Which sums `sums` gives: the objective's."""
        return self._objective.statistics

    def sums(self, params: Params, batch: Batch) -> dict[str, Tensor]:
        """Sums over the examples of a batch, without a graph, on the CPU: what every metric is computed from."""
        return self._objective.sums(self.scores(params, batch), batch)

    @one_at_a_time
    @torch.no_grad()
    def embed(self, batch: Batch) -> Float[Tensor, "batch token hidden"]:
        """Input embeddings of the tokens, before positions or anything else is added to them."""
        return self._network.body.get_input_embeddings()(moved(batch["input_ids"], self._device))

    @one_at_a_time
    def hidden_states(
        self, params: Params, batch: Batch, embeddings: Tensor | None = None
    ) -> tuple[Float[Tensor, "batch token hidden"], ...]:
        """The output of each of the L blocks (before any final norm), at the text's tokens."""
        outputs: list[Tensor] = []
        before = self._network.num_positions

        def record(_module: nn.Module, _args: Any, out: Any) -> None:
            outputs.append((out[0] if isinstance(out, tuple | list) else out)[:, before:])

        handles = [block.register_forward_hook(record) for block in self._network.blocks]
        with removing(handles):
            self._logits(params, batch, embeddings, keeps=False)
        return tuple(outputs[-self.num_layers :])  # an adapter may have run the body before, for a vector of the text

    @one_at_a_time
    def traced(self, params: Params, batch: Batch) -> tuple[Float[Tensor, " batch"], Tape]:
        """Losses, and the trained linear maps that led to them, with the inputs and outputs that per-example gradients are made of.

        Those in blocks below every tensor that requires a gradient are left out: nothing there has one.

        Raises:
            ValueError: a trainable tensor that is not the weight or bias of a linear map.
        """
        covered = {name for linear in self.linears for name in (linear.weight, linear.bias) if name}
        if covered != self._name_set:
            raise ValueError(f"per-example gradients need linear maps; these are not: {sorted(self._name_set - covered)[:5]}")
        first = self._first_trained(params) or 0
        linears = [linear for linear in self.linears if self._begins[linear.weight] >= first]
        with recorded(linears, params, len(batch["attention_mask"])) as records:
            losses = self.losses(params, batch)
        return losses, Tape(tuple(records))

    def training(self, key: Key) -> AbstractContextManager[None]:
        """Inside, dropout is on and draws from `key`; the global generators of CPU and CUDA are put back afterwards."""
        passes = self.together()
        return passes.drawing(passes.stream(key))

    def together(self) -> JoinedPasses:
        """Passes over batches of several clients, each with its own tensors."""
        return JoinedPasses(self, self._network.config.pad_token_id or 0)

    @one_at_a_time
    def use_plain_attention_for_gradients(self) -> None:
        """From now on attention is fused only where no gradient is asked for: on CPUs its backward in bf16 takes half of a step, that
        of plain attention a tenth."""
        self._fused = self._network.config._attn_implementation
        self._set_attention("eager")

    @one_at_a_time
    def exact(self) -> Self:
        """The same function in float32, or float64 if the model is, with attention that has second derivatives. A copy."""
        model = copy.deepcopy(self.model)
        if next(iter(self.params().values())).dtype != torch.float64:
            model = model.float()
        other = type(self)(model, objective=self._objective, device=self._device)
        other._twice = True
        return other

    # How

    @one_at_a_time
    def _logits(
        self, params: Params, batch: Batch, embeddings: Tensor | None = None, *, adapted: bool = True, keeps: bool = True
    ) -> Tensor:
        """The head's scores.

        Args:
            adapted: with the adapter.
            keeps: leave out lower blocks whose output is kept.
        """
        bound_freed_memory(_FREED)  # of the batches before this one, whatever they were for
        swapped = self._swapped(params)

        def forward(inputs: Batch) -> Tensor:
            here = {name: moved(value, self._device) for name, value in {**inputs, **self._objective.beside(inputs)}.items()}
            skipped = 0 if self.lower_blocks is None else self.lower_blocks.skipped
            own = {name: value for name, value in swapped.items() if self._stands_from(name, skipped)} if skipped else swapped
            return functional_call(self._network, own, (here, embeddings, adapted), tie_weights=False)

        inputs = self._inputs(batch)
        first = self._first_trained(params) if embeddings is None else 0
        lower = self.lower_blocks if keeps and adapted and embeddings is None and not self.model.training else None
        repeated = self._network.blocks if self.recomputes_blocks else ()
        with self._kernels(), graph_from(tuple(self._network.blocks), first or 0), recomputed(tuple(repeated), self.lock, self._device):
            if lower is None:
                logits = forward(inputs)
            else:
                attention = self._network.config._attn_implementation
                logits = lower.run(forward, inputs, first, lambda block: self._below(params, block), attention)
        return logits if logits.dtype == torch.float64 else logits.float()

    def _swapped(self, params: Params) -> dict[str, Tensor]:
        """What stands in the network during a call, by name inside it."""
        if params.keys() != self._name_set:
            self._check_names(params)
        swapped = {f"model.{name}": moved(value, self._device) for name, value in params.items() if not name.endswith(DELTA)}
        for weight in self._adapted if len(params) > len(self._names) else ():
            if (delta := params.get(weight + DELTA)) is not None:
                delta = delta.T if weight in self._transposed else delta
                swapped[f"model.{weight}"] = swapped.get(f"model.{weight}", self._adapted[weight]) + moved(delta, self._device)
        return swapped

    def _inputs(self, batch: Batch) -> Batch:
        return {name: value for name, value in batch.items() if name not in _NOT_INPUTS or name in self._objective.takes}

    def _stands_from(self, swapped: str, block: int) -> bool:
        """Whether a tensor, by its name in the network, does not lie in a block before number `block`."""
        layer = self._find_layer(swapped.removeprefix("model."))
        return layer is None or layer >= block

    def _first_trained(self, params: Params) -> int | None:
        """The lowest block in which a tensor that requires a gradient has a part, L if the head alone does; None without gradients."""
        if not torch.is_grad_enabled():
            return None
        return min((self._begin(name) for name, value in params.items() if value.requires_grad), default=None)

    def first_block(self, names: Collection[str]) -> int:
        """The lowest block in which any of these tensors has a part, L if the head alone does: those before it have no gradients."""
        return min((self._begin(name) for name in names), default=self.num_layers)

    def _below(self, params: Params, block: int) -> dict[str, Tensor]:
        """The tensors that have a part in the blocks before number `block`."""
        return {name: value for name, value in params.items() if self._begin(name) < block}

    def _begin(self, name: str) -> int:
        """As `begins_of`; a frozen weight given by its name, or what is added to it, begins in its block."""
        found = self._begins.get(name)
        return (self._find_layer(name) or 0) if found is None else found

    @contextlib.contextmanager
    def _kernels(self) -> Iterator[None]:
        autocast = torch.autocast(self._device.type, torch.bfloat16) if self.precision == "bf16" else contextlib.nullcontext()
        if not self._twice:
            with autocast:
                yield
            return
        with KERNELS, autocast, sdpa_kernel(SDPBackend.MATH):  # a switch of the whole process
            yield

    @contextlib.contextmanager
    def _without_graph(self) -> Iterator[None]:
        if self._fused is None:
            yield
            return
        self._set_attention(self._fused)
        try:
            yield
        finally:
            self._set_attention("eager")

    def _set_attention(self, implementation: str) -> None:
        model: Any = self.model
        model.set_attn_implementation(implementation)

    @one_at_a_time
    @torch.no_grad()
    def _try_out(self, tolerance: float) -> None:
        """Reject a model whose logits are not those of its own call (without an adapter of ours, of which that knows nothing), or depend
        on padding, by more than a fraction of the largest."""
        pad = self._network.config.pad_token_id or 0
        ids = self._network.few_tokens(self._objective.mask_id, self._device)
        ones, three = torch.ones_like(ids), ids[:, :3]
        left, right = (torch.full_like(three, pad), ids), (ids, torch.full_like(three, pad))
        seen_left, seen_right = (torch.zeros_like(three), ones), (ones, torch.zeros_like(three))
        padded_ids, padded_mask = (torch.cat([torch.cat(a, 1), torch.cat(b, 1)]) for a, b in ((left, right), (seen_left, seen_right)))
        with self._kernels():
            own = self._objective.own_scores(self.model(input_ids=ids, attention_mask=ones).logits.float(), ids)
        params = self.params()
        plain = self._logits(params, {"input_ids": ids, "attention_mask": ones}, adapted=False)
        try:
            alone = self._logits(params, {"input_ids": ids, "attention_mask": ones})
            padded = self._logits(params, {"input_ids": padded_ids, "attention_mask": padded_mask})
        except RuntimeError as error:
            if self._network.adapter is None:
                raise
            said = str(error).splitlines()[0]
            raise UnsupportedModel(f"{self._network.kind} is not supported with this adapter: {said}") from error
        unsupported = f"{self._network.kind} is not supported"
        if (plain - own).abs().max() > tolerance * own.abs().max():
            raise UnsupportedModel(
                f"{unsupported}: pooling the {self._network.pooling} token and applying its head does not reproduce its own logits"
            )
        if (padded.reshape(2, -1) - alone.reshape(1, -1)).abs().max() > tolerance * alone.abs().max():
            raise UnsupportedModel(f"{unsupported}: its logits depend on the padding of the batch")

    def _check_names(self, params: Params) -> None:
        missing = sorted(self._name_set - params.keys())
        unknown = sorted(params.keys() - self._name_set - self._adapted.keys() - {name + DELTA for name in self._adapted})
        if missing or unknown:
            raise KeyError(f"params must be the task's own tensors: missing {missing[:3]}, unknown {unknown[:3]}")

    def _find_layer(self, name: str) -> int | None:
        for prefix in (f"{self._network.blocks_name}.", f"{ADAPTER}layers."):
            if name.startswith(prefix):
                return int(name[len(prefix) :].split(".", 1)[0])
        return None

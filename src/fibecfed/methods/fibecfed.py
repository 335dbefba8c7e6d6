"""FibecFed (Liu et al., EMNLP 2024, arXiv 2410.00131): Fisher curriculum, chosen layers shared, sparse updates of the others.

[S] marks what the paper's abstract and published summaries state, [C] what they leave open and is chosen here; docs/methods/fibecfed.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..core.method import ClientView, Defaults, Folding, Load, Phase, Received, Update
from ..core.rng import Key
from ..core.task import Task, Use
from ..core.trees import pick
from ..core.types import ClientId, Params, Round
from ..local import curriculum, selection
from ..local.batches import plain_epochs
from ..local.optimise import Fit, fit
from ..local.options import CurriculumOptions, LayerOptions, NeuronOptions, TrainingOptions
from ..local.private import fit_private
from ..local.schedule import in_round
from .aggregation import MEAN, Aggregation, Then, aggregation_of, deltas, mean_by_size, pools, residual_ratio, schedules_of
from .agreement import HALVES, Agreement, FoldedAgreement, agreement_of
from .catalogue import MethodContext
from .depth import BLOCKS, PHASE, Depth, Information, depth_of, ends, mean_information, untrained
from .depth import summary as trained_blocks
from .fibecfed_client import MEASURED, ClientPart, Own, Trained, default_score_after
from .fibecfed_messages import AllLayers, GlobalLayers, LocalLayers, Server
from .fibecfed_private import Sums, can_be_private, train_private
from .importance import NAME, Importance, Measuring, noted
from .importance import PHASE as IMPORTANCE
from .means import NO_MEANS, Means, marked, means_of
from .options import FibecFedOptions
from .parts import FROZEN_A, NOTHING, Names, of_layers, trained_on
from .ratio import AskRatio, Ratio, ask_ratio, mean_ratio, measured, no_share


@dataclass(frozen=True)
class FibecFed(Defaults):
    """The method of a configuration; see the option tables for each part.

    Attributes:
        aggregation: how answers become the next global layers.
        shares_head: whether the head is averaged, or stays with each client.
        still: which tensors of the shared layers are neither trained nor sent.
        depth: which blocks are trained; None: all.
        agreement: the rule that decides during training which layers are shared; None: they are chosen before it.
        means: when the layers that clients keep are averaged, and what they do with the mean.
        score_after: round from which on a client is scored, at the start of its first local training.
        key: random stream of the method's own draws (random rules and orders).
    """

    training: TrainingOptions
    num_rounds: int
    curriculum: CurriculumOptions
    layers: LayerOptions
    neurons: NeuronOptions
    score_after: int
    closing_round: bool
    key: Key
    aggregation: Aggregation = MEAN
    shares_head: bool = True
    still: Names = NOTHING
    depth: Depth | None = None
    agreement: Agreement | None = None
    means: Means = NO_MEANS

    server_state = Server
    client_state = Own
    is_personal = True

    @property
    def trains_whole(self) -> bool:
        """Whether a round is on all examples and updates all that a client has: every neuron, and both factors of LoRA."""
        return self.curriculum.pace == "none" and self.neurons.rule == "all" and self.still == NOTHING

    @property
    def phases(self) -> tuple[Phase[Server, Own, Any, Any], ...]:
        """Phase 1 measures what the layer rule needs; phase 2 tunes; the closing round, if asked for, sends every layer once."""
        rows: list[Phase[Server, Own, Any, Any]] = []
        if self.depth is not None and self.depth.measures:
            rows.append(self.depth.phase(self._choose_blocks, _num_blocks))
        if self._measuring.is_separate:
            rows.append(self._measuring.phase(self._choose))
        if self._measures_ratio:
            row = ("spectrum", 1, self.layers.spectrum_clients, AskRatio, Ratio, ask_ratio, self._ratio, self._count)
            rows.append(Phase(*row, problem=no_share, trains=False))
        row = ("tune", self.num_rounds, "sampled", GlobalLayers, LocalLayers, self._broadcast, self._tune, self._aggregate)
        # what is sent changes, so that answers cannot wait for a later round
        changes = self._measuring.is_first or self.agreement is not None or bool(self.means.every)
        schedules = tuple(one for one in schedules_of(self.aggregation) if one != "buffered" or not changes)
        only_mean = pools(self.aggregation) and not changes and type(self)._aggregate is FibecFed._aggregate
        rows.append(Phase(*row, template=self._answer_like, fold=self._fold, schedules=schedules, pools=only_mean, sums=self._sums(0)))
        if self.closing_round:
            row = ("closing", 1, "sampled", GlobalLayers, AllLayers, self._broadcast, self._close, self._aggregate)
            rows.append(Phase(*row, template=_all_layers, fold=self._fold, schedules=schedules, sums=self._sums(self.num_rounds)))
        return tuple(rows)

    @property
    def uses(self) -> frozenset[Use]:
        """What it asks of the task beside losses and their gradients."""
        scores = self.curriculum.pace != "none" and self.curriculum.order == "fisher"
        asked: dict[Use, bool] = {
            "per-example gradients": scores
            or (self.depth is not None and self.depth.measures)
            or self.neurons.rule not in ("all", "random"),
            "layer importance": self._measuring.needed,
            "curvature": self._measures_ratio,
        }
        return frozenset(use for use, needed in asked.items() if needed)

    @property
    def _measures_ratio(self) -> bool:
        return self.layers.rule in ("layer_gap", "plateau")

    @property
    def _measuring(self) -> Measuring:
        return Measuring(self.layers)

    def _sums(self, offset: int) -> Sums | None:
        """As `Phase.sums`; None where something is measured that is not noised."""
        measures = self._measuring.is_first or self.agreement is not None or type(self)._train is not FibecFed._train
        if measures or not can_be_private(self.curriculum):
            return None
        scores = self.curriculum.pace != "none" and self.curriculum.order == "fisher"
        return Sums(self.training.local_epochs, scores, self.score_after, self.curriculum.rescore_every, offset)

    def init(self, task: Task, key: Key) -> Server:
        """P at the start; rules that measure nothing choose their layers at once."""
        unknown = torch.zeros(task.num_layers)
        params = task.init_params(key)
        where = [task.layer_of(name) for name in sorted(params)]
        tensor_layers = tuple(-1 if layer is None else layer for layer in where)
        trained = () if self.depth is None else self.depth.at_start(task.num_layers)
        remembered = {} if self.agreement is None else self.agreement.start(task.num_layers)
        server = Server(params, tensor_layers, unknown, 1.0, (), **self.aggregation.start(task), trained=trained, agreement=remembered)
        waits = self._measuring.is_separate or self._measures_ratio or (self.depth is not None and self.depth.measures)
        return server if waits else self._before_tuning(server)

    def init_client(self, task: Task, client: ClientId, key: Key) -> Own:
        """P at the start, not scored."""
        return Own(task.init_params(key), {}, {}, torch.empty(0, dtype=torch.int64), 0, 0)

    def personalise(self, message: GlobalLayers, state: Own) -> Params:
        """The shared tensors beside its own [S], which are pulled towards their mean, or the mean of those it has never trained [C];
        residuals beside the frozen weights."""
        own = {**message.rest, **self.means.pulled(state.own, message.rest)} if state.trainings else {**state.own, **message.rest}
        return {**own, **message.shared, **deltas(message.residual)}

    def server_params(self, server: Server) -> Params:
        """Global layers and head as averaged; the other layers as at the start, unless the first or a closing round has sent them."""
        return {**server.params, **deltas(self.aggregation.beside(server, self._shared(server).keys()))}

    def load(self, size: int, now: Round, chance: float) -> Load:
        """The round's fraction of the batches; scoring of the clients that are new in it; a gradient and two passes for the importance."""
        if now.phase == IMPORTANCE:
            return Load(passes=self._measuring.num_passes(size))
        if now.phase == PHASE and self.depth is not None:
            return self.depth.load(size)
        if now.phase == "spectrum":
            return Load()
        used, options = size, self.curriculum
        if options.pace != "none":
            batch_size = self.training.batch_size
            now = now if now.phase == "tune" else replace(now, index=self.num_rounds, num_rounds=self.num_rounds)
            share = curriculum.share(options, now.index, now.num_rounds)
            used = min(size, batch_size * curriculum.num_batches_used(share, math.ceil(size / batch_size)))
        scores = options.pace != "none" and options.order in MEASURED and options.scoring == "pass" and now.index >= self.score_after
        is_new = (1 - chance) ** (now.index - self.score_after) if scores else 0.0
        measured = self._measuring.num_passes(size) if self._measuring.is_in(now) else 0
        return trained_on(used, self.training, passes=is_new * size + measured)

    def outlook(self, server: Server, now: Round) -> Sequence[Server]:
        """Which layers are shared, and which blocks trained, is not known before they are measured; how many sometimes is."""
        states = tuple(replace(state, has_mean=self.means.made_before(now)) for state in self._chosen(server, now))
        return states if self.agreement is None else tuple(bound for state in states for bound in self.agreement.outlook(state, now))

    def _chosen(self, server: Server, now: Round) -> tuple[Server, ...]:
        """States after the measuring that bound what it may choose, the last one with the most layers."""
        first = self._measuring.is_in(now)
        if server.layers and (first or not self._measuring.is_first):
            return (server,)
        total, sets = len(server.importance), [server.trained]
        if self.depth is not None and not server.trained:
            sets = self.depth.choices(total)
        states: list[Server] = []
        for trained in sets:
            among, ratios = trained or _among(server), (0.0, 1.0) if self._measures_ratio else (None,)
            if first:
                numbers = [len(self._measuring.first_layers(ratio, among)) for ratio in ratios]
            elif self.layers.rule in ("coverage", "layer_gap", "plateau"):
                numbers = [1, len(among)]
            else:
                numbers = [len(selection.layers_among(self.layers, server.importance, None, self.key, among))]
            states += [replace(server, trained=trained, layers=chosen) for number in numbers for chosen in ends(among, number)]
        return tuple(states)

    def trains(self, task: Task, server: Server) -> Sequence[str]:
        """Every tensor, but for those of blocks that are not trained."""
        still = set(untrained(task, server.trained))
        return [name for name in task.names if name not in still]

    def summary(self, server: Server) -> Mapping[str, Any]:
        """Global layers, importance of each layer, share that the curvature called for."""
        return {
            "global_layers": list(server.layers),
            "num_layers": len(server.importance),
            "importance": [round(float(i), 6) for i in server.importance] if self._measuring.needed else None,
            "ratio": server.ratio if self._measures_ratio else None,
            "score_after": None if self.curriculum.pace == "none" else self.score_after,
            **trained_blocks(server),
            **({"residual_ratio": residual_ratio(server)} if server.maps else {}),
            **(self.agreement.summary(server) if self.agreement is not None else {}),
        }

    # Phase 1

    def _choose_blocks(self, server: Server, received: Sequence[Received[Information]], now: Round) -> Server:
        """The blocks whose Fisher information, weighted by n_k over the clients that answered, is largest [C]."""
        mean = mean_information(received)
        assert self.depth is not None
        server = replace(server, trained=self.depth.chosen(mean), information={BLOCKS: mean})
        return server if self._measuring.is_separate or self._measures_ratio else self._before_tuning(server)

    def _choose(self, server: Server, received: Sequence[Received[Importance]], now: Round) -> Server:
        """I = sum_k n_k I_k / sum_k n_k over the clients that answered [C]."""
        mean = selection.aggregate_importance([r.message.importance for r in received], [r.message.num_samples for r in received])
        server = replace(server, importance=mean)
        return server if self._measures_ratio else self._before_tuning(server)

    def _ratio(self, client: ClientView[Own], message: AskRatio, now: Round) -> Update[Own, Ratio]:
        rule = "layer_gap" if self.layers.rule == "layer_gap" else "plateau"
        return measured(client, client.state.own, rule, self.training)

    def _count(self, server: Server, received: Sequence[Received[Ratio]], now: Round) -> Server:
        return self._before_tuning(replace(server, ratio=mean_ratio(received)))

    def _before_tuning(self, server: Server) -> Server:
        """With the layers that are global in the first tuning round."""
        if not self._measuring.is_first:
            return self._with_layers(server)
        return replace(server, layers=self._measuring.first_layers(self._ratio_of(server), _among(server)))

    def _with_layers(self, server: Server) -> Server:
        ratio, key = self._ratio_of(server), self.key.fold("layers")
        return replace(server, layers=selection.layers_among(self.layers, server.importance, ratio, key, _among(server)))

    def _ratio_of(self, server: Server) -> float | None:
        return server.ratio if self._measures_ratio else None

    # Phase 2

    def _broadcast(self, server: Server, now: Round) -> GlobalLayers:
        shared = self._shared(server)
        beside = self.aggregation.beside(server, shared.keys())
        rest = self._rest(server) if self.agreement is not None or server.has_mean else {}
        return GlobalLayers(server.layers, shared, beside, server.trained, rest, self.means.all_sent(now))

    def _shared(self, server: Server) -> dict[str, Tensor]:
        """The tensors that are sent: those of the global layers, and the head's where it is shared."""
        found = of_layers(server.params, server.tensor_layers, server.layers, head=self.shares_head and server.shares_head)
        return {name: value for name, value in found.items() if name not in self.still.of(found)}

    def _rest(self, server: Server) -> dict[str, Tensor]:
        """The tensors of the layers that clients keep, and the head's where they keep it."""
        others = [layer for layer in _among(server) if layer not in server.layers]
        return of_layers(server.params, server.tensor_layers, others, head=not (self.shares_head and server.shares_head))

    def _aggregate(self, server: Server, received: Sequence[Received[Any]], now: Round) -> Server:
        """Mean of what came back, weighted by n_k over the clients that answered [S], or another aggregation [C]."""
        after = self.aggregation.step(server, received)
        if self.means.all_sent(now):
            after = marked(after)
        if self._measuring.is_in(now):
            return self._measured(after, mean_by_size(received, "importance")[NAME])
        if self.agreement is None or now.phase != "tune":
            return after
        return self.agreement.step(server, after, self._shared(server), received, now)

    def _measured(self, server: Server, importance: Tensor) -> Server:
        """After the tuning round in which importance was measured."""
        return self._with_layers(replace(server, importance=importance))

    def _fold(self, server: Server, now: Round) -> Folding[Server, Any] | None:
        fold = getattr(self.aggregation, "fold", None)
        inner = None if fold is None or type(self)._aggregate is not FibecFed._aggregate else fold(server)
        if inner is None:
            return None
        if self.means.all_sent(now):
            inner = Then(inner, marked)
        if self.agreement is not None and now.phase == "tune":
            return FoldedAgreement(self.agreement, server, self._shared(server), inner, now)
        return self._measuring.folding(inner, self._measured) if self._measuring.is_in(now) else inner

    def _answer_like(self, server: Server, now: Round) -> LocalLayers:
        importance = {NAME: torch.zeros(len(server.importance))} if self._measuring.is_in(now) else {}
        halves = {} if self.agreement is None else {HALVES: torch.zeros(len(server.importance) + 1, 2)}
        kept = self._rest(server) if self.means.all_sent(now) else {}
        return LocalLayers({**self._shared(server), **kept}, 1, importance, halves)

    def _tune(self, client: ClientView[Own], message: GlobalLayers, now: Round) -> Update[Own, LocalLayers]:
        importance, notes = dict[str, Tensor](), dict[str, Any]()
        if self._measuring.is_in(now):
            importance[NAME] = self._measuring.of(client, self.personalise(message, client.state))
            notes = noted(importance[NAME])
        found = self._train(client, message, now)
        sent = message.shared.keys() | (_kept(client.task, message) if message.all_sent else set[str]())
        answer = LocalLayers(pick(found.params, sent), client.data.train.weight, importance, found.halves)
        return Update(answer, found.state, found.work, found.notes | notes, found.params)

    def _close(self, client: ClientView[Own], message: GlobalLayers, now: Round) -> Update[Own, AllLayers]:
        found = self._train(client, message, replace(now, index=self.num_rounds, num_rounds=self.num_rounds))
        sent = set(client.task.names) - set(untrained(client.task, message.trained))  # no residual of the frozen weights
        answer = AllLayers({name: value for name, value in found.params.items() if name in sent}, client.data.train.weight)
        return Update(answer, found.state, found.work, found.notes, found.params)

    def train(self, client: ClientView[Own], params: Params, now: Round) -> Fit:
        """Every tensor, on all examples: what a client does of a model for itself alone."""
        return self._fit_whole(client, params, now, client.task.names)

    def finetuned(self, client: ClientView[Own], message: GlobalLayers, now: Round) -> Fit:
        """As `train`, from the client's own model, but for the blocks that are not trained."""
        still = set(untrained(client.task, message.trained))
        return self._fit_whole(client, self.personalise(message, client.state), now, [n for n in client.task.names if n not in still])

    def _fit_whole(self, client: ClientView[Own], params: Params, now: Round, names: Sequence[str]) -> Fit:
        train, options, dropout = client.data.train, in_round(self.training, now), client.key.fold("dropout")
        if client.private is not None:
            return fit_private(client.task, params, train, options, dropout, client.private, trained=names)
        epochs = plain_epochs(train, self.training, client.key, self.training.local_epochs)
        return fit(client.task, params, epochs, options, dropout, trained=names)

    def _train(self, client: ClientView[Own], message: GlobalLayers, now: Round) -> Trained:
        own_names = sorted(set(client.task.names) - message.shared.keys())
        own_layers = {name: client.task.layer_of(name) for name in own_names}
        blocks = untrained(client.task, message.trained)
        still = {*self.still.of([name for name in own_names if own_layers[name] in message.layers]), *blocks}
        masked = [name for name in own_names if own_layers[name] is not None and name not in still]  # neurons of a head are its classes
        kept, collected = own_names, masked
        layers = [n for n in client.task.names if client.task.layer_of(n) is not None and n not in still]
        if self.agreement is not None:  # a layer may stay here later on
            collected = layers
        if self._measuring.is_in(now):  # which layers stay here is not known yet
            kept, masked, collected = client.task.names, [], layers
        last, measures = self._last(now), self.agreement is not None
        part = ClientPart(self.training, self.curriculum, self.neurons, self.score_after, self.key, last, measures)
        what = (client, self.personalise(message, client.state), kept, masked, collected, still, blocks, now)
        return part.train(*what) if client.private is None else train_private(part, *what)

    def _last(self, now: Round) -> bool:
        """Whether nobody trains after this round of the phases here."""
        return now.index >= self.num_rounds - (not self.closing_round)


def _num_blocks(server: Server) -> int:
    return len(server.importance)


def _kept(task: Task, message: GlobalLayers) -> set[str]:
    """Names of the tensors of trained layers that are not shared, and the head's where it is not."""
    own, still = set(task.names) - message.shared.keys(), set(untrained(task, message.trained))
    return {name for name in own if task.layer_of(name) not in message.layers} - still


def _among(server: Server) -> Sequence[int]:
    """The layers of which some are global: those that are trained at all."""
    return server.trained or sorted({layer for layer in server.tensor_layers if layer >= 0})


def _all_layers(server: Server, now: Round) -> AllLayers:
    """What answers of the closing round look like: more than was sent."""
    kept = {*server.trained, -1} if server.trained else set(server.tensor_layers)
    return AllLayers(of_layers(server.params, server.tensor_layers, tuple(kept)), 1)


def build(options: FibecFedOptions, context: MethodContext) -> FibecFed:
    """FibecFed as its options say."""
    return FibecFed(
        training=context.training,
        num_rounds=context.num_rounds,
        curriculum=options.curriculum,
        layers=options.layers,
        neurons=options.neurons,
        score_after=default_score_after(context.num_rounds) if options.score_after is None else options.score_after,
        closing_round=options.closing_round,
        key=context.key,
        aggregation=aggregation_of(options.aggregation, options.server),
        shares_head=options.head != "personal",
        still=FROZEN_A if options.aggregation == "ffa" else NOTHING,
        depth=depth_of(options, context.key.fold("depth"), options.layers),
        agreement=agreement_of(options, context.num_rounds, context.num_clients),
        means=means_of(options.layers, context.num_rounds),
    )

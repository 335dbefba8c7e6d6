"""The options of every method: the table [method] of a configuration, one class for each `kind`. catalogue.py names them."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from ..adapters import options as adapters
from ..core.options import Options
from .fibecfed_tables import FibecFedCurriculum, FibecFedLayers, FibecFedNeurons
from .presets import filled_options
from .server_options import ServerOptions


class MethodOptions(Options):
    """Options of every method."""

    kind: Any = Field(default="", description="The method.")  # each has its own name here; first in its table
    finetune: bool | Literal["validated"] = Field(
        default=False,
        description="[C] After the last round, every client trains once more and keeps the result; validated: it keeps the mean of the "
        "models before and after, or one of these, where its loss on the validation part is lower by over a quarter of a standard error; "
        "where every client takes part in every round, the one after is that of the last round.",
    )
    tail_average: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="[C] Fraction of the rounds, the last ones, whose models are averaged: behind the last round their mean takes the "
        "place of its model. 0: none.",
    )
    needs_classes: ClassVar[bool] = False
    same_shapes: ClassVar[bool] = True  # all clients train tensors of the same shapes

    @classmethod
    def trains_on_answers(cls) -> bool:
        """Whether examples with answers can be trained on: without the probabilities of classes, and without a prompt made from the whole
        text, the answer in it."""
        adapter = cls.model_fields.get("adapter")
        return not cls.needs_classes and (adapter is None or adapters.called(adapter.default) in adapters.ANSWERING)


Blocks = Annotated[int, Field(ge=0)] | Annotated[float, Field(gt=0, le=1)] | None  # a number, or a fraction


class DepthParts(MethodOptions):
    """Options of methods that can leave whole blocks of the model as pre-trained: those that train LoRA of one rank on all of them."""

    depth: Blocks = Field(
        default=None,
        description="[C] How many blocks are trained: a number, or a fraction of them; the others stay as pre-trained and are neither sent "
        "nor updated. 0: none, the classification head alone. Default: all.",
    )
    depth_rule: Literal["fisher", "coverage", "last", "random"] = Field(
        default="fisher",
        description="[C] Which blocks: fisher: those with the largest Fisher information, measured before round 0; coverage: the fewest "
        "that hold the fraction `depth` of it; last, random: controls.",
    )


class ServerParts(DepthParts):
    """Options of methods with a server optimiser."""

    head: Literal["shared", "personal"] = Field(
        default="shared", description="[C] Whether the classification head is aggregated or kept by each client."
    )
    server: ServerOptions = ServerOptions()
    optimizer: ClassVar[str] = ""


class LoraParts(ServerParts):
    """Options of methods that aggregate LoRA layers: FedAvg-LoRA all of them, FibecFed its global layers."""

    aggregation: Literal["mean", "exact", "ffa", "fedavgm", "fedadam", "fedyogi"] = Field(
        default="mean",
        description="[C] How updates become the shared model: mean; exact: the mean of the products B A (FedEx-LoRA); ffa: the mean of B, "
        "with A frozen (FFA-LoRA); fedavgm, fedadam, fedyogi: a server optimiser, see `method.server`.",
    )


class CustomOptions(MethodOptions):
    """A method passed as an object to `fibecfed.run` in Python; a configuration cannot create it."""

    kind: Literal["custom"] = Field(default="custom", description="The method.")
    name: str = Field(default="", description="[C] Name of the method in records and reports.")


class FibecFedOptions(LoraParts):
    """FibecFed: layers on which clients agree are shared; as published, important ones, with a Fisher curriculum and sparse updates."""

    kind: Literal["fibecfed"] = Field(default="fibecfed", description="The method.")
    preset: Literal["paper", "fast", "best"] | None = Field(
        default=None,
        description="[C] Values for the keys that are not set: paper: the published method; fast: the least computing; best: the "
        "highest score, as by default. See docs/methods/fibecfed.md.",
    )
    finetune: bool | Literal["validated"] = Field(
        default="validated",
        description=f"{MethodOptions.model_fields['finetune'].description} Default: false with another rule of "
        "`method.layers`, and with `data.validation_fraction` = 0.",
    )
    depth: Blocks = Field(
        default=None,
        description=f"{DepthParts.model_fields['depth'].description} With the rule agreement of `method.layers` the upper five sixths, "
        "unless `method.depth_rule` or `model.layers_to_transform` is set.",
    )
    head: Literal["shared", "personal", "agreement"] = Field(  # type: ignore[assignment]
        default="agreement",
        description="[C] Whether the classification head is aggregated or kept by each client; agreement: as the layers' rule decides. "
        "Default: shared with another rule of `method.layers`, and without a new head.",
    )
    score_after: int | None = Field(
        default=None,
        ge=0,
        description="[C] First round in which clients score their examples; default ceil(0.2 rounds). 0 = [S] the published order.",
    )
    closing_round: bool = Field(
        default=False, description="[C] Add a last round in which the sampled clients send every layer, for the sake of new clients."
    )
    curriculum: FibecFedCurriculum = FibecFedCurriculum()
    layers: FibecFedLayers = FibecFedLayers()
    neurons: FibecFedNeurons = FibecFedNeurons()

    @model_validator(mode="before")
    @classmethod
    def _with_preset(cls, value: Any) -> Any:
        """What the preset stands for and what follows from other keys, where the options are made without a whole configuration."""
        return filled_options(value) if isinstance(value, dict) else value


class LoraOptions(LoraParts):
    """FedAvg-LoRA: all trainable parameters are averaged over the clients."""

    kind: Literal["lora"] = Field(default="lora", description="The method.")


class LoraFinetuneOptions(LoraParts):
    """FedAvg-LoRA, then one local training of every client, which keeps the result."""

    kind: Literal["lora-finetune"] = Field(default="lora-finetune", description="The method.")
    finetune: bool | Literal["validated"] = Field(default=True, description=MethodOptions.model_fields["finetune"].description)


class FedProxOptions(LoraParts):
    """FedProx: a proximal term keeps local training close to the global model (Li et al. 2020)."""

    kind: Literal["fedprox"] = Field(default="fedprox", description="The method.")
    proximal: float = Field(
        default=0.01,
        gt=0,
        description="[S] mu of the proximal term, mu / 2 x squared distance to the global model; the paper tries 0.001 to 1.",
    )


class ScaffoldOptions(DepthParts):
    """SCAFFOLD: control variates correct each local step for client drift (Karimireddy et al. 2020).

    Local steps are those of SGD without momentum or weight decay, whatever `training.optimizer`, `momentum` and `weight_decay` say [S].
    """

    kind: Literal["scaffold"] = Field(default="scaffold", description="The method.")
    server_learning_rate: float = Field(
        default=1.0, gt=0, description="[S] eta_g, server learning rate: factor on the mean change of the clients' models."
    )


class FedAvgMOptions(ServerParts):
    """FedAvgM: momentum on the server (Hsu et al. 2019)."""

    optimizer: ClassVar[str] = "fedavgm"
    kind: Literal["fedavgm"] = Field(default="fedavgm", description="The method.")


class FedAdamOptions(ServerParts):
    """FedAdam: Adam on the server (Reddi et al. 2021)."""

    optimizer: ClassVar[str] = "fedadam"
    kind: Literal["fedadam"] = Field(default="fedadam", description="The method.")


class FedYogiOptions(ServerParts):
    """FedYogi: Yogi on the server (Reddi et al. 2021)."""

    optimizer: ClassVar[str] = "fedyogi"
    kind: Literal["fedyogi"] = Field(default="fedyogi", description="The method.")


class LocalOptions(DepthParts):
    """No federation: every client trains alone, in the rounds it is sampled for."""

    kind: Literal["local"] = Field(default="local", description="The method.")


class VocOptions(DepthParts):
    """Curriculum by word rarity: competence grows over the rounds and limits the examples that are used (Platanios et al. 2019)."""

    kind: Literal["voc"] = Field(default="voc", description="The method.")
    start: float = Field(default=0.01, gt=0, le=1, description="[S] c0, initial competence: fraction of the examples used in round 0.")
    share: float = Field(default=0.9, gt=0, le=1, description="[C] T', fraction of the rounds after which all data are used.")


class SlwOptions(DepthParts):
    """Sequence length warm-up: texts are truncated to a length that grows over the rounds (Li et al. 2022)."""

    kind: Literal["slw"] = Field(default="slw", description="The method.")
    start: int = Field(default=8, ge=4, description="[S] Maximum length in round 0, in tokens.")
    step: int = Field(default=8, ge=1, description="[S] Lengths are multiples of this.")
    share: float = Field(default=0.3, gt=0, le=1, description="[C] Fraction of the rounds after which texts have their full length.")


class ShortformerOptions(DepthParts):
    """Staged training: truncated texts in the first half of the rounds, full length afterwards (Press et al. 2021)."""

    kind: Literal["shortformer"] = Field(default="shortformer", description="The method.")
    cut: float = Field(
        default=0.25,
        gt=0,
        lt=1,
        description="[S] Maximum length in the first stage, as a fraction of `data.max_length`, as in the published script.",
    )
    share: float = Field(
        default=0.5, gt=0, lt=1, description="[S] Fraction of the rounds in the first stage; 0.49 in the published script."
    )


class SelfEvolutionOptions(DepthParts):
    """Self-evolution learning: uncertain examples get more weight and targets smoothed by the model (Zhong et al. 2023)."""

    kind: Literal["self-evolution"] = Field(default="self-evolution", description="The method.")
    needs_classes: ClassVar[bool] = True
    after: float = Field(default=0.5, ge=0, lt=1, description="[C] Fraction of the rounds with plain training, at the start.")
    smoothing: float = Field(default=0.1, ge=0, lt=1, description="[C] Weight of the model's own prediction in the smoothed target.")
    weight: float = Field(
        default=2.0, gt=0, description="[C] Weight of an example whose probability of the true label is below the median; others count 1."
    )


class FFALoraOptions(DepthParts):
    """FFA-LoRA: A is frozen at its initial values; B and the head are trained and averaged (Sun et al. 2024)."""

    kind: Literal["ffa-lora"] = Field(default="ffa-lora", description="The method.")


class FedSALoraOptions(DepthParts):
    """FedSA-LoRA: A and B are trained, only A is averaged (Guo et al. 2025)."""

    kind: Literal["fedsa-lora"] = Field(default="fedsa-lora", description="The method.")
    head: Literal["shared", "personal"] = Field(
        default="personal", description="[S] As published, the classification head is kept by each client, like B."
    )

    @field_validator("head", mode="before")
    @classmethod
    def _as_it_was_called(cls, value: object) -> object:
        """The values of version 0.1."""
        return {"stays": "personal", "travels": "shared"}.get(value, value) if isinstance(value, str) else value


class AdapterOptions(MethodOptions):
    """Bottleneck adapters in every block, and the layer norms, are trained and averaged (Houlsby et al. 2019)."""

    kind: Literal["adapter"] = Field(default="adapter", description="The method.")
    adapter: adapters.BottleneckAdapter = adapters.BottleneckAdapter()


class PromptTuningOptions(MethodOptions):
    """Prompt tuning: soft tokens before the input are trained and averaged (Lester et al. 2021)."""

    kind: Literal["prompt-tuning"] = Field(default="prompt-tuning", description="The method.")
    adapter: adapters.PromptAdapter = adapters.PromptAdapter()


class FedPromptOptions(MethodOptions):
    """FedPrompt: prompt and head are trained, only the prompt is averaged (Zhao et al. 2023)."""

    kind: Literal["fedprompt"] = Field(default="fedprompt", description="The method.")
    adapter: adapters.PromptAdapter = adapters.PromptAdapter(start="random")


class PTuningOptions(MethodOptions):
    """P-tuning v2: prefixes in every layer are trained and averaged (Liu et al. 2022)."""

    kind: Literal["p-tuning-v2"] = Field(default="p-tuning-v2", description="The method.")
    adapter: adapters.PrefixAdapter = adapters.PrefixAdapter()


class IdpgOptions(MethodOptions):
    """IDPG: a generator of instance-dependent prompts is trained and averaged (Wu et al. 2022)."""

    kind: Literal["idpg"] = Field(default="idpg", description="The method.")
    adapter: adapters.GeneratedPromptAdapter = adapters.GeneratedPromptAdapter()


class AttemptOptions(MethodOptions):
    """ATTEMPT: a target prompt and an attention over frozen source prompts are trained and averaged (Asai et al. 2022)."""

    kind: Literal["attempt"] = Field(default="attempt", description="The method.")
    adapter: adapters.MixedPromptAdapter = adapters.MixedPromptAdapter()
    sources: tuple[str, ...] | None = Field(
        default=None,
        description="[C] Tasks whose training sets the source prompts are trained on. Default: qnli, sst2, boolq and subj, without the "
        "run's own task and any that shares texts with it.",
    )
    source_steps: int = Field(default=500, ge=1, description="[C] Training steps per source prompt.")
    source_batch_size: int = Field(default=32, ge=1, description="[S] Batch size for training the source prompts.")
    source_learning_rate: float = Field(
        default=7e-3, gt=0, description="[C] Learning rate for training the source prompts, with AdamW; as for prompt-tuning."
    )


class LptOptions(MethodOptions):
    """Late prompt tuning: a generator of prompts at the middle layer is trained and averaged (Liu et al. 2022)."""

    kind: Literal["lpt"] = Field(default="lpt", description="The method.")
    adapter: adapters.LatePromptAdapter = adapters.LatePromptAdapter()


class FedAltOptions(MethodOptions):
    """FedAlt: lower layers and head are averaged, upper layers personal; clients train the two alternately (Pillutla et al. 2022)."""

    kind: Literal["fedalt"] = Field(default="fedalt", description="The method.")
    personal: float = Field(default=0.5, gt=0, lt=1, description="[C] Fraction of the layers kept by each client, the topmost ones.")


class SLoraOptions(MethodOptions):
    """SLoRA: sparse updates of the adapted weights; LoRA then starts from their best low-rank approximation (Babakniya et al. 2023)."""

    kind: Literal["slora"] = Field(default="slora", description="The method.")
    share: float = Field(default=0.25, gt=0, lt=1, description="[C] Fraction of the rounds in stage 1.")
    density: float = Field(default=0.01, gt=0, le=1, description="[S] Fraction of the adapted weights that stage 1 trains.")
    rate_factor: float = Field(
        default=0.1, gt=0, description="[C] Learning rate of stage 1 relative to `training.learning_rate`: full weights need smaller steps."
    )


class FedExLoraOptions(DepthParts):
    """FedEx-LoRA: the difference between the mean product and the product of the means is added to the weights (Singhal et al. 2025)."""

    kind: Literal["fedex-lora"] = Field(default="fedex-lora", description="The method.")


class HetLoraOptions(MethodOptions):
    """HetLoRA: each client has its own rank, which it may lower; the server pads, weights and truncates (Cho et al. 2024)."""

    kind: Literal["hetlora"] = Field(default="hetlora", description="The method.")
    min_rank: int = Field(
        default=2, ge=1, description="[C] Initial ranks are drawn uniformly between this and `model.rank`; pruning never goes below it."
    )
    decay: float = Field(default=0.99, gt=0, lt=1, description="[C] gamma: ranks beyond floor(gamma r) form the tail that may be pruned.")
    penalty: float = Field(default=0.005, ge=0, description="[C] lambda: weight of the regularisation by the tail's norm.")
    same_shapes: ClassVar[bool] = False


_FIVE = adapters.PrefixAdapter(num_tokens=5)


class FedPepTaoOptions(MethodOptions):
    """FedPepTAO: prefixes; the layers with the highest scores are averaged, with a server step corrected for drift (Che et al. 2023)."""

    kind: Literal["fedpeptao"] = Field(default="fedpeptao", description="The method.")
    adapter: adapters.PrefixAdapter = _FIVE
    rule: Literal["share", "plateau"] = Field(
        default="share",
        description="[C] How many layers are averaged. share: the fraction `layers`; plateau [S]: by the spectrum of clients' Hessians.",
    )
    layers: float = Field(default=0.5, gt=0, lt=1, description="[C] Fraction of the layers that are averaged, for the rule share.")
    spectrum_clients: int = Field(default=4, ge=1, description="[C] Number of clients that compute the spectrum, for the rule plateau.")
    gradient: Literal["update", "difference"] = Field(
        default="update", description="[C] g of the server momentum: the round's update, or (published code) the previous update minus it."
    )
    server_learning_rate: float = Field(default=0.05, ge=0, description="[S] Server learning rate, as in the published script.")
    server_decay: float = Field(
        default=0.99, gt=0, le=1, description="[S] Decay factor of the server learning rate per server step, as in the published code."
    )
    momentum: float = Field(default=0.9, ge=0, lt=1, description="[S] Server momentum.")


class MomdOptions(MethodOptions):
    """Momentum on the clients: prefixes trained with SGD with momentum, then averaged (Yu et al. 2019)."""

    kind: Literal["momd"] = Field(default="momd", description="The method.")
    adapter: adapters.PrefixAdapter = _FIVE
    momentum: float = Field(default=0.9, ge=0, lt=1, description="[S] Momentum of SGD; replaces `training.momentum`.")


class MomsAdamwOptions(MethodOptions):
    """Momentum on the server: prefixes trained with AdamW, server momentum on their mean (after Reddi et al. 2021)."""

    kind: Literal["moms-adamw"] = Field(default="moms-adamw", description="The method.")
    adapter: adapters.PrefixAdapter = _FIVE
    server_learning_rate: float = Field(default=0.3, gt=0, description="[C] Server learning rate.")
    momentum: float = Field(default=0.9, ge=0, lt=1, description="[S] Server momentum.")

"""The options of every method: the table [method] of a configuration, one class for each `kind`. catalogue.py names them."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, field_validator

from ..adapters.options import (
    BottleneckAdapter,
    GeneratedPromptAdapter,
    LatePromptAdapter,
    MixedPromptAdapter,
    PrefixAdapter,
    PromptAdapter,
)
from ..core.options import Options
from ..local.options import CurriculumOptions, LayerOptions, NeuronOptions


class ServerOptions(Options):
    """`method.server`: the server optimiser of the aggregations fedavgm, fedadam and fedyogi."""

    learning_rate: float | None = Field(
        default=None, gt=0, description="[C] eta of the server's step. Default: 1 with fedavgm, 0.01 with fedadam and fedyogi."
    )
    momentum: float = Field(default=0.9, ge=0, lt=1, description="[S] beta_1: weight of the changes of the rounds before.")
    beta2: float = Field(default=0.99, ge=0, lt=1, description="[S] beta_2 of fedadam and fedyogi.")
    tau: float = Field(default=1e-3, gt=0, description="[S] tau of fedadam and fedyogi, which keeps their steps small.")


class MethodOptions(Options):
    """What every method has."""

    kind: Any = Field(default="", description="The method.")  # each has its own name here; first in its table
    finetune: bool = Field(default=False, description="[C] After the last round every client trains once more and keeps the result.")


class ServerParts(MethodOptions):
    """What methods have whose server takes a step of an optimiser."""

    head: Literal["shared", "personal"] = Field(
        default="shared", description="[C] Whether the classification head is aggregated or stays with each client."
    )
    server: ServerOptions = ServerOptions()
    optimizer: ClassVar[str] = ""


class LoraParts(ServerParts):
    """What methods have that share LoRA layers: FedAvg-LoRA all of them, FibecFed its global layers."""

    aggregation: Literal["mean", "exact", "ffa", "fedavgm", "fedadam", "fedyogi"] = Field(
        default="mean",
        description="[C] How updates become the shared model: mean; exact: the mean of the products B A (FedEx-LoRA); ffa: the mean of B, "
        "A stays as drawn (FFA-LoRA); fedavgm, fedadam, fedyogi: a server optimiser, see `method.server`.",
    )


class CustomOptions(MethodOptions):
    """A method given as an object to `fibecfed.run` from Python; it cannot be made from a configuration."""

    kind: Literal["custom"] = Field(default="custom", description="The method.")
    name: str = Field(default="", description="[C] What the object is called, for records and reports.")


class FibecFedOptions(LoraParts):
    """FibecFed: Fisher curriculum, chosen layers shared, sparse updates of the others."""

    kind: Literal["fibecfed"] = Field(default="fibecfed", description="The method.")
    score_after: int | None = Field(
        default=None, ge=0, description="[C] Round from which on a client is scored; default ceil(0.2 rounds). 0 = [S] the published order."
    )
    closing_round: bool = Field(default=False, description="[C] A last round in which the sampled clients send every layer, for newcomers.")
    curriculum: CurriculumOptions = CurriculumOptions()
    layers: LayerOptions = LayerOptions()
    neurons: NeuronOptions = NeuronOptions()


class LoraOptions(LoraParts):
    """FedAvg-LoRA: every trained tensor is averaged over the clients."""

    kind: Literal["lora"] = Field(default="lora", description="The method.")


class LoraFinetuneOptions(LoraParts):
    """FedAvg-LoRA, then one local training of every client, whose result it keeps."""

    kind: Literal["lora-finetune"] = Field(default="lora-finetune", description="The method.")
    finetune: bool = Field(default=True, description="[C] After the last round every client trains once more and keeps the result.")


class FedProxOptions(LoraParts):
    """FedProx: local training is pulled towards the model that the client was sent (Li et al. 2020)."""

    kind: Literal["fedprox"] = Field(default="fedprox", description="The method.")
    proximal: float = Field(
        default=0.01, gt=0, description="[S] mu: weight of half the squared distance to the model sent; the paper tries 0.001 to 1."
    )


class ScaffoldOptions(MethodOptions):
    """SCAFFOLD: control variates correct each local step for the drift of the client (Karimireddy et al. 2020)."""

    kind: Literal["scaffold"] = Field(default="scaffold", description="The method.")
    server_learning_rate: float = Field(default=1.0, gt=0, description="[S] eta_g: factor on the mean change of the clients' models.")


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


class LocalOptions(MethodOptions):
    """No federation: every client trains alone, in the rounds it is sampled for."""

    kind: Literal["local"] = Field(default="local", description="The method.")


class VocOptions(MethodOptions):
    """Curriculum by word rarity: a client's competence grows with the rounds, and it trains on what lies within (Platanios et al. 2019)."""

    kind: Literal["voc"] = Field(default="voc", description="The method.")
    start: float = Field(default=0.01, gt=0, le=1, description="[S] c0, competence at round 0: the share of the examples it covers.")
    share: float = Field(default=0.9, gt=0, le=1, description="[C] T' as a share of the rounds: from there on all data are used.")


class SlwOptions(MethodOptions):
    """Sequence length warm-up: every text is cut to a length that grows with the rounds (Li et al. 2022)."""

    kind: Literal["slw"] = Field(default="slw", description="The method.")
    start: int = Field(default=8, ge=4, description="[S] Tokens at round 0.")
    step: int = Field(default=8, ge=1, description="[S] Lengths are multiples of it.")
    share: float = Field(default=0.3, gt=0, le=1, description="[C] Share of the rounds after which texts are whole.")


class ShortformerOptions(MethodOptions):
    """Staged training: short texts in the first half of the rounds, whole ones afterwards (Press et al. 2021)."""

    kind: Literal["shortformer"] = Field(default="shortformer", description="The method.")
    cut: float = Field(
        default=0.25, gt=0, lt=1, description="[S] Length of the first stage as a share of the longest, as in the published script."
    )
    share: float = Field(
        default=0.5, gt=0, lt=1, description="[S] Share of the rounds that the first stage takes; the published script: 0.49."
    )


class SelfEvolutionOptions(MethodOptions):
    """Self-evolution learning: examples the model is unsure of count more, with targets smoothed by its own answers (Zhong et al. 2023)."""

    kind: Literal["self-evolution"] = Field(default="self-evolution", description="The method.")
    after: float = Field(default=0.5, ge=0, lt=1, description="[C] Share of the rounds that are plain.")
    smoothing: float = Field(default=0.1, ge=0, lt=1, description="[C] Weight of the model's own answer in the target.")
    weight: float = Field(default=2.0, gt=0, description="[C] How often an example below the median counts.")


class FFALoraOptions(MethodOptions):
    """FFA-LoRA: A is frozen as it was drawn; B and the head are trained and averaged (Sun et al. 2024)."""

    kind: Literal["ffa-lora"] = Field(default="ffa-lora", description="The method.")


class FedSALoraOptions(MethodOptions):
    """FedSA-LoRA: A and B are trained, A alone is averaged (Guo et al. 2025)."""

    kind: Literal["fedsa-lora"] = Field(default="fedsa-lora", description="The method.")
    head: Literal["shared", "personal"] = Field(
        default="personal", description="[S] The published configuration keeps the classifier on the client, as it does B."
    )

    @field_validator("head", mode="before")
    @classmethod
    def _as_it_was_called(cls, value: object) -> object:
        """Configurations of version 0.1."""
        return {"stays": "personal", "travels": "shared"}.get(value, value) if isinstance(value, str) else value


class AdapterOptions(MethodOptions):
    """Bottleneck adapters in every block, and the norms, are averaged (Houlsby et al. 2019)."""

    kind: Literal["adapter"] = Field(default="adapter", description="The method.")
    adapter: BottleneckAdapter = BottleneckAdapter()


class PromptTuningOptions(MethodOptions):
    """Prompt tuning: soft tokens at the input are averaged (Lester et al. 2021)."""

    kind: Literal["prompt-tuning"] = Field(default="prompt-tuning", description="The method.")
    adapter: PromptAdapter = PromptAdapter()


class FedPromptOptions(MethodOptions):
    """FedPrompt: prompt and head are trained, the prompt alone is averaged (Zhao et al. 2023)."""

    kind: Literal["fedprompt"] = Field(default="fedprompt", description="The method.")
    adapter: PromptAdapter = PromptAdapter(start="random")


class PTuningOptions(MethodOptions):
    """P-tuning v2: prefixes of every layer are averaged (Liu et al. 2022)."""

    kind: Literal["p-tuning-v2"] = Field(default="p-tuning-v2", description="The method.")
    adapter: PrefixAdapter = PrefixAdapter()


class IdpgOptions(MethodOptions):
    """IDPG: the generator of each example's own prompt is averaged (Wu et al. 2022)."""

    kind: Literal["idpg"] = Field(default="idpg", description="The method.")
    adapter: GeneratedPromptAdapter = GeneratedPromptAdapter()


class AttemptOptions(MethodOptions):
    """ATTEMPT: a target prompt and an attention over frozen source prompts are averaged (Asai et al. 2022)."""

    kind: Literal["attempt"] = Field(default="attempt", description="The method.")
    adapter: MixedPromptAdapter = MixedPromptAdapter()
    sources: tuple[str, ...] | None = Field(
        default=None,
        description="[C] Tasks whose train parts make the source prompts. Default: qnli, sst2, boolq and subj, without the run's own task "
        "and what shares texts with it.",
    )
    source_steps: int = Field(default=500, ge=1, description="[C] Steps of each source prompt's training, the same for all.")
    source_batch_size: int = Field(default=32, ge=1, description="[S] Examples a step of it.")
    source_learning_rate: float = Field(default=7e-3, gt=0, description="[C] Of AdamW in it; as for prompt-tuning.")


class LptOptions(MethodOptions):
    """Late prompt tuning: the generator of a prompt at the middle layer is averaged (Liu et al. 2022)."""

    kind: Literal["lpt"] = Field(default="lpt", description="The method.")
    adapter: LatePromptAdapter = LatePromptAdapter()


class FedAltOptions(MethodOptions):
    """FedAlt: lower layers and head are shared, upper layers personal; each client trains the two in turn (Pillutla et al. 2022)."""

    kind: Literal["fedalt"] = Field(default="fedalt", description="The method.")
    personal: float = Field(default=0.5, gt=0, lt=1, description="[C] Share of the layers that stay on the client, the uppermost ones.")


class SLoraOptions(MethodOptions):
    """SLoRA: sparse updates of the adapted weights first; LoRA then starts from the best low-rank form of them (Babakniya et al. 2023)."""

    kind: Literal["slora"] = Field(default="slora", description="The method.")
    share: float = Field(default=0.25, gt=0, lt=1, description="[C] Share of the rounds that stage 1 takes.")
    density: float = Field(default=0.01, gt=0, le=1, description="[S] Share of the adapted weights' numbers that stage 1 trains.")
    rate_factor: float = Field(
        default=0.1, gt=0, description="[C] Stage 1's learning rate over `training.learning_rate`: weights themselves take smaller steps."
    )


class FedExLoraOptions(MethodOptions):
    """FedEx-LoRA: what the product of the mean factors misses of the mean product is added beside the weights (Singhal et al. 2025)."""

    kind: Literal["fedex-lora"] = Field(default="fedex-lora", description="The method.")


class HetLoraOptions(MethodOptions):
    """HetLoRA: every client has a rank of its own, which it may lower; the server pads, weighs and truncates (Cho et al. 2024)."""

    kind: Literal["hetlora"] = Field(default="hetlora", description="The method.")
    min_rank: int = Field(default=2, ge=1, description="[C] Ranks are drawn evenly from it to `model.rank`, and never fall below it.")
    decay: float = Field(default=0.99, gt=0, lt=1, description="[C] gamma: ranks behind floor(gamma r) are the tail that may be pruned.")
    penalty: float = Field(default=0.005, ge=0, description="[C] lambda: weight of the tail's norm in the loss.")


_FIVE = PrefixAdapter(num_tokens=5)


class FedPepTaoOptions(MethodOptions):
    """FedPepTAO: prefixes; the layers that score best travel, with a server step corrected for drift (Che et al. 2023)."""

    kind: Literal["fedpeptao"] = Field(default="fedpeptao", description="The method.")
    adapter: PrefixAdapter = _FIVE
    rule: Literal["share", "plateau"] = Field(
        default="share",
        description="[C] How many layers travel. share: `layers` of them; plateau [S]: what the spectrum of clients' Hessians calls for.",
    )
    layers: float = Field(default=0.5, gt=0, lt=1, description="[C] Share of the layers that travel, by the rule share.")
    spectrum_clients: int = Field(default=4, ge=1, description="[C] Clients that compute the spectrum, for the rule plateau.")
    gradient: Literal["update", "difference"] = Field(
        default="update", description="[C] g of the server's momentum: the round's update, or (published code) that before minus it."
    )
    server_learning_rate: float = Field(default=0.05, ge=0, description="[S] Of the published script.")
    server_decay: float = Field(default=0.99, gt=0, le=1, description="[S] Factor on it in every server step, in the published code.")
    momentum: float = Field(default=0.9, ge=0, lt=1, description="[S] Weight of the server's velocity.")


class MomdOptions(MethodOptions):
    """Momentum on the clients: prefixes trained by SGD with momentum, averaged (Yu et al. 2019)."""

    kind: Literal["momd"] = Field(default="momd", description="The method.")
    adapter: PrefixAdapter = _FIVE
    momentum: float = Field(default=0.9, ge=0, lt=1, description="[S] Of SGD; in place of `training.momentum`.")


class MomsAdamwOptions(MethodOptions):
    """Momentum on the server: prefixes trained by AdamW, the mean's change gathers momentum (after Reddi et al. 2021)."""

    kind: Literal["moms-adamw"] = Field(default="moms-adamw", description="The method.")
    adapter: PrefixAdapter = _FIVE
    server_learning_rate: float = Field(default=0.3, gt=0, description="[C] Rate of the server's step.")
    momentum: float = Field(default=0.9, ge=0, lt=1, description="[S] Weight of the server's velocity.")

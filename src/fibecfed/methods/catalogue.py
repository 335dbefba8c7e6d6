"""The table of methods: `method.kind` -> its options, and the file that makes it of them.

Adding a method adds its options and its row here, a file with a function `build` (or parts of fedavg.py), a row of the contract table in
tests/contract and a page in docs/methods. Light to import, so that a configuration can be read without torch: a method's own file is
imported when the method is made.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from ..adapters.options import (
    BottleneckAdapter,
    GeneratedPromptAdapter,
    LatePromptAdapter,
    MixedPromptAdapter,
    PrefixAdapter,
    PromptAdapter,
)
from ..core.options import Options
from ..local.options import CurriculumOptions, LayerOptions, NeuronOptions, TrainingOptions

if TYPE_CHECKING:
    from ..core.method import Method
    from ..core.rng import Key


class FibecFedOptions(Options):
    """FibecFed: Fisher curriculum, chosen layers shared, sparse updates of the others."""

    kind: Literal["fibecfed"] = Field(default="fibecfed", description="The method.")
    score_after: int | None = Field(
        default=None, ge=0, description="[C] Round from which on a client is scored; default ceil(0.2 rounds). 0 = [S] the published order."
    )
    closing_round: bool = Field(default=False, description="[C] A last round in which the sampled clients send every layer, for newcomers.")
    curriculum: CurriculumOptions = CurriculumOptions()
    layers: LayerOptions = LayerOptions()
    neurons: NeuronOptions = NeuronOptions()


class LoraOptions(Options):
    """FedAvg-LoRA: every trained tensor is averaged over the clients."""

    kind: Literal["lora"] = Field(default="lora", description="The method.")
    finetune: bool = Field(default=False, description="After the last round every client trains once more and keeps the result.")


class LocalOptions(Options):
    """No federation: every client trains alone, in the rounds it is sampled for."""

    kind: Literal["local"] = Field(default="local", description="The method.")


class VocOptions(Options):
    """Curriculum by word rarity: a client's competence grows with the rounds, and it trains on what lies within (Platanios et al. 2019)."""

    kind: Literal["voc"] = Field(default="voc", description="The method.")
    start: float = Field(default=0.01, gt=0, le=1, description="[S] c0, competence at round 0: the share of the examples it covers.")
    share: float = Field(default=0.9, gt=0, le=1, description="[C] T' as a share of the rounds: from there on all data are used.")


class SlwOptions(Options):
    """Sequence length warm-up: every text is cut to a length that grows with the rounds (Li et al. 2022)."""

    kind: Literal["slw"] = Field(default="slw", description="The method.")
    start: int = Field(default=8, ge=4, description="[S] Tokens at round 0.")
    step: int = Field(default=8, ge=1, description="[S] Lengths are multiples of it.")
    share: float = Field(default=0.3, gt=0, le=1, description="[C] Share of the rounds after which texts are whole.")


class ShortformerOptions(Options):
    """Staged training: short texts in the first half of the rounds, whole ones afterwards (Press et al. 2021)."""

    kind: Literal["shortformer"] = Field(default="shortformer", description="The method.")
    cut: float = Field(
        default=0.25, gt=0, lt=1, description="[S] Length of the first stage as a share of the longest, as in the published script."
    )
    share: float = Field(
        default=0.5, gt=0, lt=1, description="[S] Share of the rounds that the first stage takes; the published script: 0.49."
    )


class SelfEvolutionOptions(Options):
    """Self-evolution learning: examples the model is unsure of count more, with targets smoothed by its own answers (Zhong et al. 2023)."""

    kind: Literal["self-evolution"] = Field(default="self-evolution", description="The method.")
    after: float = Field(default=0.5, ge=0, lt=1, description="[C] Share of the rounds that are plain.")
    smoothing: float = Field(default=0.1, ge=0, lt=1, description="[C] Weight of the model's own answer in the target.")
    weight: float = Field(default=2.0, gt=0, description="[C] How often an example below the median counts.")


class FFALoraOptions(Options):
    """FFA-LoRA: A is frozen as it was drawn; B and the head are trained and averaged (Sun et al. 2024)."""

    kind: Literal["ffa-lora"] = Field(default="ffa-lora", description="The method.")


class FedSALoraOptions(Options):
    """FedSA-LoRA: A and B are trained, A alone is averaged (Guo et al. 2025)."""

    kind: Literal["fedsa-lora"] = Field(default="fedsa-lora", description="The method.")
    head: Literal["stays", "travels"] = Field(
        default="stays", description="[S] The published configuration keeps the classifier on the client, as it does B."
    )


class AdapterOptions(Options):
    """Bottleneck adapters in every block, and the norms, are averaged (Houlsby et al. 2019)."""

    kind: Literal["adapter"] = Field(default="adapter", description="The method.")
    adapter: BottleneckAdapter = BottleneckAdapter()


class PromptTuningOptions(Options):
    """Prompt tuning: soft tokens at the input are averaged (Lester et al. 2021)."""

    kind: Literal["prompt-tuning"] = Field(default="prompt-tuning", description="The method.")
    adapter: PromptAdapter = PromptAdapter()


class FedPromptOptions(Options):
    """FedPrompt: prompt and head are trained, the prompt alone is averaged (Zhao et al. 2023)."""

    kind: Literal["fedprompt"] = Field(default="fedprompt", description="The method.")
    adapter: PromptAdapter = PromptAdapter(start="random")


class PTuningOptions(Options):
    """P-tuning v2: prefixes of every layer are averaged (Liu et al. 2022)."""

    kind: Literal["p-tuning-v2"] = Field(default="p-tuning-v2", description="The method.")
    adapter: PrefixAdapter = PrefixAdapter()


class IdpgOptions(Options):
    """IDPG: the generator of each example's own prompt is averaged (Wu et al. 2022)."""

    kind: Literal["idpg"] = Field(default="idpg", description="The method.")
    adapter: GeneratedPromptAdapter = GeneratedPromptAdapter()


class AttemptOptions(Options):
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


class LptOptions(Options):
    """Late prompt tuning: the generator of a prompt at the middle layer is averaged (Liu et al. 2022)."""

    kind: Literal["lpt"] = Field(default="lpt", description="The method.")
    adapter: LatePromptAdapter = LatePromptAdapter()


class FedAltOptions(Options):
    """FedAlt: lower layers and head are shared, upper layers personal; each client trains the two in turn (Pillutla et al. 2022)."""

    kind: Literal["fedalt"] = Field(default="fedalt", description="The method.")
    personal: float = Field(default=0.5, gt=0, lt=1, description="[C] Share of the layers that stay on the client, the uppermost ones.")


class SLoraOptions(Options):
    """SLoRA: sparse updates of the adapted weights first; LoRA then starts from the best low-rank form of them (Babakniya et al. 2023)."""

    kind: Literal["slora"] = Field(default="slora", description="The method.")
    share: float = Field(default=0.25, gt=0, lt=1, description="[C] Share of the rounds that stage 1 takes.")
    density: float = Field(default=0.01, gt=0, le=1, description="[S] Share of the adapted weights' numbers that stage 1 trains.")
    rate_factor: float = Field(
        default=0.1, gt=0, description="[C] Stage 1's learning rate over `training.learning_rate`: weights themselves take smaller steps."
    )


class FedExLoraOptions(Options):
    """FedEx-LoRA: what the product of the mean factors misses of the mean product is added beside the weights (Singhal et al. 2025)."""

    kind: Literal["fedex-lora"] = Field(default="fedex-lora", description="The method.")


class HetLoraOptions(Options):
    """HetLoRA: every client has a rank of its own, which it may lower; the server pads, weighs and truncates (Cho et al. 2024)."""

    kind: Literal["hetlora"] = Field(default="hetlora", description="The method.")
    min_rank: int = Field(default=2, ge=1, description="[C] Ranks are drawn evenly from it to `model.rank`, and never fall below it.")
    decay: float = Field(default=0.99, gt=0, lt=1, description="[C] gamma: ranks behind floor(gamma r) are the tail that may be pruned.")
    penalty: float = Field(default=0.005, ge=0, description="[C] lambda: weight of the tail's norm in the loss.")


_FIVE = PrefixAdapter(num_tokens=5)


class FedPepTaoOptions(Options):
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


class MomdOptions(Options):
    """Momentum on the clients: prefixes trained by SGD with momentum, averaged (Yu et al. 2019)."""

    kind: Literal["momd"] = Field(default="momd", description="The method.")
    adapter: PrefixAdapter = _FIVE
    momentum: float = Field(default=0.9, ge=0, lt=1, description="[S] Of SGD; in place of `training.momentum`.")


class MomsAdamwOptions(Options):
    """Momentum on the server: prefixes trained by AdamW, the mean's change gathers momentum (after Reddi et al. 2021)."""

    kind: Literal["moms-adamw"] = Field(default="moms-adamw", description="The method.")
    adapter: PrefixAdapter = _FIVE
    server_learning_rate: float = Field(default=0.3, gt=0, description="[C] Rate of the server's step.")
    momentum: float = Field(default=0.9, ge=0, lt=1, description="[S] Weight of the server's velocity.")


@dataclass(frozen=True)
class Row:
    """One method.

    Attributes:
        options: its table in a configuration.
        file: the module of this package whose `build(options, setting)` makes it.
        paper: where it comes from.
        learning_rate: centre of the rates that a comparison tries; `rate_source` says who uses it.
        server_rate_power: when a comparison tries f times the learning rate, it tries f to this power times the method's server rate. -1
            where the server's step is that rate times the clients', so that its size stays that of the paper; 1 where it corrects the
            clients' step by a term that does not grow with theirs, so that the two keep their proportion [C].
        whole_lora: it trains LoRA of one rank on all adapted layers throughout, and averages both factors where it averages them: a report
            compares the bytes of these methods with each other [C].
    """

    options: type[Options]
    file: str
    paper: str
    learning_rate: float
    rate_source: str
    whole_lora: bool = False
    server_rate_power: Literal[-1, 0, 1] = 0


_LORA_RATE = "Hu et al. 2022, table of hyperparameters for RoBERTa base on GLUE: 4e-4 to 5e-4"

_TRAINS_LORA = f"its paper trains no LoRA, so that of LoRA: {_LORA_RATE}"
_LORA_ADAMW = f"its paper's rates are of plain SGD, and AdamW trains here, so that of LoRA: {_LORA_RATE}"
_FEDEX = "AdamW at 1e-3 on RoBERTa base and large in the published code of FedEx-LoRA (its default; appendix D of the paper)"
_FFA = f"its paper's rates are of plain SGD; {_FEDEX}, which runs this method too"
_LORA_NOT_FOUND = f"its paper's rate could not be looked up, so that of LoRA: {_LORA_RATE}"
_PREFIXES = "its paper trains no prefixes, so that of FedPepTAO's published script, which does, with AdamW: 4e-2"
_SGD_PREFIXES = "no rate of SGD for prefixes was found; that of AdamW in FedPepTAO's published script: 4e-2"

_FEDPROMPT_RATE = "that of its paper could not be checked; as for prompt-tuning"
_PREFIX_RATE = "published scripts of P-tuning v2 for classification with BERT and RoBERTa, but one: 5e-3 to 1e-2"
_MIXED_RATE = (
    "its published scripts train prompts on T5, with no head, at 0.3, or with 0.1 for the attention; AdamW trains prompt, attention and "
    "head at one rate here, so as for prompt-tuning"
)
_PROMPT_RATE = (
    "its paper trains a prompt alone with Adafactor on T5 (0.3); AdamW trains prompt and head at one rate here, so that of P-tuning v2, "
    "which does so on BERT and RoBERTa: 5e-3 to 1e-2"
)

CATALOGUE: dict[str, Row] = {
    "fibecfed": Row(FibecFedOptions, "fibecfed", "Liu et al., EMNLP 2024", 5e-4, _LORA_RATE, whole_lora=True),
    "lora": Row(LoraOptions, "fedavg", "Hu et al., ICLR 2022; McMahan et al., AISTATS 2017", 5e-4, _LORA_RATE, whole_lora=True),
    "local": Row(LocalOptions, "fedavg", "no federation", 5e-4, _LORA_RATE),
    "voc": Row(VocOptions, "fedavg", "Platanios et al., NAACL 2019", 5e-4, _TRAINS_LORA, whole_lora=True),
    "slw": Row(SlwOptions, "fedavg", "Li et al., NeurIPS 2022", 5e-4, _TRAINS_LORA, whole_lora=True),
    "shortformer": Row(ShortformerOptions, "fedavg", "Press et al., ACL 2021", 5e-4, _TRAINS_LORA, whole_lora=True),
    "self-evolution": Row(SelfEvolutionOptions, "fedavg", "Zhong et al., Findings of ACL 2023", 5e-4, _TRAINS_LORA, whole_lora=True),
    "ffa-lora": Row(FFALoraOptions, "fedavg", "Sun et al., ICLR 2024", 1e-3, _FFA),
    "fedsa-lora": Row(FedSALoraOptions, "fedavg", "Guo et al., ICLR 2025", 5e-4, _LORA_ADAMW),
    "adapter": Row(AdapterOptions, "fedavg", "Houlsby et al., ICML 2019", 3e-4, "its paper, on GLUE: 3e-5, 3e-4, 3e-3"),
    "prompt-tuning": Row(PromptTuningOptions, "fedavg", "Lester et al., EMNLP 2021", 7e-3, _PROMPT_RATE),
    "fedprompt": Row(FedPromptOptions, "fedavg", "Zhao et al., ICASSP 2023", 7e-3, _FEDPROMPT_RATE),
    "p-tuning-v2": Row(PTuningOptions, "fedavg", "Liu et al., ACL 2022", 7e-3, _PREFIX_RATE),
    "idpg": Row(IdpgOptions, "fedavg", "Wu et al., NAACL 2022", 1e-3, "its published scripts: 5e-3, 1e-3, 5e-4, 1e-4"),
    "attempt": Row(AttemptOptions, "fedavg", "Asai et al., EMNLP 2022", 7e-3, _MIXED_RATE),
    "lpt": Row(LptOptions, "fedavg", "Liu et al., Findings of EMNLP 2022", 1e-3, "its published scripts: 1e-3 on RoBERTa, 5e-4 on GPT-2"),
    "fedalt": Row(FedAltOptions, "fedalt", "Pillutla et al., ICML 2022", 5e-4, _TRAINS_LORA, whole_lora=True),
    "slora": Row(SLoraOptions, "slora", "Babakniya et al., 2023", 5e-4, _LORA_NOT_FOUND),
    "fedex-lora": Row(FedExLoraOptions, "fedex_lora", "Singhal et al., ACL 2025", 1e-3, _FEDEX, whole_lora=True),
    "hetlora": Row(HetLoraOptions, "hetlora", "Cho et al., EMNLP 2024", 5e-4, _LORA_NOT_FOUND),
    "fedpeptao": Row(
        FedPepTaoOptions, "fedpeptao", "Che et al., EMNLP 2023", 4e-2, "its published script for RoBERTa large: 4e-2", server_rate_power=1
    ),
    "momd": Row(MomdOptions, "fedavg", "Yu, Jin and Yang, ICML 2019", 4e-2, _SGD_PREFIXES),
    "moms-adamw": Row(MomsAdamwOptions, "fedavg", "Reddi et al., ICLR 2021", 4e-2, _PREFIXES, server_rate_power=-1),
}

COMPARED = (
    "fibecfed", "lora", "adapter", "prompt-tuning", "fedprompt", "p-tuning-v2", "idpg", "attempt", "lpt", "fedpeptao", "momd", "moms-adamw",
    "fedalt", "slora", "voc", "slw", "shortformer", "self-evolution",
)  # fmt: skip
"""FibecFed and the seventeen methods it is compared with: what `methods = "all"` means in a comparison."""

METHODS: dict[str, type[Options]] = {kind: row.options for kind, row in CATALOGUE.items()}
"""`method.kind` -> its options."""


@dataclass(frozen=True)
class Setting:
    """What a method gets from the rest of the configuration.

    Attributes:
        key: the method's own random stream.
        max_length: tokens that texts are cut to by the configuration; None where that is not known.
    """

    training: TrainingOptions
    num_rounds: int
    num_clients: int
    key: Key
    max_length: int | None = None

    def longest(self) -> int:
        """`max_length`, for a method that cuts texts further.

        Raises:
            ValueError: it is not known.
        """
        if self.max_length is None:
            raise ValueError("the setting has no max_length; a method that cuts texts needs it")
        return self.max_length


def make(options: Options, setting: Setting) -> Method[Any, Any]:
    """The method of a configuration.

    Raises:
        TypeError: options of no method.
    """
    row = next((row for row in CATALOGUE.values() if row.options is type(options)), None)
    if row is None:
        raise TypeError(f"no method for {type(options).__name__}")
    return import_module(f"{__package__}.{row.file}").build(options, setting)

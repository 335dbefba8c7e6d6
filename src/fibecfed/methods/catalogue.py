"""The table of methods: `method.kind` -> its options, and the file that makes it of them.

Adding a method adds its options to options.py, its row here, a file with a function `build` (or parts of fedavg.py), a row of the contract
table in tests/contract and a page in docs/methods. Light to import, so that a configuration can be read without torch: a method's own file
is imported when the method is made.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

from ..core.errors import UserError
from .options import (
    AdapterOptions,
    AttemptOptions,
    CustomOptions,
    FedAdamOptions,
    FedAltOptions,
    FedAvgMOptions,
    FedExLoraOptions,
    FedPepTaoOptions,
    FedPromptOptions,
    FedProxOptions,
    FedSALoraOptions,
    FedYogiOptions,
    FFALoraOptions,
    FibecFedOptions,
    HetLoraOptions,
    IdpgOptions,
    LocalOptions,
    LoraFinetuneOptions,
    LoraOptions,
    LptOptions,
    MethodOptions,
    MomdOptions,
    MomsAdamwOptions,
    PromptTuningOptions,
    PTuningOptions,
    ScaffoldOptions,
    SelfEvolutionOptions,
    ShortformerOptions,
    SLoraOptions,
    SlwOptions,
    VocOptions,
)

if TYPE_CHECKING:
    from ..core.method import Method
    from ..core.rng import Key
    from ..local.options import TrainingOptions


@dataclass(frozen=True)
class Row:
    """One method.

    Attributes:
        options: its table in a configuration.
        file: the module of this package whose `build(options, context)` makes it, or that function itself.
        paper: where it comes from.
        learning_rate: default of `training.learning_rate` and centre of the rates that a comparison tries; `rate_source` says who uses it.
        server_rate_power: when a comparison tries f times the learning rate, it tries f to this power times the method's server rate. -1
            where the server's step is that rate times the clients', so that its size stays that of the paper; 1 where it corrects the
            clients' step by a term that does not grow with theirs, so that the two keep their proportion [C].
        whole_lora: it trains LoRA of one rank on all adapted layers throughout, and averages both factors where it averages them: a report
            compares the bytes of these methods with each other [C].
        beforehand: the module that makes what the method needs before the federation, with the functions of `Beforehand`.
    """

    options: type[MethodOptions]
    file: str | Callable[[Any, MethodContext], Method[Any, Any]]
    paper: str
    learning_rate: float
    rate_source: str
    whole_lora: bool = False
    server_rate_power: Literal[-1, 0, 1] = 0
    beforehand: str | None = None


_LORA = 2e-3
"""[C] Of all methods that train LoRA with AdamW and whose papers give no rate for it: few rounds on small models want more than theirs."""
_LORA_RATE = "few rounds on small models (docs/results.md) want more than Hu et al. 2022 use for RoBERTa base on GLUE, 4e-4 to 5e-4"

_TRAINS_LORA = f"its paper trains no LoRA, so that of LoRA: {_LORA_RATE}"
_LORA_ADAMW = f"its paper's rates are of plain SGD, and AdamW trains here, so that of LoRA: {_LORA_RATE}"
_FEDEX = "AdamW at 1e-3 on RoBERTa base and large in the published code of FedEx-LoRA (its default; appendix D of the paper)"
_FFA = f"its paper's rates are of plain SGD; {_FEDEX}, which runs this method too"
_LORA_NOT_FOUND = f"its paper's rate could not be looked up, so that of LoRA: {_LORA_RATE}"
_PREFIXES = "its paper trains no prefixes, so that of FedPepTAO's published script, which does, with AdamW: 4e-2"
_SGD_PREFIXES = "no rate of SGD for prefixes was found; that of AdamW in FedPepTAO's published script: 4e-2"

_SCAFFOLD_RATE = "its paper tunes SGD's rate on other models; plain SGD needs far larger steps on LoRA than AdamW's 5e-4"
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
    "fibecfed": Row(FibecFedOptions, "fibecfed", "Liu et al., EMNLP 2024", _LORA, _LORA_RATE, whole_lora=True),
    "lora": Row(LoraOptions, "fedavg", "Hu et al., ICLR 2022; McMahan et al., AISTATS 2017", _LORA, _LORA_RATE, whole_lora=True),
    "lora-finetune": Row(LoraFinetuneOptions, "fedavg", "FedAvg-LoRA, then one local training", _LORA, _LORA_RATE, whole_lora=True),
    "fedprox": Row(FedProxOptions, "fedavg", "Li et al., MLSys 2020", _LORA, _TRAINS_LORA, whole_lora=True),
    "scaffold": Row(ScaffoldOptions, "scaffold", "Karimireddy et al., ICML 2020", 1e-1, _SCAFFOLD_RATE, whole_lora=True),
    "fedavgm": Row(FedAvgMOptions, "fedavg", "Hsu et al., 2019", _LORA, _TRAINS_LORA, whole_lora=True),
    "fedadam": Row(FedAdamOptions, "fedavg", "Reddi et al., ICLR 2021", _LORA, _TRAINS_LORA, whole_lora=True),
    "fedyogi": Row(FedYogiOptions, "fedavg", "Reddi et al., ICLR 2021", _LORA, _TRAINS_LORA, whole_lora=True),
    "local": Row(LocalOptions, "fedavg", "no federation", _LORA, _LORA_RATE),
    "voc": Row(VocOptions, "fedavg", "Platanios et al., NAACL 2019", _LORA, _TRAINS_LORA, whole_lora=True),
    "slw": Row(SlwOptions, "fedavg", "Li et al., NeurIPS 2022", _LORA, _TRAINS_LORA, whole_lora=True),
    "shortformer": Row(ShortformerOptions, "fedavg", "Press et al., ACL 2021", _LORA, _TRAINS_LORA, whole_lora=True),
    "self-evolution": Row(SelfEvolutionOptions, "fedavg", "Zhong et al., Findings of ACL 2023", _LORA, _TRAINS_LORA, whole_lora=True),
    "ffa-lora": Row(FFALoraOptions, "fedavg", "Sun et al., ICLR 2024", 1e-3, _FFA),
    "fedsa-lora": Row(FedSALoraOptions, "fedavg", "Guo et al., ICLR 2025", _LORA, _LORA_ADAMW),
    "adapter": Row(AdapterOptions, "fedavg", "Houlsby et al., ICML 2019", 3e-4, "its paper, on GLUE: 3e-5, 3e-4, 3e-3"),
    "prompt-tuning": Row(PromptTuningOptions, "fedavg", "Lester et al., EMNLP 2021", 7e-3, _PROMPT_RATE),
    "fedprompt": Row(FedPromptOptions, "fedavg", "Zhao et al., ICASSP 2023", 7e-3, _FEDPROMPT_RATE),
    "p-tuning-v2": Row(PTuningOptions, "fedavg", "Liu et al., ACL 2022", 7e-3, _PREFIX_RATE),
    "idpg": Row(IdpgOptions, "fedavg", "Wu et al., NAACL 2022", 1e-3, "its published scripts: 5e-3, 1e-3, 5e-4, 1e-4"),
    "attempt": Row(AttemptOptions, "fedavg", "Asai et al., EMNLP 2022", 7e-3, _MIXED_RATE, beforehand="fibecfed.source_prompts"),
    "lpt": Row(LptOptions, "fedavg", "Liu et al., Findings of EMNLP 2022", 1e-3, "its published scripts: 1e-3 on RoBERTa, 5e-4 on GPT-2"),
    "fedalt": Row(FedAltOptions, "fedalt", "Pillutla et al., ICML 2022", _LORA, _TRAINS_LORA, whole_lora=True),
    "slora": Row(SLoraOptions, "slora", "Babakniya et al., 2023", _LORA, _LORA_NOT_FOUND),
    "fedex-lora": Row(FedExLoraOptions, "fedavg", "Singhal et al., ACL 2025", 1e-3, _FEDEX, whole_lora=True),
    "hetlora": Row(HetLoraOptions, "hetlora", "Cho et al., EMNLP 2024", _LORA, _LORA_NOT_FOUND),
    "fedpeptao": Row(
        FedPepTaoOptions, "fedpeptao", "Che et al., EMNLP 2023", 4e-2, "its published script for RoBERTa large: 4e-2", server_rate_power=1
    ),
    "momd": Row(MomdOptions, "fedavg", "Yu, Jin and Yang, ICML 2019", 4e-2, _SGD_PREFIXES),
    "moms-adamw": Row(MomsAdamwOptions, "fedavg", "Reddi et al., ICLR 2021", 4e-2, _PREFIXES, server_rate_power=-1),
}

COMPARED = (
    "fibecfed", "lora", "lora-finetune", "fedprox", "fedadam", "adapter", "prompt-tuning", "fedprompt", "p-tuning-v2", "idpg", "attempt",
    "lpt", "fedpeptao", "momd", "moms-adamw", "fedalt", "slora", "voc", "slw", "shortformer", "self-evolution",
)  # fmt: skip
"""What `methods = "all"` means in a comparison: FibecFed, the seventeen methods it is compared with, FedAvg-LoRA with a local training at
the end, FedProx and FedAdam."""

METHODS: dict[str, type[MethodOptions]] = {kind: row.options for kind, row in CATALOGUE.items()}
"""`method.kind` -> its options."""

GROUP = "fibecfed.methods"
"""Entry points by which other packages add methods: the name is `method.kind`, the object a `Row`."""

BROKEN: dict[str, str] = {}
"""Methods of other packages that were left out -> why, as a sentence."""


@cache
def discover() -> None:
    """Add the methods of installed packages to `CATALOGUE` and `METHODS`, once.

    What cannot be loaded, or has the name of a method that is there already, is left out: `BROKEN` says why.
    """
    for entry in entry_points(group=GROUP):
        package = entry.dist.name if entry.dist is not None else entry.value
        if entry.name in CATALOGUE:
            BROKEN[entry.name] = f"the package {package} offers it too, but that name is taken; rename it there, or uninstall that package"
            continue
        try:
            row = entry.load()
            if (problem := _misfit(entry.name, row)) is None:
                CATALOGUE[entry.name], METHODS[entry.name] = row, row.options
                continue
        except Exception as error:
            problem = f"{type(error).__name__}: {' '.join(str(error).split())}"
        BROKEN[entry.name] = f"the package {package} offers it, but it cannot be loaded ({problem}); update or uninstall that package"


def _misfit(kind: str, row: Any) -> str | None:
    if not isinstance(row, Row) or not callable(row.file):
        return f"got {type(row).__name__}, expected a fibecfed.Row with a function as `file`"
    if not (isinstance(row.options, type) and issubclass(row.options, MethodOptions)):
        return f"its options are {row.options!r}, expected a class derived from fibecfed.MethodOptions"
    if row.options().kind != kind:
        return f"its options have kind = {row.options().kind!r}, expected {kind!r}"
    return None


@dataclass(frozen=True)
class Preparation:
    """What was made before the federation.

    Attributes:
        tensors: what the adapter starts from.
        summary: what summary.json says of it, by name.
        lines: what `fibecfed check` says of it: title and text.
    """

    tensors: Any = None
    summary: Mapping[str, Any] = field(default_factory=dict[str, Any])
    lines: tuple[tuple[str, str], ...] = ()


NOTHING = Preparation()


class Beforehand(Protocol):
    """A module that makes what a method needs before the federation; its configuration, source and tokenizer are those of the run."""

    def reject(self, config: Any) -> None:
        """Raises `UserError` for what can be told from the configuration alone."""
        ...

    def prepare(self, config: Any, source: Any, tokenizer: Any, *, hidden: int, trial: bool) -> Preparation:
        """Make it, or with `trial` only say what would be made; `hidden`: numbers of a token's embedding."""
        ...


def beforehand(options: MethodOptions) -> Beforehand | None:
    """The module of a method that needs something before the federation."""
    found = None if isinstance(options, CustomOptions) else row_of(options).beforehand
    return None if found is None else cast("Beforehand", import_module(found))


@dataclass(frozen=True)
class MethodContext:
    """What a method gets from the rest of the configuration.

    Attributes:
        key: the method's own random stream.
        max_length: tokens that texts are cut to by the configuration; None where that is not known.
        asks_all: whether every client is asked in every round of training.
    """

    training: TrainingOptions
    num_rounds: int
    num_clients: int
    key: Key
    max_length: int | None = None
    asks_all: bool = False

    def longest(self) -> int:
        """`max_length`, for a method that cuts texts further.

        Raises:
            ValueError: it is not known.
        """
        if self.max_length is None:
            raise ValueError("the context has no max_length; a method that cuts texts needs it")
        return self.max_length


def row_of(options: MethodOptions) -> Row:
    """The row of a method's options.

    Raises:
        TypeError: options of no method.
    """
    row = next((row for row in CATALOGUE.values() if row.options is type(options)), None)
    if row is None:
        raise TypeError(f"no method for {type(options).__name__}")
    return row


def given(method: Any) -> Callable[[MethodContext], Method[Any, Any]]:
    """What makes a method that a user gives: the object itself, or a function of the `MethodContext`."""
    if callable(method) and not hasattr(method, "phases"):
        try:
            inspect.signature(method).bind(None)
        except (TypeError, ValueError) as error:
            text = f"method: got {method!r}, expected a method or a function of one argument, the MethodContext ({error}); fix it"
            raise UserError(text) from None
        return cast("Callable[[MethodContext], Method[Any, Any]]", method)
    found = cast("Method[Any, Any]", method)
    return lambda context: found


def make(
    options: MethodOptions, context: MethodContext, custom: Callable[[MethodContext], Method[Any, Any]] | None = None
) -> Method[Any, Any]:
    """The method of a configuration.

    Args:
        custom: makes the one of `CustomOptions`.

    Raises:
        TypeError: options of no method.
        UserError: a method from outside that does not follow the contract, or that is missing.
    """
    if isinstance(options, CustomOptions):
        if custom is None:
            raise UserError(
                f'method.kind: got "custom" ({options.name}), a method that is an object in Python; start and resume its runs from there: '
                "fibecfed.run(config, out, method=...), fibecfed.resume(out, method=...)"
            )
        build: Callable[[MethodContext], Any] = custom
    else:
        file = row_of(options).file
        build = partial(import_module(f"{__package__}.{file}").build if isinstance(file, str) else file, options)
    method: Any = build(context)
    if problem := import_module(f"{__package__}.contract").lacks(method):
        raise UserError(f"method: {problem}")
    if options.tail_average:
        method = import_module(f"{__package__}.averaged").averaged(method, options.tail_average)
    if not options.finetune:
        return method
    stands = context.asks_all and context.training.schedule == "constant"  # at the end of a decay the last round trains hardly anything
    return import_module(f"{__package__}.finetune").finetuned(method, options.finetune, context.num_clients, stands)

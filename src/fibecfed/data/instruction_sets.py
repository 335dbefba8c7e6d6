"""The published instruction sets, as one table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class InstructionSet:
    """One published set of prompts with answers, or of conversations, as a folder with train.parquet and test.parquet holds it.

    Attributes:
        shape: "prompt" (columns prompt, completion) or "messages".
        system: whether it has a column `system`.
        client: what the column `client` names; None where it is empty.
        hub: id of the data set on the Hugging Face hub; None where it is not there in a usable form.
        hub_config: its configuration, if it has several.
        hub_columns: its columns for prompt and completion there.
        terms: what is known of its licence.
        source: the paper it comes from.
    """

    name: str
    title: str
    shape: str
    system: bool
    client: str | None
    terms: str
    source: str
    hub: str | None = None
    hub_config: str | None = None
    hub_columns: tuple[str, str] = ("prompt", "completion")


_ROWS = (
    InstructionSet(
        "medquad",
        "answer a question about a disease; long free text",
        "prompt",
        True,
        "the institute whose site the answer is from",
        "CC BY 4.0",
        "Ben Abacha and Demner-Fushman 2019 (BMC Bioinformatics 20:511)",
    ),
    InstructionSet(
        "nl2bash",
        "translate a description into one Bash command",
        "prompt",
        True,
        "the program that the command begins with",
        "MIT",
        "Lin et al. 2018 (LREC)",
    ),
    InstructionSet(
        "e2e",
        "turn a record of a restaurant into a sentence or two",
        "prompt",
        True,
        "the restaurant",
        "CC BY-SA 4.0",
        "Novikova, Dusek and Rieser 2017 (SIGDIAL)",
    ),
    InstructionSet(
        "shakespeare",
        "answer a speech in character",
        "prompt",
        True,
        "the speaker",
        "public domain text",
        "Caldas et al. 2018 (LEAF)",
    ),
    InstructionSet(
        "gsm8k",
        "solve a word problem in steps",
        "prompt",
        True,
        None,
        "MIT",
        "Cobbe et al. 2021 (arXiv 2110.14168)",
        hub="openai/gsm8k",
        hub_config="main",
        hub_columns=("question", "answer"),
    ),
    InstructionSet(
        "sgd",
        "be the assistant of a service, over several turns",
        "messages",
        True,
        "the service",
        "CC BY-SA 4.0",
        "Rastogi et al. 2020 (AAAI)",
    ),
)

INSTRUCTION_SETS: Mapping[str, InstructionSet] = MappingProxyType({one.name: one for one in _ROWS})
"""Name -> set."""

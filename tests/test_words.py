"""Documentation, messages and docstrings use the field's words; what the glossary names exists."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import fibecfed
from fibecfed.config import keys
from fibecfed.methods.catalogue import METHODS

ROOT = Path(__file__).resolve().parent.parent
GLOSSARY = ROOT / "docs" / "glossary.md"
PAGES = sorted(page for page in (ROOT / "docs").rglob("*.md") if not page.name.startswith("results"))
PROSE = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES]
CODE = re.compile(r"```.*?```|`[^`\n]*`|\"\w+\"|^ +\w+(?:, \w+)*:(?= )|\]\([^)]*\)", re.DOTALL | re.MULTILINE)
"""What is a name, not a word: code, values in quotes, the attributes of a docstring, the targets of links."""

COUNTED = (
    "bytes|clients|examples|layers|lines?|loss|MB|messages?|ms|numbers?|operations|passes|rates?|rows?|runs|seconds|shards?|steps|tensors|"
    "threads|tokens|trials|values?|vectors?"
)
UNIT = (
    "call|class|client|core|dimension|epoch|example|file|forward|kind|label|layer|line|message|method|minute|model|phase|process|round|row|"
    "run|second|seed|step|task|tensor|text|token"
)

BANNED = {
    rf"(?<![Ww]hich )(?<!of its )\b(?:{COUNTED}) an? (?:{UNIT})\b": "per, as in 'bytes per round'",
    r"\bwhole numbers?\b": "integer",
    r"\bin a row\b": "consecutive",
    r"\bg(?:o|oes|oing|one) on (?:with|from)\b": "resume, or continue",
    r"\bset off\b": "exclude, or start",
    r"\bmend(?:s|ed|ing)?\b": "fix",
    r"\bstands? in for\b": "replace",
    r"\bvalues of adapter\b": "trainable parameters",
    r"\b[Vv]erbalizer": "verbaliser: the spelling is British",
    r"\b[Rr]efus(?:e|es|ed|ing|al)\b": "reject",
    r"\b[Tt]ravel(?:s|led|ling)?\b": "is sent, is shared, is averaged",
    r"\bmade[- ]up\b": "synthetic",
    r"\b(?:is|are|was|were) told\b": "gets, or is reported",
    r"\b[Gg]reet(?:s|ed|ing|ings)?\b": "handshake",
    r"\bnewcomers?\b": "new clients",
    r"\bdearest\b": "most expensive",
}
"""A phrase -> what to write in its place."""


def texts() -> Iterator[tuple[str, str]]:
    """Where, and what is said there: lines of the documentation; strings of the package, with docstrings and parts of f-strings."""
    for path in PROSE:
        text = CODE.sub(lambda found: "\n" * found[0].count("\n"), path.read_text(encoding="utf-8"))
        yield from ((f"{path.relative_to(ROOT)}, line {number}", line) for number, line in enumerate(text.splitlines(), 1))
    for path in sorted((ROOT / "src").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
                yield f"{path.relative_to(ROOT)}, line {node.lineno}", CODE.sub("", node.value)


TEXTS = list(texts())


@pytest.mark.parametrize("phrase", BANNED)
def test_the_fields_words_are_used(phrase):
    found = [f"{where}: {found[0]}" for where, text in TEXTS if (found := re.search(phrase, text))]
    assert not found, f"write: {BANNED[phrase]}\n" + "\n".join(found)


def names() -> list[str]:
    """What the glossary's third column names, in full: of `a.b`, `.c` the second is `a.c`. Fields of files are left out."""
    found: list[str] = []
    for row in re.findall(r"^\|.*\|$", GLOSSARY.read_text(encoding="utf-8"), re.MULTILINE):
        here = row.split("|")[3]
        if "summary.json" not in here:
            for name in re.findall(r"`([a-z]+[._][\w.]*|\.\w+)[^`]*`", here):
                found.append(found[-1].rpartition(".")[0] + name if name.startswith(".") else name)
    return found


def exists(name: str) -> bool:
    """Whether it is a key or a table of the configuration, or a module, class, attribute or function of the package."""
    if any(key.name == name or key.name.startswith(f"{name}.") for kind in METHODS for key in keys(kind)):
        return True
    held: Any = fibecfed
    for part in name.split("."):
        if part in getattr(held, "__annotations__", {}):
            return True
        if not hasattr(held, part):
            try:
                import_module(f"{held.__name__}.{part}")
            except ImportError:
                return False
        held = getattr(held, part)
    return True


def test_what_the_glossary_names_exists():
    assert len(names()) > 40
    assert [name for name in names() if not exists(name)] == []


def test_a_name_that_does_not_exist_is_noticed():
    assert exists("federation.quorum") and exists("core.method.Phase.cohort") and exists("local.fisher")
    assert not exists("federation.quorums") and not exists("core.method.Phase.cohorts") and not exists("local.fishers")


def test_no_two_classes_have_one_name():
    places: dict[str, list[str]] = {}
    for path in sorted((ROOT / "src").rglob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places.setdefault(node.name, []).append(str(path.relative_to(ROOT)))
    assert {name: where for name, where in places.items() if len(where) > 1} == {}

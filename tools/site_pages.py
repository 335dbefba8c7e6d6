"""A hook of mkdocs: pages made from code, `*.md` in the navigation, links out of docs/, figures as part of their page."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page

DOCS = Path(__file__).resolve().parent.parent / "docs"

GROUPS = {
    "Run": ("run", "FinishedRun", "resume", "load_model", "load_config", "Config", "model_folder", "UserError", "RunFailed"),
    "FibecFed's parts, on any model": (
        "TransformerTask",
        "per_example_fisher_trace",
        "fisher_pass",
        "layer_sensitivity",
        "choose_layers",
        "neuron_masks",
        "LayerOptions",
        "NeuronOptions",
        "CurriculumOptions",
        "Key",
    ),
    "Write a method": (
        "Phase",
        "ClientView",
        "Received",
        "Update",
        "Work",
        "Load",
        "Defaults",
        "MethodOptions",
        "MethodContext",
        "Row",
        "FedAvg",
        "mean_by_size",
        "message",
        "fit",
        "plain_epochs",
        "TrainingOptions",
    ),
}
"""How the public names are grouped; whatever is in none of these comes last, under "More"."""


def names() -> str:
    """Every public name, documented by its docstring."""
    import fibecfed

    rest = [name for name in sorted(fibecfed.__all__) if not any(name in group for group in GROUPS.values())]
    parts = []
    for title, group in {**GROUPS, "More": rest}.items():
        parts.append(f"## {title}\n\n" + "\n\n".join(f"::: {_home(name)}" for name in group if name in fibecfed.__all__))
    tests = ("check_method", "BrokenLaw")
    parts.append("## Test a method\n\n" + "\n\n".join(f"::: fibecfed.testing.{name}" for name in tests))
    return "\n\n".join(parts) + "\n"


def _home(name: str) -> str:
    import fibecfed

    module = fibecfed._HOME.get(name, ".config")
    return f"fibecfed{module}.{'load' if name == 'load_config' else name}"


def commands() -> str:
    """Every command with its options, as `--help` prints them."""
    import typer.main
    from typer.cli import get_docs_for_click

    from fibecfed.cli import app

    command = typer.main.get_command(app)
    whole: Any = command
    text = get_docs_for_click(obj=whole, ctx=typer.Context(whole), name="fibecfed").partition("\n\n")[2]
    text = text.replace("\\[", "[").replace("**:\n", "**\n").replace("```console\n$ ", "```\n")
    text = re.sub(r"^(\* `[^`<]+?) <[^`]*>`", r"\1`", text, flags=re.MULTILINE)  # the type of an argument
    return re.sub(r"`[^`]*`|<", lambda found: found[0] if len(found[0]) > 1 else "&lt;", text)


MADE = {"names": names, "commands": commands}
"""What a page may ask for by `<!-- made by the site: NAME -->`."""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Write out the navigation's `*.md`."""
    named = {str(name) for name in _named(config.nav) if "*" not in str(name)}
    config.nav = [expanded for entry in config.nav or [] for expanded in _expanded(entry, named)]
    return config


def _named(entry: Any) -> Iterator[Any]:
    if isinstance(entry, dict):
        for value in entry.values():
            yield from _named(value)
    elif isinstance(entry, list):
        for value in entry:
            yield from _named(value)
    else:
        yield entry


def _expanded(entry: Any, named: set[str]) -> list[Any]:
    if isinstance(entry, dict):
        (title, inner), *_ = entry.items()
        inner = inner if isinstance(inner, list) or "*" not in inner else [inner]
        return [{title: [one for value in inner for one in _expanded(value, named)] if isinstance(inner, list) else inner}]
    if "*" not in str(entry):
        return [entry]
    return [page for path in sorted(DOCS.glob(entry)) if (page := path.relative_to(DOCS).as_posix()) not in named]


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Fill in what is made from code. A link to a file outside docs/ is good where the repository is read; on the site its text stays."""
    for name, made in MADE.items():
        markdown = markdown.replace(f"<!-- made by the site: {name} -->", made() if f"site: {name} " in markdown else "")

    def kept(found: re.Match[str]) -> str:
        depth = len(PurePosixPath(page.file.src_uri).parts)
        return found[1] if found[2].count("../") >= depth else found[0]

    return re.sub(r"(?<!!)\[((?:[^][]|\[[^]]*\])*)\]\(((?:\.\./)+[^)]*)\)", kept, markdown)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put SVG figures into the page, where they take its colours; wide tables can be scrolled by keyboard."""

    def drawn(found: re.Match[str]) -> str:
        folder = DOCS / PurePosixPath(page.file.src_uri).parent
        svg = (folder / found["src"]).read_text(encoding="utf-8")
        svg = re.sub(r"<\?xml.*?\?>|<!--.*?-->|<style>.*?</style>", "", svg, flags=re.DOTALL)
        return svg.replace("<svg ", f'<svg role="img" aria-label="{found["alt"]}" ', 1)

    return re.sub(r'<img alt="(?P<alt>[^"]*)" src="(?P<src>[^":]*figures/[^":]*\.svg)" ?/?>', drawn, html)


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """The theme's search has no name for those who hear the page."""
    return output.replace('data-md-component="search" role="dialog"', 'data-md-component="search" role="dialog" aria-label="Search"')

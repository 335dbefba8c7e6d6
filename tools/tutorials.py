"""A hook of mkdocs: runs docs/tutorials/*.py as notebooks and makes a page of each, with what it printed and drew."""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jupytext
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from nbconvert.exporters import MarkdownExporter
from nbconvert.preprocessors import ExecutePreprocessor
from nbformat.v4 import new_output
from traitlets.config import Config

SOURCES = Path(__file__).resolve().parent.parent / "docs" / "tutorials"
LIMIT_S = 540
"""Of one cell."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for each tutorial, and its pictures. Two run at a time."""
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # for the command fibecfed
    os.environ["COLUMNS"] = "100"
    with ThreadPoolExecutor(2) as pool:
        for made in pool.map(page, sorted(SOURCES.glob("*.py"))):
            for name, content in made.items():
                files.append(File.generated(config, f"tutorials/{name}", content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links to a tutorial's source lead to its page."""
    folder = r"(?:tutorials/|\.\./tutorials/)" if not page.file.src_uri.startswith("tutorials/") else ""
    return re.sub(rf"\]\(({folder}[\w-]+)\.py\)", r"](\1.md)", markdown)


def page(source: Path) -> dict[str, str | bytes]:
    """The pages of a tutorial: Markdown and pictures, by file name."""
    notebook: Any = jupytext.read(source)
    with tempfile.TemporaryDirectory() as folder:
        local = Config({"KernelManager": {"transport": "ipc", "ip": f"{folder}/kernel"}})  # sockets in files, which nobody else can open
        runner = ExecutePreprocessor(timeout=LIMIT_S, startup_timeout=LIMIT_S, kernel_name="python3", config=local)
        runner.preprocess(notebook, {"metadata": {"path": folder}})
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = list(_shown(cell.outputs))
    text, found = MarkdownExporter().from_notebook_node(notebook, {"unique_key": source.stem, "output_files_dir": source.stem})
    text = _described(re.sub(r"<style scoped>.*?</style>", "", text, flags=re.DOTALL))
    text = text.replace(' border="1" class="dataframe"', "").replace('<tr style="text-align: right;">', "<tr>")
    note = f"\n\nThis page is a notebook, run when the site was built: [its source]({source.name}){{download}}.\n"
    title, _, rest = text.strip().partition("\n")
    return {f"{source.stem}.md": title + note + rest + "\n", **found["outputs"]}


def _shown(outputs: list[Any]) -> Iterator[Any]:
    """What a cell printed, in one piece, and drew; without what libraries say on standard error."""
    printed: Any = None
    for output in outputs:
        data = output.get("data", {})
        if data.get("text/html", "").lstrip().startswith("<pre"):  # lines that rich prints
            output = new_output("stream", name="stdout", text=data["text/plain"])
        if output.get("name") == "stderr":
            continue
        if output["output_type"] != "stream":
            printed = None
            yield output
        elif printed is None:
            printed = output
            printed["text"] = _plain(output["text"])
            yield printed
        else:
            printed["text"] += _plain(output["text"])


def _plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def _described(text: str) -> str:
    """Give each picture words: the heading above it."""
    heading, lines = "", []
    for line in text.splitlines():
        heading = line.lstrip("# ").strip() if re.match(r"#{1,3} \w", line) else heading
        lines.append(re.sub(r"!\[png\]\(", f"![Figure: {heading}](", line))
    return "\n".join(lines)

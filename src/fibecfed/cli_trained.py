"""The commands that use what a run trained.

What takes seconds to import (torch, transformers) is imported inside them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .cli_parts import Commands, path_argument, path_option
from .core.errors import UserError
from .exits import console, exit_codes, say

if TYPE_CHECKING:
    from .data.conversations import Message
    from .trained.answers import AnsweringModel
    from .trained.export import Form

_Run = Annotated[Path, path_argument("RUN", "The folder of a finished run.")]
_Client = Annotated[
    str | None, typer.Option(metavar="NAME", help="Use this client's own model. [default: the global one]", show_default=False)
]
_Base = Annotated[
    str | None,
    typer.Option(
        metavar="PATH", help="The base model, if it was moved since. [default: as in the run's configuration]", show_default=False
    ),
]
_Text = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Column of the (first) text. [default: as in the run's configuration]", show_default=False),
]
_Pair = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Column of the second text, for models that read two. [default: likewise]", show_default=False),
]
_Device = Annotated[str, typer.Option(metavar="NAME", help="Device to compute on: auto, cpu, cuda, cuda:1 or the like, or mps.")]


def add(app: Commands) -> None:
    """Add them to a program."""
    for command in (predict, evaluate, generate, export, push):
        app.command()(command)


def predict(
    run: _Run,
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="A CSV, TSV, JSON, JSON lines or parquet file; -: standard input.", show_default=False)
    ],
    client: _Client = None,
    out: Annotated[Path | None, path_option("File to write; it must not exist. [default: standard output]", "FILE")] = None,
    text_column: _Text = None,
    pair_column: _Pair = None,
    base: _Base = None,
    device: _Device = "auto",
) -> None:
    """Predict the class of each text of a file.

    Writes the same rows, in their order and format, with the columns predicted_label and probability_CLASS.
    """
    with exit_codes():
        from .trained.find import note_on_base
        from .trained.model import load
        from .trained.predict import TextColumns, predict_file, reject_taken

        reject_taken(out, file)
        model = load(run, client, base=base, device=device, what="predict")
        _tell(model.found.note)
        _tell(note_on_base(model.found))
        for note in predict_file(model, file, out, TextColumns(text_column, pair_column), _bar):
            _tell(note)
        if out is not None:
            typer.echo(f"{out} written.")


def evaluate(
    run: _Run,
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE", help="A CSV, TSV, JSON, JSON lines or parquet file with labels; -: standard input.", show_default=False
        ),
    ],
    client: _Client = None,
    text_column: _Text = None,
    pair_column: _Pair = None,
    label_column: Annotated[
        str | None, typer.Option(metavar="NAME", help="Column of the label. [default: as in the run's configuration]", show_default=False)
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print all figures as JSON, and nothing else.")] = False,
    base: _Base = None,
    device: _Device = "auto",
) -> None:
    """Score a model on a file of labelled texts.

    Every metric, precision, recall and F1 of each class, and the confusion matrix.
    """
    with exit_codes():
        from .core.json_text import to_json
        from .trained.evaluate import evaluate_file, show_evaluation
        from .trained.find import note_on_base
        from .trained.model import load
        from .trained.predict import TextColumns

        model = load(run, client, base=base, device=device, what="evaluate")
        _tell(model.found.note)
        _tell(note_on_base(model.found))
        found = evaluate_file(model, file, TextColumns(text_column, pair_column, label_column), _bar)
        for note in found.notes:
            _tell(note)
        if json:
            typer.echo(to_json({"run": str(run), "client": client, "file": file, **found.table()}, indent=2))
        else:
            show_evaluation(found, console(piped=80))


def export(
    run: _Run,
    client: _Client = None,
    merged: Annotated[Path | None, path_option("New folder for the merged weights, which plain transformers loads.", "OUT")] = None,
    onnx: Annotated[Path | None, path_option("New folder for an ONNX model; needs the extra onnx.", "OUT")] = None,
    adapter: Annotated[Path | None, path_option("New folder for a copy of the adapter.", "OUT")] = None,
    gguf: Annotated[Path | None, path_option("New GGUF file of a model that answers, by llama.cpp's converter.", "OUT")] = None,
    modelfile: Annotated[Path | None, path_option("New Ollama Modelfile for --merged or --gguf.", "OUT")] = None,
    llama_cpp: Annotated[Path | None, path_option("Folder of llama.cpp. [default: $LLAMA_CPP]", "DIR")] = None,
    base: _Base = None,
) -> None:
    """Write a model for use without fibecfed.

    Each folder has the tokenizer, what else is needed to use it, and a model card with code that does.
    """
    with exit_codes():
        given: dict[Form, Path | None] = {
            "merged": merged, "onnx": onnx, "adapter": adapter, "gguf": gguf, "modelfile": modelfile,
        }  # fmt: skip

        outs: dict[Form, Path] = {form: out for form, out in given.items() if out is not None}
        if not outs:
            raise UserError(
                "got no form, expected --merged OUT, --onnx OUT, --adapter OUT or --gguf OUT; --merged is what most programs load"
            )
        from .trained.export import export as write

        for note in write(run, client, outs, base=base, llama_cpp=llama_cpp):
            _tell(note)
        for form, out in outs.items():
            how = f"; {out / 'README.md'} says how to use it" if out.is_dir() else ""
            typer.echo(f"{out} written ({form}){how}.")


def generate(
    run: _Run,
    prompt: Annotated[
        str | None,
        typer.Argument(
            metavar="PROMPT", help="What is to be answered. [default: standard input; line by line on a terminal]", show_default=False
        ),
    ] = None,
    client: _Client = None,
    messages: Annotated[
        bool, typer.Option("--messages", help="PROMPT is a conversation: a JSON list of objects with role and content.")
    ] = False,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(metavar="N", help="Tokens of an answer, at most. [default: 256, or what the model has room for]", show_default=False),
    ] = None,
    base: _Base = None,
    device: _Device = "auto",
) -> None:
    """Answer a prompt, with a model that was trained on answers.

    Always the most likely next token, in the run's chat template and with its system message, up to the end token.
    """
    with exit_codes():
        from .trained.answers import load, messages_of
        from .trained.find import note_on_base

        talks = prompt is None and sys.stdin.isatty()
        if prompt is None and not talks:
            prompt = sys.stdin.buffer.read().decode(errors="surrogateescape").removesuffix("\n")
        asked = None if prompt is None else messages_of(prompt) if messages else prompt
        model = load(run, client, base=base, device=device)
        _tell(model.found.note)
        _tell(note_on_base(model.found))
        if asked is not None:
            _write(model, asked, max_new_tokens)
            return
        say("Each line is a prompt of its own; Ctrl-D ends.")
        while (line := _line()) is not None:
            if line.strip():
                try:
                    _write(model, messages_of(line) if messages else line, max_new_tokens)
                except UserError as error:
                    say(f"error: {error}")


def _line() -> str | None:
    """The next one from a terminal; None at its end."""
    try:
        return input("> ")
    except EOFError:
        typer.echo("")
        return None


def _write(model: AnsweringModel, prompt: str | list[Message], max_new_tokens: int | None) -> None:
    [answer] = model.answer([prompt], max_new_tokens)
    typer.echo(answer.text)
    if not answer.ended:
        _tell(f"stopped after {len(answer.tokens):,} tokens, before the end of the answer; raise --max-new-tokens for more")


def push(
    run: _Run,
    repo: Annotated[str, typer.Argument(metavar="REPO", help="A model's repository on the hub, owner/name.", show_default=False)],
    client: _Client = None,
    merged: Annotated[bool, typer.Option("--merged", help="The merged weights instead of the adapter.")] = False,
    public: Annotated[bool, typer.Option("--public", help="Make a new repository public instead of private.")] = False,
    update: Annotated[bool, typer.Option("--update", help="Add a new version to a repository that has files.")] = False,
    base: _Base = None,
) -> None:
    """Publish a model with its card on the Hugging Face hub.

    A new repository is private. The environment variable HF_TOKEN holds the token, HF_ENDPOINT the address of a mirror.
    """
    with exit_codes():
        from .trained.push import push as publish

        where, notes = publish(run, repo, client, "merged" if merged else "adapter", base=base, public=public, update=update)
        for note in notes:
            _tell(note)
        typer.echo(f"published: {where}")


def _tell(note: str | None) -> None:
    if note is not None:
        say(f"note: {note}")


def _bar(batches: Iterable[list[int]], count: int) -> Iterable[list[int]]:
    """Progress on standard error, where that is a terminal."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not sys.stderr.isatty()) as progress:
        bar = progress.add_task("texts", total=count)
        for batch in batches:
            yield batch
            progress.advance(bar, len(batch))

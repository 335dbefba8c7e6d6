"""What `fibecfed list` shows: one function per topic, each giving a header and rows of text."""

from __future__ import annotations

from .methods.catalogue import BROKEN, CATALOGUE, METHODS, discover

Listing = tuple[tuple[str, ...], list[tuple[str, ...]]]


def methods() -> Listing:
    """The values of `method.kind`, those of installed packages among them, with the learning rate that each has unless one is given."""
    discover()
    return ("method.kind", "what it is", "learning rate"), [
        (kind, " ".join((options.__doc__ or "").split("\n\n")[0].split()), f"{CATALOGUE[kind].learning_rate:g}")
        for kind, options in METHODS.items()
    ]


def left_out() -> list[str]:
    """A sentence for each method of an installed package that is not listed."""
    return [f'method.kind = "{kind}": {why}' for kind, why in BROKEN.items()]


def tasks() -> Listing:
    """The values of `data.task`."""
    from .data.instruction_sets import INSTRUCTION_SETS
    from .data.tasks import TASKS

    rows = [
        (
            name,
            task.title,
            "pairs" if task.pair else "single",
            ", ".join(task.labels) if len(task.labels) <= 6 else f"{len(task.labels)} classes",
        )
        for name, task in TASKS.items()
    ]
    shapes = {"prompt": "prompts", "messages": "chats"}
    rows += [(name, found.title, shapes[found.shape], 'answers: data.kind = "instruction"') for name, found in INSTRUCTION_SETS.items()]
    return ("data.task", "what it is", "texts", "classes"), rows


def models() -> Listing:
    """The values of `model.name` that need no download; any other is a hub id, a folder or a GGUF file."""
    from .models.packaged import PACKAGED

    rows = [
        (name, model.about, "installed" if model.find() else f"not installed; run: {model.install}") for name, model in PACKAGED.items()
    ]
    return ("model.name", "what it is", ""), [
        *rows,
        ("<hub id>, <folder>, <file>.gguf", "any classifier transformers loads from safetensors or GGUF", ""),
    ]


def paces() -> Listing:
    """The values of `method.curriculum.pace`, with the fraction of the data at progress u = t / (alpha T), at most 1."""
    from .local.curriculum import PACES
    from .local.options import CurriculumOptions

    beta = CurriculumOptions().beta
    steps = (0.0, 0.25, 0.5, 0.75, 1.0)
    rows = [(name, (pace.__doc__ or "").strip(), *(f"{pace(u, beta):.0%}" for u in steps)) for name, pace in PACES.items()]
    return ("method.curriculum.pace", "fraction of the data at u = t / (alpha T)", *(f"u = {u:g}" for u in steps)), rows

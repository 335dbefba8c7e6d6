"""A saved model without anything of this package: the merged weights as transformers has them, and a pipeline around them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..adapters.options import called
from ..core.errors import UserError
from ..core.types import Batch, ClientId
from ..data.tokenise import pair_separator
from ..models.precision import choose_device
from ..models.saved import answers_pipeline, can_merge, differs, merged_answers, pipeline_of, with_names
from ..reading import is_instruction
from .answers import load_reading
from .find import FoundModel, find
from .model import TrainedModel, load

_TOLERANCE = 1e-5
"""[C] By how much the probability of a class may differ: float32 in another order of additions is below a tenth of it."""


def load_model(run: str | Path, client: ClientId | None = None, *, base: str | None = None, device: str = "auto") -> Any:
    """The global model of a run, or that of one of its clients, as a text-classification or text-generation pipeline of transformers.

    A text-generation pipeline takes prompts or conversations, and answers by the most likely tokens, up to the end token. The
    `model` of one that classifies is the merged one with the names of the classes in its configuration; texts are cut where training cut
    them. Two texts are given as {"text": ..., "text_pair": ...}.

    Args:
        base: where the base model lies by now; None: where the run's configuration says.
        device: as `training.device`.

    Raises:
        UserError: no such model, or one that is no sequence classifier of plain transformers: an adapter that cannot be merged, or a head
            of label words. `fibecfed predict` uses these too.
    """
    found = find(run, client, base)
    if is_instruction(found.config):
        reject_unmerged(found, "a pipeline", "use `fibecfed generate`")
        reading = load_reading(found)
        merged = merged_answers(reading.source, found.folder, pad_token_id=reading.tokenizer.pad_token_id)
        return answers_pipeline(merged, reading.tokenizer, reading.stop_ids, choose_device(device))
    model = load(run, client, base=base, device=device, what="a pipeline")
    return pipeline_of(plain_model(model, "a pipeline", "use `fibecfed predict`"), model.tokenizer, model.max_length, model.task.device)


def reject_unmerged(found: FoundModel, what: str, way_out: str) -> None:
    """Reject a model that is more than the weights of a sequence classifier.

    Args:
        what: what needs one.
        way_out: what to do instead.

    Raises:
        UserError: it is.
    """
    if not can_merge(found.folder):
        adapter = getattr(found.config.method, "adapter", None)
        kind = "an adapter of its own kind" if adapter is None else f"a {called(adapter)}"
        raise UserError(
            f"{found.run}: got a model of the method {found.config.method.model_dump()['kind']}, which trains {kind}: it cannot be merged "
            f"into the weights of the base model, but {what} needs that; {way_out}"
        )
    if found.config.model.head == "label-words":
        raise UserError(
            f'{found.run}: got a model with model.head = "label-words", which answers by words of its vocabulary, but {what} needs a '
            f"classification head; {way_out}"
        )


def plain_model(model: TrainedModel, what: str, way_out: str) -> Any:
    """The merged model, which computes by its own call what the run's model does. Arguments as for `reject_unmerged`.

    Raises:
        UserError: there is none, or its own call computes something else.
    """
    reject_unmerged(model.found, what, way_out)
    difference = differs(model.task, example(model))
    if difference > _TOLERANCE:
        raise UserError(
            f"{model.found.run}: the merged model's own call gives probabilities that differ by {difference:.1g} from the run's, as where "
            f"texts end with the padding token, which plain transformers does not read; {what} would mislead; {way_out}"
        )
    return with_names(model.task, model.labels)


def example(model: TrainedModel) -> Batch:
    """A batch of two texts of different length, as the model reads them."""
    pairs = ["and its second text", "another"] if model.pair else None
    return model.tokens(["a text", "another one, which is a good deal longer than the first"], pairs).batch([0, 1])


def separator(model: TrainedModel) -> str:
    """What a second text must begin with, since the tokenizer puts nothing before it."""
    return pair_separator(model.tokenizer) if model.pair else ""

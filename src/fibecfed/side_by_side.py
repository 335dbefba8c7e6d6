"""Some test examples of a simulated run with the answers of three models: untrained, global, and the client's own. Texts, for people."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from .build import Prepared
from .core.files import ANSWERS, write_atomically
from .core.json_text import to_json
from .core.types import ClientId, Params
from .engine.evaluation import sample
from .models.answer_task import BATCH, AnswerTask, whole_answers
from .models.answers import Answers, Writing

MODELS = ("untrained", "global", "personalised")


def write_answers(prepared: Prepared, out: Path, params: Params, own: Callable[[ClientId], Params]) -> None:
    """Write `evaluation.examples` lines of prompt, expected answer and what each of `MODELS` answers, as far as the run generates answers.

    The examples are those of clients that are evenly spread over the ones that are scored, and nothing of a private run.

    Args:
        params: the global model.
        own: a client's model.
    """
    config, task = prepared.inputs.config, prepared.task
    objective = task.objective
    writing = objective.writing if isinstance(objective, Answers) else None
    if writing is None or not isinstance(task, AnswerTask) or not config.evaluation.examples or config.privacy.unit != "none":
        return
    if not (chosen := list(_chosen(prepared, writing))):
        return
    key = prepared.inputs.key.fold("run")
    start = prepared.method.server_params(prepared.method.init(task, key.fold("init")))
    prompts = [prompt for _, prompt, _ in chosen]

    def texts(model: Params, some: Sequence[Sequence[int]]) -> list[str]:
        number, stop_ids = writing.max_new_tokens, writing.stop_ids
        parts = (some[start : start + BATCH] for start in range(0, len(some), BATCH))
        return [writing.decode(row) for part in parts for row in task.generate(model, part, stop_ids=stop_ids, max_new_tokens=number)]

    answers = [texts(start, prompts), texts(params, prompts), [texts(own(client), [prompt])[0] for client, prompt, _ in chosen]]
    lines: list[dict[str, Any]] = [
        {
            "client": client,
            "prompt": writing.decode(prompt),
            "expected": writing.decode(expected),
            **{model: answers[number][place] for number, model in enumerate(MODELS)},
        }
        for place, (client, prompt, expected) in enumerate(chosen)
    ]
    write_atomically(out / ANSWERS, "".join(to_json(line, ensure_ascii=False) + "\n" for line in lines).encode())


def _chosen(prepared: Prepared, writing: Writing) -> Iterator[tuple[ClientId, list[int], list[int]]]:
    """Client, prompt and expected answer of each example: at most one of a client, the middle one of those with a whole answer."""
    data, evaluation = prepared.inputs.data, prepared.inputs.config.evaluation
    clients = sample(data.clients, evaluation.clients, prepared.inputs.key.fold("run"))
    whole = {client: found for client in clients if (found := whole_answers(data.client(client).test, writing.stop_ids))}
    names = list(whole)
    number = min(evaluation.examples, len(names))
    for place in range(number):
        client = names[place * len(names) // number]
        yield (client, *whole[client][len(whole[client]) // 2])

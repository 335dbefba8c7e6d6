"""Which answers of a finished run do not come to an end, and why: each client's own model on the test examples that the run generated.

FIBECFED_DATA=FOLDER python benchmarks/stopping.py runs/instruction/nl2bash/0/best [NEW_TOKENS]

Counts how long right answers are, how many answers end within the run's tokens and within NEW_TOKENS (4 times as many by default), and how
many of the others go round in circles: their last 8 tokens stand in them before. Prints those that do not end; the sets are public. With
NEW_TOKENS = 0 nothing is generated: right answers alone are counted.
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path

import torch

from fibecfed.build import read_inputs
from fibecfed.config import load as load_config
from fibecfed.models.answer_task import BATCH, whole_answers
from fibecfed.models.tokenizers import stop_ids
from fibecfed.trained.answers import AnsweringModel, load

CIRCLE = 8


def in_circles(tokens: list[int]) -> bool:
    """Whether the last tokens stand there before as well."""
    last = tokens[-CIRCLE:]
    return any(tokens[start : start + CIRCLE] == last for start in range(len(tokens) - CIRCLE))


def answered(model: AnsweringModel, prompts: list[list[int]], number: int) -> list[list[int]]:
    """Tokens of the answers."""
    parts = (prompts[start : start + BATCH] for start in range(0, len(prompts), BATCH))
    return [row for part in parts for row in model.task.generate(model.task.params(), part, stop_ids=model.stop_ids, max_new_tokens=number)]


def main() -> None:
    """See the module's text."""
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    config = load_config(folder / "config.toml").config
    short = config.evaluation.max_new_tokens
    long = int(sys.argv[2]) if len(sys.argv) > 2 else 4 * short
    inputs = read_inputs(config)
    data, stops = inputs.data, stop_ids(inputs.source, inputs.tokenizer)
    right, lengths, circles, unended = list[int](), list[int](), 0, list[str]()
    for client in data.clients:
        whole = whole_answers(data.client(client).test, stops)
        number = min(config.evaluation.generate, len(whole))
        chosen = [whole[place * len(whole) // number] for place in range(number)]
        right += [len(answer) for _, answer in chosen]
        if not long:
            continue
        model = load(folder, client, device="cpu")
        for row, (_, expected) in zip(answered(model, [prompt for prompt, _ in chosen], long), chosen, strict=True):
            ended = row[-1] in model.stop_ids
            lengths.append(len(row) if ended else long + 1)
            circles += not ended and in_circles(row)
            if lengths[-1] > short:
                expects = model.tokenizer.decode(expected, skip_special_tokens=True)
                unended.append(f"{client}, {len(row)} tokens: {model.tokenizer.decode(row)!r}, expected {expects!r}")
    for line in unended:
        print(line)
    print(f"{len(right)} right answers: median {statistics.median(right):.0f} tokens, longest {max(right)}")
    for limit in sorted({short, max(right), long} - {0}):
        ended, could = (sum(length <= limit for length in some) for some in (lengths, right))
        print(f"within {limit} tokens: {could} of {len(right)} right answers" + (f", {ended} of the model's end" if long else ""))
    if long:
        print(f"of the {sum(length > long for length in lengths)} that do not end {circles} go round in circles")


if __name__ == "__main__":
    main()

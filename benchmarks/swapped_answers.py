"""Does difficulty tell wrong answers? A third of the prompts get another one's answer; SmolLM2-135M scores all, untrained and trained.

FIBECFED_DATA=FOLDER python benchmarks/swapped_answers.py nl2bash medquad shakespeare [--rows 72] [--steps 12] [--seed 0]

Prints the chance that a swapped example is scored as harder than another one (AUC; 0.5 by chance), and Spearman's correlation of each
score with the answer's length and with its NLL per token. Training goes over all rows, wrong answers included.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from fibecfed.build import Prepared, prepare
from fibecfed.config import load
from fibecfed.core.rng import Key
from fibecfed.core.types import Examples, Params
from fibecfed.local.batches import batches, plain_epochs
from fibecfed.local.difficulty import losses_per_token, misalignment
from fibecfed.local.fisher import per_example_fisher_trace
from fibecfed.local.optimise import fit

ROOT = Path(__file__).resolve().parent.parent
RIGHT, SWAPPED = "right", "swapped"


def write(task: str, number: int, seed: int, out: Path) -> None:
    """Rows of a set, evenly spread; every third has the answer of the swapped row before it, and all swapped ones are one client."""
    for part, count in (("train", number), ("test", 8)):
        table = pq.read_table(Path(os.environ["FIBECFED_DATA"]) / task / f"{part}.parquet").to_pylist()
        rows = [dict(table[(place * len(table) // count + seed) % len(table)], client=RIGHT) for place in range(count)]
        some = rows[::3]
        for row, answer in zip(some, [some[-1]["completion"], *(row["completion"] for row in some[:-1])], strict=True):
            row.update(completion=answer, client=SWAPPED)
        (out / task).mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows), out / task / f"{part}.parquet")


def scored(prepared: Prepared, params: Params) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Scores of all examples, their labelled tokens, and which are swapped."""
    task, data = prepared.task, prepared.inputs.data
    parts: dict[str, list[Tensor]] = {}
    targets, swapped = list[Tensor](), list[Tensor]()
    for client in (RIGHT, SWAPPED):
        examples: Examples = data.client(client).train
        assert examples.targets is not None
        n = examples.targets.double()
        some = batches(examples, torch.arange(len(examples)), 8)
        trace = per_example_fisher_trace(task, params, some, normalise="none").double()
        nll = losses_per_token(task, params, examples).double()
        found = {"trace": trace, "trace/n": trace / n, "trace/n^2": trace / n**2, "NLL/n": nll}
        for name, values in {**found, "-IRA/n": misalignment(task, params, examples).double(), "length": n}.items():
            parts.setdefault(name, []).append(values)
        targets.append(n)
        swapped.append(torch.full((len(examples),), client == SWAPPED))
    scores = {name: torch.cat(values) for name, values in parts.items()}
    scores["NLL/n with trace/n"] = ranks(scores["NLL/n"]) + ranks(scores["trace/n"])
    return scores, torch.cat(targets), torch.cat(swapped)


def ranks(values: Tensor) -> Tensor:
    """Mean ranks, equal values sharing theirs."""
    return (values[:, None] > values[None]).double().sum(1) + 0.5 * (values[:, None] == values[None]).double().sum(1)


def correlation(left: Tensor, right: Tensor) -> float:
    """Spearman's."""
    return float(torch.corrcoef(torch.stack([ranks(left), ranks(right)]))[0, 1])


def auc(scores: Tensor, swapped: Tensor) -> float:
    """Chance that a swapped example has the higher score."""
    hard, rest = scores[swapped], scores[~swapped]
    return float((hard[:, None] > rest[None]).double().mean() + 0.5 * (hard[:, None] == rest[None]).double().mean())


def show(task: str, when: str, scores: Mapping[str, Tensor], targets: Tensor, swapped: Tensor) -> None:
    """Three rows of a table."""
    nll = scores["NLL/n"]
    for what, of in (
        ("AUC", lambda values: auc(values, swapped)),
        ("rho with length", lambda values: correlation(values, targets)),
        ("rho with NLL/n", lambda values: correlation(values, nll)),
    ):
        print(f"| {task} | {when} | {what} | {' | '.join(f'{of(values):+.2f}' for values in scores.values())} |", flush=True)


def main() -> None:
    """See the module's text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="+")
    parser.add_argument("--rows", type=int, default=72)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    headed = False
    for task in options.tasks:
        with tempfile.TemporaryDirectory() as folder:
            write(task, options.rows, options.seed, Path(folder))
            pairs = (f"data.root={folder}", "data.max_length=192", "data.validation_fraction=0", "federation.clients_per_round=2")
            config = load(
                ROOT / "configs" / f"{task}.toml", ["method.preset=paper", *pairs, "method.curriculum.order=ira", f"seed={options.seed}"]
            ).config
            prepared = prepare(config)
            key = Key(options.seed)
            params = prepared.task.init_params(key.fold("init"))
            for when in ("before", f"after {options.steps} steps"):
                scores, targets, swapped = scored(prepared, params)
                if not headed:
                    print(f"| set | when | | {' | '.join(scores)} |\n|---|---|---|{'---|' * len(scores)}")
                    headed = True
                show(task, when, scores, targets, swapped)
                training = config.training.model_copy(update={"max_steps": options.steps})
                epochs = plain_epochs(prepared.inputs.data.train, training, key, options.steps)
                params = fit(prepared.task, params, epochs, training, key).params if when == "before" else params


if __name__ == "__main__":
    main()

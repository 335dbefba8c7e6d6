"""What `fibecfed check` promises of a comparison and of a single run, against what they take: CPU seconds, which a busy machine hardly
stretches.

    python benchmarks/promised.py                                          # two tasks, three methods; needs FIBECFED_DATA
    python benchmarks/promised.py configs/compare-smoke.toml methods=lora,fibecfed

A comparison takes what its first command takes more than the same command again, which finds every run done; what its worker processes
take to start is in it, and not in what is promised.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console

from fibecfed import session
from fibecfed.build import prepare
from fibecfed.comparison.runner.plan import job
from fibecfed.comparison.runner.price import price_comparison
from fibecfed.comparison.runner.read import load
from fibecfed.core.process import threads
from fibecfed.effort import plan_effort
from fibecfed.engine.stopwatch import Stopwatch
from fibecfed.estimate import measure

SMALL = """
methods = ["lora", "fibecfed", "prompt-tuning"]
tasks = ["sst2", "rte"]
[base]
model = { name = "minilm" }
data = { max_train = 160, max_test = 100, validation_fraction = 0.2, max_length = 64 }
federation = { clients = 8, clients_per_round = 4, rounds = 10 }
training = { local_epochs = 1, batch_size = 8 }
evaluation = { every = 5 }
[method.fibecfed.method]
preset = "paper"
"""


def children() -> float:
    """CPU seconds of all processes that this one has waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def seconds(command: list[str]) -> float:
    """CPU seconds of a command and of the processes that it starts."""
    before = children()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return children() - before


def main() -> None:
    with tempfile.TemporaryDirectory() as place:
        folder, given = Path(place), sys.argv[1:]
        file = Path(given[0]) if given else folder / "small.toml"
        if not given:
            file.write_text(SMALL)
        comparison, console = load(file, given[1:]), Console()
        promised = price_comparison(comparison, console).seconds
        command = [sys.executable, "-m", "fibecfed", "compare", str(file), *given[1:], "--out", str(folder / "out")]
        first, again = seconds(command), seconds(command)
        taken = first - again
        print(f"comparison: promised {promised:.0f} s, taken {taken:.0f} s ({again:.0f} s of the command apart): {promised / taken:.2f}")

        for method in comparison.methods:
            config = job(comparison, folder, comparison.tasks[0], method, comparison.seeds[0]).config
            with threads(config.resources.threads):
                prepared = prepare(config, trial=True)
                watch, promised = Stopwatch(prepared.task.device), sum(measure(prepared).seconds(plan_effort(prepared)))
                check_s, watch = watch.seconds(), Stopwatch(prepared.task.device)
                session.start(config, folder / method, adapters=False)
                taken = watch.seconds()
            print(f"{method} on {comparison.tasks[0]}: promised {promised:.1f} s (in {check_s:.1f} s), taken {taken:.1f} s with set-up: "
                  f"{promised / taken:.2f}")  # fmt: skip


if __name__ == "__main__":
    main()

"""No framework: the training loop alone, for as many clients as a round has. `python plain.py lora FOLDER ROUNDS`."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from workload import PER_ROUND, Rounds, examples, loader, lora_model, train


def main() -> None:
    torch.set_num_threads(1)
    folder, count = Path(sys.argv[2]), int(sys.argv[3])
    rounds, model, clients = Rounds(), lora_model(folder), list(examples(folder))
    for number in range(count):
        for place in range(PER_ROUND):
            train(model, loader(folder, clients[(number * PER_ROUND + place) % len(clients)]))
        rounds.done()
    rounds.report()


if __name__ == "__main__":
    main()

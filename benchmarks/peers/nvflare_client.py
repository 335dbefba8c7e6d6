"""What a client of NVIDIA FLARE runs: its client API around a training loop. `lora FOLDER ROUNDS` or `noop ROUNDS`, given by on_nvflare.py.

The first client measures: a round is over for it when the next one begins.
"""

from __future__ import annotations

import sys
from pathlib import Path

import nvflare.client as flare
import torch
from nvflare_models import adapter_of, set_adapter
from workload import PER_ROUND, Rounds, examples, loader, lora_model, train


def main() -> None:
    torch.set_num_threads(1)
    flare.init()
    kind, count = sys.argv[1], int(sys.argv[-1])
    place = int(flare.get_site_name().removeprefix("site-")) - 1
    rounds = Rounds(tree=True) if place == 0 else None
    number = 0
    while flare.is_running():
        received = flare.receive()
        if received is None:
            break
        if rounds is not None and number:
            rounds.done()
        if kind == "lora":
            folder = Path(sys.argv[2])
            model, clients = lora_model(folder), list(examples(folder))
            set_adapter(model, received.params)
            steps = train(model, loader(folder, clients[(number * PER_ROUND + place) % len(clients)]))
            tensors = adapter_of(model)
        else:
            tensors, steps = received.params, 1
        flare.send(flare.FLModel(params=tensors, meta={"NUM_STEPS_CURRENT_ROUND": steps}))
        number += 1
        if rounds is not None and number == count:  # nobody asks again: the last round goes unmeasured
            rounds.report()


if __name__ == "__main__":
    main()

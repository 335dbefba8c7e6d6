"""The workload and rounds without training on NVIDIA FLARE's simulator.

`python on_nvflare.py lora FOLDER ROUNDS` or `... noop CLIENTS NUMBERS ROUNDS`.

A `FedAvgRecipe` with a `SimEnv`; the clients run `nvflare_client.py`, in which the client API sends and receives. Each simulated client is
a process of its own here, whose model and examples stay in memory: one for every place of the cohort, which trains in each round as the
client whose turn it is. 20 clients that share fewer processes would start a new process for every turn, at many times the cost.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
from nvflare.app_opt.pt.recipes.fedavg import FedAvgRecipe
from nvflare.recipe.sim_env import SimEnv
from nvflare_models import Adapter, Still
from workload import PER_ROUND


def run(model: torch.nn.Module, clients: int, count: int, arguments: str) -> None:
    script = str(Path(__file__).parent / "nvflare_client.py")
    recipe = FedAvgRecipe(model=model, min_clients=clients, num_rounds=count, train_script=script, train_args=arguments)
    with tempfile.TemporaryDirectory() as workspace:
        recipe.execute(SimEnv(num_clients=clients, num_threads=clients, workspace_root=workspace))


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1] == "lora":
        run(Adapter(sys.argv[2]), PER_ROUND, int(sys.argv[3]), f"lora {sys.argv[2]} {sys.argv[3]}")
    else:
        run(Still(int(sys.argv[3])), int(sys.argv[2]), int(sys.argv[4]), f"noop {sys.argv[4]}")

"""The workload and rounds without training on Flower's simulation.

`python on_flower.py lora FOLDER ROUNDS` or `... noop CLIENTS NUMBERS ROUNDS`.

A `ServerApp` with the strategy `FedAvg` and a `ClientApp`, run by `run_simulation` on Ray: one client at a time on one core, each in the
same process, where the model and the examples stay in memory from one to the next.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from workload import CLIENTS, PER_ROUND, Rounds, examples, loader, lora_model, train


def server_app(initial: ArrayRecord, clients: int, per_round: int, count: int, config: dict[str, Any]) -> ServerApp:
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        rounds = Rounds(tree=True)

        def after(number: int, arrays: ArrayRecord) -> None:
            if number:
                rounds.done()

        strategy = FedAvg(fraction_train=per_round / clients, fraction_evaluate=0.0, min_available_nodes=clients)
        strategy.start(grid, initial, num_rounds=count, train_config=ConfigRecord(config), evaluate_fn=after)
        rounds.report()

    return app


client_app = ClientApp()


@client_app.train()
def answer(message: Message, context: Context) -> Message:
    torch.set_num_threads(1)
    arrays, folder = message.content["arrays"], message.content["config"].get("folder")
    number = 1
    if folder is not None:
        from peft import get_peft_model_state_dict, set_peft_model_state_dict

        model, clients = lora_model(Path(folder)), list(examples(Path(folder)))
        set_peft_model_state_dict(model, arrays.to_torch_state_dict())
        number = train(model, loader(Path(folder), clients[int(context.node_config["partition-id"])]))
        arrays = ArrayRecord(get_peft_model_state_dict(model))
    return Message(RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": number})}), reply_to=message)


def run(initial: dict[str, Any], clients: int, per_round: int, count: int, **config: Any) -> None:
    app = server_app(ArrayRecord(initial), clients, per_round, count, config)
    resources = {"init_args": {"num_cpus": 1}, "client_resources": {"num_cpus": 1, "num_gpus": 0.0}}
    run_simulation(app, client_app, clients, backend_config=resources)


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1] == "lora":
        from peft import get_peft_model_state_dict

        adapter = get_peft_model_state_dict(lora_model(Path(sys.argv[2])))
        run(adapter, CLIENTS, PER_ROUND, int(sys.argv[3]), folder=sys.argv[2])
    else:
        each, numbers, rounds = map(int, sys.argv[2:])
        run({"w": torch.zeros(numbers)}, each, each, rounds)

"""Phase 1 of a configuration under every rule: importance curve, global layers, answer of each rule, what curvature said, and how much
longer the first position's hidden vector is than the others'.

python benchmarks/layer_rules.py configs/sst2.toml data.max_train=2000
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

import torch

from fibecfed.build import build_method, prepare
from fibecfed.config import load
from fibecfed.core.rng import Key
from fibecfed.engine.loop import run
from fibecfed.engine.runtime import ClientRuntime
from fibecfed.engine.simulator import Simulator
from fibecfed.engine.states import ClientStates

RULES = ("share", "coverage", "layer_gap", "plateau")


def main() -> None:
    """See the module's text."""
    file, pairs = Path(sys.argv[1]), ("method.preset=paper", *sys.argv[2:])
    config = load(file, [*pairs, "method.layers.rule=share"]).config
    prepared = prepare(config)
    key = Key(config.seed).fold("run")
    for kind in ("output", "increment"):
        for rule in RULES if kind == "output" else ("share", "coverage"):
            begin = time.process_time()
            asked = load(file, [*pairs, f"method.layers.rule={rule}", f"method.layers.importance={kind}"]).config
            method = build_method(prepared.inputs.__class__(**{**vars(prepared.inputs), "config": asked}))
            server = method.init(prepared.task, key.fold("init"))
            notes: dict[str, object] = {}
            with tempfile.TemporaryDirectory() as folder:
                states = ClientStates(Path(folder), 2**28)
                runtime = ClientRuntime(method, prepared.task, prepared.inputs.data.client, states, key, 64)
                clients = prepared.inputs.data.clients
                for phase in method.phases:
                    if phase.name == "tune":
                        break
                    notes[phase.name] = None
                rounds = run(method, Simulator(runtime), clients, per_round=1, key=key, server=server)
                for _ in range(len(notes)):
                    step = next(rounds)
                    server, notes[step.now.phase] = step.server, step.record.notes
            summary = method.summary(server)
            print(f"{rule} ({kind}): {len(server.layers)} of {summary['num_layers']} layers {list(server.layers)}, "
                  f"ratio {summary['ratio']}, {time.process_time() - begin:.0f} processor seconds")  # fmt: skip
            if rule == "share":
                print(f"  importance: {[round(i, 4) for i in summary['importance']]}")
            if rule == "layer_gap":
                for client, said in notes["spectrum"].items():  # pyright: ignore[reportAttributeAccessIssue]
                    print(f"  client {client}: ratio {said['ratio']:.3f}, Lipschitz {said['lipschitz']:.4g}, gap {said['gap']}, "
                          f"eigenvalues {[float(f'{e:.3g}') for e in said['eigenvalues']]}")  # fmt: skip
            if rule == "plateau":
                print(f"  by client: {[round(said['ratio'], 4) for said in notes['spectrum'].values()]}")  # pyright: ignore[reportAttributeAccessIssue]
            sys.stdout.flush()
    examples = prepared.inputs.data.train
    with torch.no_grad():
        outputs = prepared.task.hidden_states(prepared.task.init_params(key.fold("init")), examples.batch(range(8)))
    shortest = int(examples.lengths[:8].min())
    ratios = [float((norms[:, 0] / norms[:, 1:shortest].median(1).values).median()) for norms in (h.float().norm(dim=-1) for h in outputs)]
    print(f"norm of the first position over that of the others, by layer: {[round(ratio, 1) for ratio in ratios]}")


if __name__ == "__main__":
    main()

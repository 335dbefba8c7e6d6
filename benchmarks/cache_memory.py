"""The memory that `fibecfed check` promises for the kept outputs of untrained blocks, beside what a run of the same configuration holds.

Run: OMP_NUM_THREADS=1 python benchmarks/cache_memory.py CONFIG [key=value ...]

For example `configs/demo.toml method.depth=3 method.depth_rule=last resources.activation_cache_mb=512`. The run is a whole one, in one
process, into a folder that is removed again.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from fibecfed import session
from fibecfed.activation_plan import planned_bytes
from fibecfed.build import prepare
from fibecfed.config.read import load


def main() -> None:
    path, *overrides = sys.argv[1:]
    config = load(Path(path), [*overrides, "resources.workers=1"]).config
    promised = planned_bytes(prepare(config))
    prepared: list[Any] = []

    def listening(*args: Any, **more: Any) -> Any:
        prepared.append(prepare(*args, **more))
        return prepared[-1]

    session.prepare = listening  # pyright: ignore[reportPrivateImportUsage]
    with tempfile.TemporaryDirectory() as folder:
        session.start(config, Path(folder) / "run")
    kept = prepared[0].task.lower_blocks.kept
    print(f"{len(kept)} rows: {promised / 1e6:.2f} MB promised, {kept.nbytes / 1e6:.2f} MB held, {promised / kept.nbytes:.3f}")


if __name__ == "__main__":
    main()

"""A federation of tasks: six sets for instruction tuning, each the chats of one client.

FIBECFED_DATA=FOLDER python benchmarks/federation_of_tasks.py OUT [ROWS]     # at most ROWS (500) of a set
fibecfed run configs/tasks.toml data.path=OUT/train.parquet data.test_path=OUT/test.parquet

Of each set ROWS training rows and a quarter as many test rows, evenly spread; prompts with completions become conversations.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from fibecfed.data.instruction_sets import INSTRUCTION_SETS


def conversation(row: Mapping[str, Any]) -> list[dict[str, str]]:
    """A row of a set, its system message first."""
    turns = row.get("messages") or [
        {"role": "user", "content": row["prompt"]},
        {"role": "assistant", "content": row["completion"]},
    ]
    system = row.get("system")
    return [*([{"role": "system", "content": system}] if system else []), *({"role": t["role"], "content": t["content"]} for t in turns)]


def main() -> None:
    """See the module's text."""
    out, most = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 500
    for part, number in (("train", most), ("test", max(1, most // 4))):
        rows: list[dict[str, Any]] = []
        for name in INSTRUCTION_SETS:
            table = pq.read_table(Path(os.environ["FIBECFED_DATA"]) / name / f"{part}.parquet").to_pylist()
            taken = min(number, len(table))
            rows += [{"messages": conversation(table[place * len(table) // taken]), "client": name} for place in range(taken)]
        out.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows), out / f"{part}.parquet")
        print(f"{out / part}.parquet: {len(rows):,} conversations of {len(INSTRUCTION_SETS)} clients")


if __name__ == "__main__":
    main()

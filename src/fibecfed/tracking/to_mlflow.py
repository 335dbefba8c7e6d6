"""MLflow: the database RUN/mlflow/mlflow.db; `mlflow server --backend-store-uri sqlite:///RUN/mlflow/mlflow.db` shows it."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Mapping

from ..core.process import environment
from .contract import TrackedRun

with environment("MLFLOW_DISABLE_TELEMETRY", "true"):  # it is read at import
    from mlflow import MlflowClient  # pyright: ignore[reportMissingImports]
    from mlflow.entities import Metric, Param  # pyright: ignore[reportMissingImports]

EXPERIMENT = "fibecfed"
_EVERY_STEP = "step"
"""A metric that each step has: its history says which steps are there."""
_AT_ONCE = 1000
"""Metrics that MLflow takes in one call."""


class _Run:
    def __init__(self, run: TrackedRun) -> None:
        folder = run.folder.absolute() / "mlflow"
        folder.mkdir(exist_ok=True)
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)  # else it tells of each table that it makes
        self._client = MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")
        experiment = self._client.get_experiment_by_name(EXPERIMENT)
        if experiment is None:
            number = self._client.create_experiment(EXPERIMENT, artifact_location=(folder / "artifacts").as_uri())
        else:
            number = experiment.experiment_id
        found = self._client.search_runs([number], max_results=1)
        if found:
            self._id = found[0].info.run_id
            self.last = max((metric.step for metric in self._client.get_metric_history(self._id, _EVERY_STEP)), default=-1)
            self._client.update_run(self._id, status="RUNNING")
        else:
            self._id, self.last = self._client.create_run(number, run_name=run.name).info.run_id, -1
            params = [Param(key, str(value)[:500]) for key, value in run.settings.items()]
            self._client.log_batch(self._id, params=params)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        metrics = [Metric(_key(name), value, now, step) for name, value in values.items()]
        metrics.append(Metric(_EVERY_STEP, step, now, step))  # comes last: a step that was cut off is written again
        for first in range(0, len(metrics), _AT_ONCE):
            self._client.log_batch(self._id, metrics=metrics[first : first + _AT_ONCE])

    def close(self, *, finished: bool) -> None:
        self._client.set_terminated(self._id, "FINISHED" if finished else "KILLED")


def _key(name: str) -> str:
    """MLflow takes ASCII letters, digits and some signs; any other character as its code."""
    return re.sub(r"[^\w\-. /:]", lambda found: f"_{ord(found[0]):x}_", name, flags=re.ASCII)


def start(run: TrackedRun) -> _Run:
    """A tracker that writes to a database of its own."""
    return _Run(run)

"""MLflow: one run of MLflow for a run of genfl, with a metric for each figure of each series."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from genfl.errors import without_secrets
from genfl.storage import digest, write_json
from genfl.tracking.series import Ending, Kind, Row, Series

MLFLOW_STATE = "mlflow.json"
"""The file in a run's folder that names its run of MLflow."""

MOST_PENDING = 100_000
"""Metrics that wait for a server; the oldest of more are dropped, and sent when the run is started again."""

SENT_AT_ONCE, PARAMETERS = 1000, 100
"""The most metrics and parameters in a request, as MLflow allows."""

LONGEST = 500
"""The most characters of a parameter. Some versions of MLflow allow no more."""

BOUNDS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # genfl tries again by itself
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # which is for results
    "MLFLOW_DISABLE_TELEMETRY": "true",  # nothing is sent but to the server
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",  # genfl says by itself what fails, and once
}
"""Settings of MLflow while a run works, unless the environment has others."""


class Value(NamedTuple):
    """A value of a metric.

    Attributes:
        key: The name of the metric.
        value: Its value.
        step: Its round or epoch.
        time: When it was measured, in milliseconds since 1970.
    """

    key: str
    value: float
    step: int
    time: int


class MlflowRun:
    """Sends figures to MLflow. What MLflow has is asked for first, so nothing is sent twice.

    The first `flush` connects, and each later one if that failed. It can take minutes with a database.

    Args:
        folder: The run's folder.
        uri: The address of a server or a database; see `genfl.config.tracking.MlflowServer`.
        experiment: The name of the experiment.
        name: The name of the run.
        parameters: What MLflow shows as parameters.
        identity: The digest of all that the figures depend on. Another one is another run of MLflow.
    """

    def __init__(
        self,
        folder: Path,
        uri: str,
        experiment: str,
        name: str,
        parameters: Mapping[str, str],
        identity: str,
    ) -> None:
        self._set = [variable for variable in BOUNDS if variable not in os.environ]
        os.environ.update({variable: BOUNDS[variable] for variable in self._set})
        try:  # libraries are imported here, because threads that import and forks do not mix
            from mlflow.entities import Param
            from mlflow.store.db.db_types import DATABASE_ENGINES
            from mlflow.tracking import MlflowClient

            if uri.split(":")[0].split("+")[0] in DATABASE_ENGINES:
                import mlflow.store.tracking.sqlalchemy_store  # noqa: F401
        except Exception:
            self.close()
            raise
        self._connect: Callable[[], Any] = lambda: MlflowClient(tracking_uri=uri)
        self._client: Any = None
        self._file, self._experiment, self._name = folder / MLFLOW_STATE, experiment, name
        self._parameters = [Param(_key(key), value[:LONGEST]) for key, value in parameters.items()]
        whole = digest([identity, dict(parameters)])  # parameters of a run of MLflow cannot change
        self._about = {"uri": without_secrets(uri), "experiment": experiment, "digest": whole}
        self._run: str | None = None
        self._status: str | None = None
        self._continued = False
        self._known: dict[str, dict[int, float]] = {}
        self._pending: list[Value] = []

    def keep(self, kind: Kind, current: Collection[Series]) -> None:
        """Do nothing: other inputs make another run of MLflow."""

    def history(self, series: Series, rows: Sequence[Row]) -> None:
        """Queue rows; see `genfl.tracking.events.Tracker.history`."""
        for row in rows:
            self.row(series, row)

    def row(self, series: Series, row: Row) -> None:
        """Queue a row; see `genfl.tracking.events.Tracker.row`."""
        folder = f"{'pretrain/' if series.kind == 'epoch' else ''}{_key(series.name)}/seed-{series.seed}"
        for name, value in row.items():
            if name != series.kind:
                self._queue(f"{folder}/{_key(name)}", value, row[series.kind])

    def stage(self, name: str, state: Literal["started", "finished"], seconds: float | None) -> None:
        """Queue the time of a stage; see `genfl.tracking.events.Tracker.stage`."""
        self._queue(f"stage/{name}/seconds", seconds, 0)

    def finish(self, summary: Mapping[str, Any] | None, ending: Ending) -> None:
        """Queue the figures over the seeds, and the end; see `genfl.tracking.events.Tracker.finish`."""
        for name, method in (summary["methods"] if summary else {}).items():
            for figure in ("accuracy", "macro_f1", "calibration_error"):
                if values := method[figure]:
                    self._queue(f"{_key(name)}/{figure}_mean", values["mean"], 0)
                    self._queue(f"{_key(name)}/{figure}_std", values["std"], 0)
            for figure in ("rounds_to_target", "bytes_to_target", "total_bytes"):
                self._queue(f"{_key(name)}/{figure}", method[figure], 0)
        self._status = ending.upper()

    def flush(self) -> None:
        """Send what waits. After a failure, it still waits.

        Raises:
            mlflow.exceptions.MlflowException: The server cannot be reached, or refuses.
        """
        from mlflow.entities import Metric

        self._client = self._client or self._connect()
        run = self._run = self._run or self._begin()
        while self._parameters:
            self._client.log_batch(run, params=self._parameters[:PARAMETERS])
            del self._parameters[:PARAMETERS]
        for key in {value.key for value in self._pending} - self._known.keys():
            history = self._client.get_metric_history(run, key) if self._continued else []
            self._known[key] = {metric.step: metric.value for metric in history}
        while self._pending:
            batch = self._pending[:SENT_AT_ONCE]
            latest = {(value.key, value.step): value for value in batch}.values()  # a row may wait twice
            new = [value for value in latest if self._known[value.key].get(value.step) != value.value]
            if new:
                metrics = [Metric(value.key, value.value, value.time, value.step) for value in new]
                self._client.log_batch(run, metrics=metrics)
            for value in new:
                self._known[value.key][value.step] = value.value
            del self._pending[: len(batch)]
        if self._status:
            self._client.set_terminated(run, self._status)
            self._status = None

    def close(self) -> None:
        """Put back the settings of MLflow."""
        for variable in self._set:
            os.environ.pop(variable, None)

    def _begin(self) -> str:
        """Return the id of the run of MLflow: that of an earlier start, or a new one."""
        stored = self._stored()
        if stored and self._exists(stored):
            self._continued = True
            self._client.update_run(stored, status="RUNNING")
            write_json(self._file, {**self._about, "run_id": stored})
            return stored
        experiment = self._client.get_experiment_by_name(self._experiment)
        number = experiment.experiment_id if experiment else self._client.create_experiment(self._experiment)
        run: str = self._client.create_run(number, run_name=self._name).info.run_id
        write_json(self._file, {**self._about, "run_id": run})
        return run

    def _stored(self) -> str | None:
        """Return the run of an earlier start of the same figures; None if there is none."""
        try:
            stored = json.loads(self._file.read_text("utf-8"))
            stored["uri"] = without_secrets(stored["uri"])  # older versions kept all of it
            return str(stored["run_id"]) if {**stored, **self._about} == stored else None
        except (OSError, ValueError, LookupError, TypeError):
            return None

    def _exists(self, run: str) -> bool:
        from mlflow.exceptions import MlflowException

        try:
            return bool(self._client.get_run(run).info.lifecycle_stage == "active")
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return False
            raise

    def _queue(self, key: str, value: Any, step: int) -> None:
        if isinstance(value, int | float):
            self._pending.append(Value(key, float(value), step, int(1000 * time.time())))
            del self._pending[:-MOST_PENDING]


def _key(name: str) -> str:
    """Return a name with the letters that MLflow allows. Different names stay different."""
    allowed = re.sub(r"[^\w.\- :]", "_", name)
    return allowed[:100] if allowed == name and len(name) <= 100 else f"{allowed[:90]}-{digest(name)[:8]}"

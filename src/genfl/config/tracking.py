"""The section of trackers: other programs that show a run's figures while it works."""

from __future__ import annotations

from urllib.parse import urlsplit

from pydantic import Field

from genfl.config.section import Section
from genfl.errors import without_secrets


class MlflowServer(Section):
    """A server of MLflow, or a database."""

    uri: str | None = Field(
        None,
        min_length=1,
        description="The address, as in http://127.0.0.1:5000 or sqlite:////data/mlflow.db. If not set, the"
        " environment variable MLFLOW_TRACKING_URI. Keys and passwords belong in MLflow's variables.",
    )
    experiment: str | None = Field(
        None,
        min_length=1,
        description="The name of the experiment. It is created if absent. If not set, the environment"
        " variable MLFLOW_EXPERIMENT_NAME, or else genfl.",
    )

    def problem(self) -> str | None:
        """Return what is wrong with it: field and fix. None if it can be used."""
        uri = self.uri or ""
        if without_secrets(uri) != uri:
            return (
                "uri: it holds a user name, a password or a query, which would be written to config.yaml;"
                " leave it out, and set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or the whole"
                " address as MLFLOW_TRACKING_URI, in the environment"
            )
        try:
            urlsplit(uri)
        except ValueError as error:
            return f"uri: {uri!r} is no address ({error}); write it as in http://127.0.0.1:5000"
        return None


class Track(Section):
    """Trackers. They get figures and names of methods, and no data. Without this section, nothing is sent."""

    tensorboard: bool = Field(
        False, description="Whether to write files for TensorBoard to tensorboard/ in the run's folder."
    )
    mlflow: MlflowServer | None = Field(
        None, description="Where MLflow gets the figures. If not set, nowhere."
    )

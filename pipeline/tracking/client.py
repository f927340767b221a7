"""The way to MLflow: which server, which experiment, short timeouts, no chatter.

mlflow takes seconds to import, so this folder alone imports it, and inside functions.
Deliberately knows nothing of runs and models. The fluent API's global state is not touched.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import UserError
from pipeline.provenance import without_password

if TYPE_CHECKING:
    from mlflow import MlflowClient

# Set where the user has set nothing. MLflow's defaults block for four minutes on a server that is down. No
# blind retries: of a POST that is answered late they make two runs; the mirror tries again by itself.
ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


def tracking_uri(runs: Path) -> str:
    """MLFLOW_TRACKING_URI, or an SQLite file beside the runs."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{runs.resolve() / 'mlflow.db'}"


def connect(uri: str) -> "MlflowClient":
    """A client for `uri`. Sends nothing to a server; opens (and at first use makes) an SQLite file."""
    _prepare()
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri, registry_uri=os.environ.get("MLFLOW_REGISTRY_URI") or uri)


def experiment_id(client: "MlflowClient", runs: Path) -> str:
    """The experiment MLFLOW_EXPERIMENT_NAME, "graticule" by default, made if there is none.

    Without a server the artifacts go beside the runs, not into whatever the current folder is.
    """
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "graticule"
    if found := client.get_experiment_by_name(name):
        return found.experiment_id
    local = client.tracking_uri.startswith("sqlite:")
    return client.create_experiment(name, (runs.resolve() / "mlartifacts").as_uri() if local else None)


def one_line(error: BaseException) -> str:
    """An exception for an event or a message: type and first line, not its essay."""
    lines = [line for line in str(error).strip().split("\n") if not line.startswith("(raised as a result of")]
    text = lines[0] if lines else ""
    return f"{type(error).__name__}: {without_password(text)}"[:300]


@contextmanager
def user_errors(uri: str) -> Iterator[None]:
    """A store that does not answer or refuses, as a UserError in one line."""
    _prepare()
    from mlflow.exceptions import MlflowException
    from requests import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, RequestException, SQLAlchemyError) as e:
        shown = without_password(uri)
        raise UserError(f"MLFLOW_TRACKING_URI={shown!r} fails ({one_line(e)}); repeat when it is up") from e


def _prepare() -> None:
    """Called before each import of mlflow; the first one counts."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    logging.getLogger("mlflow").setLevel(os.environ["MLFLOW_LOGGING_LEVEL"].upper())
    for name in ("alembic", "urllib3.connectionpool"):
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # a page for each error, raised besides

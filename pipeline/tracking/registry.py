"""Checkpoints as registered models: pyfunc from code, safetensors and JSON, no pickle anywhere.

The package is stored with the weights, so that a model still loads when the repository has moved on.
Deliberately knows no network: `served.py` and `pipeline.synthesis` turn files into images.
"""

import hashlib
import re
import shutil
import tempfile
import warnings
from importlib.metadata import version as installed
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.config import nearest
from pipeline.errors import UserError
from pipeline.tracking.client import connect, tracking_uri, user_errors
from pipeline.tracking.description import RUN_TAG
from pipeline.tracking.mirror import sync
from pipeline.tracking.upload import cursor_of

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel
    from mlflow.models import ModelSignature

SHA_TAG = "graticule.sha256"
NIMG_TAG = "graticule.nimg"
REQUIREMENTS = ("torch", "safetensors", "numpy", "pillow", "pydantic", "pyyaml", "jaxtyping")
PACKAGE = Path(__file__).resolve().parents[1]


def register(folder: Path, *, name: str, alias: str | None, checkpoint: Path) -> str:
    """Register a checkpoint's G_ema as `name`, point `alias` at it and return the version.

    The same weights under the same name are registered once; only the alias moves.
    """
    if not re.fullmatch(r"[\w.-]+", name, re.ASCII):
        raise UserError(f"name={name!r}: letters, digits, '.', '_' and '-' are allowed; use for example mspie")
    if alias is not None and not re.fullmatch(r"(?!v\d+$|latest$)[\w-]+", alias, re.ASCII):
        raise UserError(f"alias={alias!r}: letters, digits, '_' and '-', not v<number> or latest; use for example best")
    weights = checkpoint / "G_ema.safetensors"
    if not weights.exists():
        raise UserError(f"checkpoint={str(checkpoint)!r} has no G_ema.safetensors; see {folder / 'checkpoints'}")
    sync(folder)
    uri = tracking_uri(folder.resolve().parent)
    client = connect(uri)
    with user_errors(uri):
        version = version_of(client, folder, name, weights)
        if alias:
            client.set_registered_model_alias(name, alias, version)
    return version


def version_of(client: "MlflowClient", folder: Path, name: str, weights: Path) -> str:
    """The version of model `name` that these weights of a run are; made where there is none. The run is in MLflow."""
    sha256 = sha256_of(weights)
    found = [v for v in client.search_model_versions(f"name='{name}'") if v.tags.get(SHA_TAG) == sha256]
    return str(found[0].version) if found else _publish(client, folder, name, weights, sha256)


def fetch(model_uri: str, runs: Path) -> Path:
    """`models:/NAME@ALIAS` or `models:/NAME/VERSION` as a folder with G_ema.safetensors and config.json.

    A version never changes, so it is downloaded once, to `<runs>/models/NAME/VERSION-<hash8>`.
    """
    name, alias, number = address_of(model_uri)
    uri = tracking_uri(runs)
    client = connect(uri)
    with user_errors(uri):
        version = resolve(client, name, alias, number)
        sha256 = client.get_model_version(name, version).tags.get(SHA_TAG)
        if not sha256:
            raise UserError(f"model={model_uri!r} was not made by `graticule register` (no tag {SHA_TAG})")
        folder = runs / "models" / name / f"{version}-{sha256[:8]}"
        if not folder.exists():
            _download(client, name, version, folder, sha256)
    return folder


def _publish(client: "MlflowClient", folder: Path, name: str, weights: Path, sha256: str) -> str:
    """A new version of `name`, logged in the run's own MLflow run."""
    from mlflow.entities import LoggedModelOutput
    from mlflow.exceptions import MlflowException

    cursor = cursor_of(folder)
    assert cursor is not None  # sync has just written it
    nimg = int(weights.parent.name)
    tags = {SHA_TAG: sha256, NIMG_TAG: str(nimg), RUN_TAG: folder.resolve().name}
    experiment = client.get_run(cursor.run_id).info.experiment_id
    logged = client.create_logged_model(experiment, name=name, source_run_id=cursor.run_id, tags=tags)
    with tempfile.TemporaryDirectory() as temp:
        _save(Path(temp) / "model", folder / "config.json", weights, logged, cursor.run_id)
        client.log_model_artifacts(logged.model_id, str(Path(temp) / "model"))
    client.finalize_logged_model(logged.model_id, "READY")
    client.log_outputs(cursor.run_id, [LoggedModelOutput(logged.model_id, step=nimg)])
    try:
        client.create_registered_model(name)
    except MlflowException as e:
        if e.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    made = client.create_model_version(
        name,
        logged.artifact_location,  # `models:/ID` would be looked up in the global store, not in this one
        run_id=cursor.run_id,
        tags=tags,
        model_id=logged.model_id,
    )
    return str(made.version)


def _save(path: Path, config: Path, weights: Path, logged: "LoggedModel", run_id: str) -> None:
    """A model folder: MLmodel, code/pipeline, served.py, artifacts/{G_ema.safetensors,config.json}."""
    package = path.parent / PACKAGE.name
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__", "*.pyc", ".*"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow's, about type hints of its own
        import mlflow.pyfunc
        from mlflow.models import Model

        id_, location = logged.model_id, logged.artifact_location
        mlflow.pyfunc.save_model(
            path,
            mlflow_model=Model(artifact_path=location, run_id=run_id, model_uuid=id_, model_id=id_),
            python_model=str(PACKAGE / "tracking" / "served.py"),
            code_paths=[str(package)],
            artifacts={"weights": str(weights), "config": str(config)},
            signature=_signature(),
            input_example=(np.arange(2, dtype=np.int64), {"size": "", "truncation_psi": 1.0, "label": -1}),
            pip_requirements=[f"{r}=={installed(r).split('+')[0]}" for r in REQUIREMENTS],
        )
    for cache in list(path.rglob("__pycache__")):  # left by MLflow, which imports what it has saved
        shutil.rmtree(cache)


def _signature() -> "ModelSignature":
    from mlflow.models import ModelSignature
    from mlflow.types import DataType, ParamSchema, ParamSpec, Schema, TensorSpec

    params = [
        ParamSpec("size", DataType.string, ""),
        ParamSpec("truncation_psi", DataType.double, 1.0),
        ParamSpec("label", DataType.long, -1),
    ]
    return ModelSignature(
        inputs=Schema([TensorSpec(np.dtype("int64"), (-1,))]),
        outputs=Schema([TensorSpec(np.dtype("uint8"), (-1, -1, -1, 3))]),
        params=ParamSchema(params),
    )


def address_of(model_uri: str) -> tuple[str, str | None, str | None]:
    """Name, alias and version of an address, which has one of the two; UserError if it is none."""
    match = re.fullmatch(r"models:/([^/:@]+)(?:@([^/:@]+)|/(\d+))", model_uri)
    if not match:
        raise UserError(f"model={model_uri!r} is not a model address; write models:/NAME@ALIAS or models:/NAME/VERSION")
    name, alias, number = match.groups()
    return name, alias, number


def resolve(client: "MlflowClient", name: str, alias: str | None, number: str | None) -> str:
    """The version meant, or a UserError that names what there is."""
    from mlflow.exceptions import MlflowException

    try:
        model = client.get_registered_model(name)
    except MlflowException as e:
        if e.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        known = [m.name for m in client.search_registered_models()]
        there = nearest(name, known) if known else "none is registered yet; see `graticule register`"
        raise UserError(f"model={name!r} is not a registered model; {there}") from e
    aliases = {a: str(v) for a, v in model.aliases.items()}
    versions = sorted(int(v.version) for v in client.search_model_versions(f"name='{name}'"))
    if alias in aliases:
        return aliases[alias]
    if number and int(number) in versions:
        return number
    wanted = f"alias={alias!r}" if alias else f"version={number}"
    listed = ", ".join(f"@{a} (version {v})" for a, v in sorted(aliases.items())) or "no alias"
    numbers = ", ".join(map(str, versions)) or "none"
    raise UserError(f"{wanted} of model {name!r} does not exist; known: {listed}; versions {numbers}")


def _download(client: "MlflowClient", name: str, version: str, folder: Path, sha256: str) -> None:
    """Not by `models:/`, which MLflow looks up in the global store whatever client asks."""
    from mlflow.artifacts import download_artifacts

    source = client.get_model_version_download_uri(name, version) + "/artifacts"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{version}.") as temp:
        got = Path(download_artifacts(source, dst_path=temp, tracking_uri=client.tracking_uri))
        if sha256_of(got / "G_ema.safetensors") != sha256:
            raise UserError(f"model={name!r} version {version}: weights are not those registered; register anew")
        got.rename(folder)


def sha256_of(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()

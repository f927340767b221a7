"""The registered model: seeds in, images out. MLflow stores this file and runs it; nothing is pickled.

Imports mlflow at the top because MLflow alone executes it; no module of the project imports it.
Deliberately knows nothing of families: weights and configuration come from files, the networks from the code
that was registered with them.
"""

from pathlib import Path
from typing import Any

import numpy as np
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel


class Served(PythonModel):
    """int64 seeds [n] -> uint8 images [n, h, w, 3]; equal seed, label, size and truncation, equal image."""

    def load_context(self, context: Any) -> None:
        from pipeline.synthesis.sample import load_generator

        self.G = load_generator(Path(context.artifacts["config"]), Path(context.artifacts["weights"]))

    def predict(self, context: Any, model_input: np.ndarray, params: dict[str, Any] | None = None) -> np.ndarray:
        """`params`: size "48" or "48x64" (height x width; "" = the native size), truncation_psi, label.

        One label for all; -1: the classes in turn.
        """
        from pipeline.synthesis.sample import generate, parse_size

        given = params or {}
        seeds = [int(seed) for seed in np.asarray(model_input).reshape(-1)]
        size = parse_size(given.get("size", ""))
        label = int(given.get("label", -1))
        labels = None if label < 0 else [label] * len(seeds)
        return generate(self.G, seeds, size, float(given.get("truncation_psi", 1.0)), labels=labels)


set_model(Served())

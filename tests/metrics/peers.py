"""Numbers of public packages on the features of `sets`, which tests/metrics/test_peers.py compares ours with.

    pip install --no-deps --target DIR prdc==0.2 pytorch-fid==0.3.0 clean-fid==0.1.35 torch-fidelity==0.4.0
    PYTHONPATH=.:DIR python tests/metrics/peers.py > tests/metrics/peers.json

Beside the project's own packages they want scikit-learn and tqdm; an empty module stands for torchvision, as only their
arithmetic is called. `peers.py fid` prints those of FID alone: with scipy==1.11.4 and numpy==1.26.4 in a folder before
DIR it gave tests/metrics/peers_scipy_1_11.json.
"""

import contextlib
import json
import sys
import warnings
from importlib.metadata import version
from unittest.mock import MagicMock

import numpy as np
import torch


def sets() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Name -> (real, fake) features, skewed and correlated as a detector's; numpy promises this stream for good."""
    random = np.random.RandomState(8)
    mix = random.randn(24, 24)

    def draw(n: int, scale: float, shift: float) -> np.ndarray:
        return np.abs(random.randn(n, 24) @ mix * scale + shift) * 0.3

    many = draw(300, 1.0, 1.0), draw(260, 0.9, 3.0)
    few = draw(20, 1.0, 1.0), draw(24, 0.9, 3.0)
    dead = draw(100, 1.0, 1.0), draw(100, 0.9, 3.0)
    dead[0][:, 3] = dead[1][:, 9] = 0  # features that one set has and the other has not
    return {"many": many, "equal": (many[0][:260], many[1]), "few": few, "dead": dead}


def fids(real: np.ndarray, fake: np.ndarray) -> dict[str, float]:
    from cleanfid.fid import frechet_distance
    from pytorch_fid.fid_score import calculate_frechet_distance
    from torch_fidelity.metric_fid import fid_statistics_to_metric

    stats = [(x.mean(axis=0), np.cov(x, rowvar=False)) for x in (real, fake)]
    named = [{"mu": mean, "sigma": cov} for mean, cov in stats]
    return {
        "pytorch-fid": float(calculate_frechet_distance(*stats[0], *stats[1])),
        "clean-fid": float(frechet_distance(*stats[0], *stats[1])),
        "torch-fidelity": fid_statistics_to_metric(*named, False)["frechet_inception_distance"],
    }


def kids(real: np.ndarray, fake: np.ndarray) -> dict[str, float]:
    """One subset of all images, so that nothing is drawn."""
    from cleanfid.fid import kernel_distance
    from torch_fidelity.metric_kid import kid_features_to_metric

    n = len(real)
    fidelity = kid_features_to_metric(torch.tensor(fake), torch.tensor(real), kid_subsets=1, kid_subset_size=n)
    return {
        "clean-fid": kernel_distance(real, fake, num_subsets=1, max_subset_size=n),
        "torch-fidelity": fidelity["kernel_inception_distance_mean"],
    }


def manifolds(real: np.ndarray, fake: np.ndarray) -> dict[str, dict[str, float]]:
    from prdc import compute_prdc
    from torch_fidelity.metric_prc import prc_features_to_metric

    fidelity = prc_features_to_metric(torch.tensor(fake), torch.tensor(real), prc_neighborhood=3)
    return {
        **{f"prdc k={k}": {a: float(b) for a, b in compute_prdc(real, fake, k).items()} for k in (3, 5)},
        "torch-fidelity k=3": {name: fidelity[name] for name in ("precision", "recall")},
    }


def main() -> None:
    for absent in ("", ".datasets", ".models", ".transforms", ".transforms.functional"):
        sys.modules.setdefault(f"torchvision{absent}", MagicMock(__spec__=None))
    warnings.simplefilter("ignore")
    found: dict[str, dict] = {}
    with contextlib.redirect_stdout(sys.stderr):
        for name in ("many", "few", "dead"):
            found[name] = {"fid": fids(*sets()[name])}
        if sys.argv[1:] != ["fid"]:
            for name in ("many", "few"):
                found[name] |= manifolds(*sets()[name])
            found["equal"] = {"kid": kids(*sets()["equal"])}
        names = ("prdc", "pytorch-fid", "clean-fid", "torch-fidelity", "numpy", "scipy")
        found["versions"] = {package: version(package) for package in names}
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()

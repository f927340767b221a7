"""A run folder without training: a small generator whose noise and biases are not zero, as training leaves them."""

from pathlib import Path

import torch

from pipeline.config import fingerprint
from pipeline.plan import ExecConfig, override_all
from pipeline.recipes import find
from pipeline.training import checkpoint
from pipeline.training.checkpoint import Snapshot, State
from tests.runs import CIPS, MSPIE

NIMG = 48
SMALL = {  # 16 px, a few channels
    MSPIE: ["family.G.num_upblocks=2", "family.G.channel_max=8", "family.G.w_dim=16", "family.D.resolution_px=16"],
    CIPS: ["family.G.size_px=16", "family.G.width=8", "family.G.w_dim=16", "family.D.resolution_px=16"],
}


def write_run(folder: Path, recipe: str) -> Path:
    """config.json and one checkpoint that holds G_ema alone."""
    run, _ = override_all(find(recipe).make().tiny(), ExecConfig(), SMALL[recipe])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(run.to_json())
    torch.manual_seed(0)
    G = run.family.build(0).nets["G"]
    for name, p in G.named_parameters():
        if name.endswith(("noise_strength", "bias")) and "affine" not in name and "mapping" not in name:
            torch.nn.init.normal_(p, std=0.3)
    nets = {"G_ema": {k: v.detach().contiguous() for k, v in G.state_dict().items()}}
    checkpoint.save(folder / "checkpoints", Snapshot(State(fingerprint=fingerprint(run), nimg=NIMG), nets, {}))
    return folder

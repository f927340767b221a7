"""Small real runs for tests: bundled photographs, the real command line or the same code in this process."""

import contextlib
import os
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import torch
from safetensors.torch import load as load_safetensors

MSPIE, CIPS = "mspie.table5_f", "cips.table3_main"
SMALL = {  # a few thousand parameters, so that twenty iterations take seconds
    MSPIE: ["family.G.channel_max=8", "family.D.channel_max=8", "batch_size=12"],
    CIPS: ["family.G.width=8", "family.D.channel_max=8", "batch_size=16"],
}
FEW_PIXELS = {  # for what needs neither sizes nor photographs
    MSPIE: ["family.G.num_upblocks=1", "family.D.resolution_px=8"],
    CIPS: ["family.G.size_px=8", "family.D.resolution_px=8"],
}
SETTINGS = ["total_kimg=0.24", "exec.status_kimg=0.05", "exec.sample_kimg=100", "exec.checkpoint_kimg=0.06"]
SETTINGS += ["exec.track=false", "exec.workers=0"]
HALF_A_BATCH = {MSPIE: "exec.batch_gpu=6", CIPS: "exec.batch_gpu=8"}  # in one forward: what each of two ranks has
SIZE_PX = {MSPIE: 64, CIPS: 32}
ENV = {**os.environ, "OMP_NUM_THREADS": "1"}
FORKED = Path(__file__).with_name("forked_ranks.py")
GRATICULE = str(Path(sys.executable).with_name("graticule"))


def prepare_photos(out: Path, size_px: int) -> Path:
    """A prepared set of the bundled photographs."""
    from dataprep.sources import open_source
    from dataprep.transform import Transform
    from dataprep.writer import prepare

    prepare(open_source("photos"), out, Transform(size_px=size_px))
    return out


def free_port() -> str:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return str(one.getsockname()[1])


class Runner:
    """One small recipe below one folder of runs."""

    def __init__(self, data: Path, runs: Path, recipe: str):
        self.data, self.runs, self.recipe, self.settings = data, runs, recipe, SETTINGS

    def command(self, *sets: str, ranks: int = 1) -> list[str]:
        options = [part for s in (*SMALL[self.recipe], *self.settings, *sets) for part in ("--set", s)]
        own = ["train", self.recipe, "--tiny", "--data", str(self.data), "--runs", str(self.runs), *options]
        if ranks == 1:
            return [GRATICULE, *own]
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
        return [*launch, GRATICULE, *own]

    def train(self, *sets: str, ranks: int = 1) -> Path:
        """In processes of its own, to the end; several ranks are forked from one, which saves imports."""
        command, env = self.command(*sets), ENV
        if ranks > 1:
            command = [sys.executable, str(FORKED), *command[1:]]
            env = {**ENV, "WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
            env["PYTHONPATH"] = str(FORKED.parents[1])
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stdout + done.stderr
        return self.folder()

    def train_here(self, *sets: str) -> Path:
        """In this process, which saves the imports."""
        from pipeline.run import train_folder

        folder = self.plan(*sets)
        assert train_folder(folder, should_stop=lambda: False) == "done"
        return folder

    def plan(self, *sets: str) -> Path:
        from pipeline.plan import ExecConfig, override_all
        from pipeline.recipes import find
        from pipeline.run import plan_run

        run, exec_ = override_all(
            find(self.recipe).make().tiny(), ExecConfig(), [*SMALL[self.recipe], *self.settings, *sets]
        )
        return plan_run(run, exec_, self.data, self.runs, list(sets))

    def start(self, *sets: str, ranks: int = 1) -> subprocess.Popen:
        """In the background; see `kill`."""
        return subprocess.Popen(
            self.command(*sets, ranks=ranks),
            env=ENV,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def folder(self) -> Path:
        (folder,) = self.runs.glob(f"{self.recipe}-*")
        return folder


def kill(process: subprocess.Popen) -> None:
    """SIGKILL it and its ranks, each of which torchrun starts in a session of its own; they are gone on return."""
    family = psutil.Process(process.pid)
    everyone = [family, *family.children(recursive=True)]
    for one in everyone:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    process.wait()
    psutil.wait_procs(everyone, timeout=60)


def final_state(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor and number of the newest checkpoint, by name."""
    newest = max(folder.glob("checkpoints/[0-9]*"))
    state = {
        f"{p.stem}.{k}": v for p in newest.glob("*.safetensors") for k, v in load_safetensors(p.read_bytes()).items()
    }
    for path in newest.glob("opt_*.pt"):
        for i, entry in torch.load(path, weights_only=True)["state"].items():
            state |= {f"{path.stem}.{i}.{k}": torch.as_tensor(v) for k, v in entry.items()}
    return state


def assert_bitwise_equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    different = [name for name in a if not torch.equal(a[name], b[name])]
    assert not different, f"{len(different)} of {len(a)} tensors differ, e.g. {different[:3]}"

"""Every test: CPU (but for make test-gpu), one torch thread, fixed seed, warnings as errors, shapes checked."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
if "GRATICULE_TEST_GPU" not in os.environ:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

import pytest
import torch


@pytest.fixture(autouse=True)
def _fixed_seed():
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """size_px -> a prepared set of the bundled photographs, made once a session."""
    from tests.runs import prepare_photos

    made = {}

    def get(size_px: int):
        if size_px not in made:
            made[size_px] = prepare_photos(tmp_path_factory.mktemp("photos") / str(size_px), size_px)
        return made[size_px]

    return get


@pytest.fixture
def runner(photos, tmp_path):
    """recipe -> a Runner in a folder of its own."""
    from tests.runs import SIZE_PX, Runner

    count = iter(range(100))
    return lambda recipe: Runner(photos(SIZE_PX[recipe]), tmp_path / f"runs{next(count)}", recipe)


@pytest.fixture
def unchecked() -> Iterator[None]:
    """No shape checks, a third of the time of a small training; for what other tests have trained with them."""
    from jaxtyping import config

    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


@pytest.fixture
def half_batch_runner(runner, unchecked):
    """The same with half a batch in one forward and without shape checks, which is faster; for one rank or two."""
    from tests.runs import HALF_A_BATCH, SETTINGS

    def get(recipe: str):
        run = runner(recipe)
        run.settings = [*SETTINGS, HALF_A_BATCH[recipe]]
        return run

    return get


@pytest.fixture
def disk(tmp_path) -> Iterator[Callable[[str], Path]]:
    """disk('size=64k'): a tmpfs with these options; called again they change, and its files stay."""
    if os.geteuid() != 0:
        pytest.skip("mounting a tmpfs needs root")
    place, mounted = tmp_path / "disk", []
    place.mkdir()

    def mount(options: str) -> Path:
        words = ["-o", f"remount,{options}"] if mounted else ["-t", "tmpfs", "-o", options, "tmpfs"]
        done = subprocess.run(["mount", *words, place], capture_output=True, text=True)
        if done.returncode and not mounted:
            pytest.skip(f"no tmpfs here: {done.stderr.strip()}")
        assert done.returncode == 0, done.stderr
        mounted.append(options)
        return place

    yield mount
    if mounted:
        subprocess.run(["umount", place], check=True)


@pytest.fixture
def graticule(monkeypatch, capsys):
    """Run the command line in this process: (exit code, stdout, stderr)."""

    from pipeline import cli

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["graticule", *map(str, words)])
        code = 0
        try:
            cli.main()
        except SystemExit as e:
            code = int(e.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return run

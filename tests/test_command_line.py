"""The command line as users meet it: its verbs, and one clear line with exit code 2 for each wrong word."""

import os
import shutil
import subprocess
import sys

import pytest
from PIL import Image

from pipeline import cli
from tests.runs import CIPS, ENV, GRATICULE, MSPIE

VERBS = {
    *("prep", "verify", "inspect", "beton", "recipes", "show", "train", "submit", "status", "logs", "cancel"),
    *("sample", "interpolate", "edit", "register", "sync", "doctor", "demo", "import_"),
    *("reproduce", "report", "evaluate"),
}
GROUPS = {
    "probe": {"padding", "stationarity"},
    "look": {"dense", "foveated", "panorama", "mix", "zeroed", "spectra", "codes", "neighbours"}
    | {"reconstructions", "depth", "best"},
}


def test_the_verbs_are_frozen():
    assert {c.callback.__name__ for c in cli.app.registered_commands} == VERBS
    groups = {g.name: g.typer_instance.registered_commands for g in cli.app.registered_groups}
    assert {name: {c.callback.__name__ for c in verbs} for name, verbs in groups.items()} == GROUPS


def test_help_does_not_import_the_heavy_libraries():
    code = (
        "import sys; sys.argv = ['graticule', '--help']\nfrom pipeline import cli\ntry: cli.main()\n"
        "except SystemExit: pass\nheavy = {'torch', 'mlflow', 'submitit', 'accelerate', 'matplotlib'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "[]", done.stdout + done.stderr


def test_show_prints_the_published_counts_and_costs(graticule):
    code, out, _ = graticule("show", MSPIE)
    assert code == 0
    assert "# G: 30,026,146 parameters; multiply-adds an image: 45.13 G at 256x256" in out
    assert "# D: kept for backward, an image in fp32: 0.302 GiB at 256x256" in out
    assert "# D: 25,718,401 parameters" in out
    assert "45,911,076" in graticule("show", CIPS)[1]


def test_recipes_lists_every_recipe(graticule):
    code, out, _ = graticule("recipes")
    assert code == 0
    assert "mspie.table5_f" in out
    assert "cips.table3_main" in out


def test_status_of_no_runs_is_an_empty_table(graticule, tmp_path):
    assert graticule("status", "--runs", tmp_path)[0] == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["show", "mspie.table5_ff"], "did you mean 'mspie.table5_f'?"),
        (["show", MSPIE, "--set", "family.r1_gama=1"], "did you mean 'r1_gamma'?"),
        (["show", MSPIE, "--set", "batch_size=many"], "batch_size='many': input should be a valid integer"),
        (["show", MSPIE, "--set", "batch_size"], "expected key=value"),
        (["show", MSPIE, "--set", "batch_size=25"], "mbstd_group=3"),
        (["show", MSPIE, "--set", "exec.gpus=7"], "use one of 1, 2, 4, 8 ranks"),
        (["show", MSPIE, "--set", "exec.batch_gpu=5"], "use one of 3, 6, 12, 24"),
        (["show", MSPIE, "--set", "exec.keep=1"], "exec.keep"),
        (["show", MSPIE, "--nonsense"], "No such option"),
        (["show"], "Missing argument"),
        (["prep", "fotos", "--out", "{tmp}/x"], "did you mean 'photos'?"),
        (["prep", "photos", "--out", "{tmp}/x", "--crop", "middle"], "crop='middle'"),
        (["prep", "folder", "{tmp}/absent", "--out", "{tmp}/x"], "absent"),
        (["prep", "folder", "{tmp}/empty", "--out", "{tmp}/x"], "empty"),
        (["prep", "folder", "{tmp}/corrupt", "--out", "{tmp}/x", "--size", "8"], "broken.png"),
        (["prep", "photos", "--out", "{tmp}/x", "--size", "64,a"], "size='64,a': expected pixels"),
        (["prep", "photos", "--out", "{tmp}/x", "--size", "64,064"], "size='64,064'"),
        (["prep", "photos", "--out", "{tmp}/x", "--size", "0"], "size_px=0"),
        (["prep", "photos", "--out", "{tmp}/x", "--filter", "lanczos3"], "did you mean 'lanczos'?"),
        (["prep", "photos", "--out", "{tmp}/x", "--icc", "p3"], "icc='p3'"),
        (["prep", "photos", "--out", "{tmp}/x", "--encoding", "gif"], "encoding='gif'"),
        (["prep", "photos", "--out", "{tmp}/x", "--quality", "90"], "quality=90: png"),
        (["prep", "photos", "--out", "{tmp}/x", "--split", "train"], "split='train'"),
        (["prep", "photos", "--out", "{tmp}/x", "--on-error", "ignore"], "on-error='ignore': expected stop or skip"),
        (["prep", "photos", "--out", "{tmp}/x", "--jobs", "2"], "jobs=2: has no effect without --cluster"),
        (["prep", "photos", "--out", "{tmp}/x", "--cluster", "local", "--workers", "2"], "workers=2: has no effect"),
        (["prep", "photos", "--out", "{tmp}/x", "--cluster", "labb"], "did you mean 'lab'?"),
        (["verify", "{tmp}/absent"], "no such folder"),
        (["verify", "{tmp}/file"], "is a file"),
        (["inspect", "{tmp}/absent"], "no such folder"),
        (["inspect", "{tmp}/empty"], "is empty"),
        (["inspect", "{tmp}/stale"], "does not match"),
        (["inspect", "{data}", "--grid", "{tmp}/file/x.png"], "grid="),
        (["beton", "{tmp}/empty"], "is empty"),
        (["train", CIPS, "--data", "{tmp}/absent"], "no such folder"),
        (["train", CIPS, "--data", "{tmp}/empty"], "is empty"),
        (["train", CIPS, "--data", "{data}"], "holds 32 px images, the recipe wants data.size_px=256"),
        (["train", CIPS, "--tiny", "--data", "{tmp}/stale"], "does not match"),
        (["train", CIPS, "--tiny", "--data", "{data}", "--runs", "{tmp}/file/runs"], "cannot be written"),
        (["submit", CIPS, "--tiny", "--data", "{data}", "--cluster", "labb"], "did you mean 'lab'?"),
        (["submit", CIPS, "--tiny", "--data", "{data}", "--cluster", "lab"], "sbatch is not on PATH"),
        (["submit", CIPS, "--tiny", "--data", "{data}", "--nodes", "2"], "this one machine"),
        (["submit", CIPS, "--tiny", "--data", "{data}", "--gpus", "2", "--set", "exec.gpus=4"], "both given"),
        (["submit", CIPS, "--tiny", "--data", "{data}", "--seeds", "0-2", "--set", "seed=1"], "both given"),
        (["submit", CIPS, "--tiny", "--data", "{data}", "--seeds", "a"], "seeds='a'"),
        (["submit", CIPS, "--tiny", "--data", "{data}", "--parallel", "2"], "no effect without several --seeds"),
        (["submit", CIPS, "--tiny", "--data", "{data}", "--seeds", "4,4", "--parallel", "2"], "no effect without"),
        (["submit", CIPS, "--tiny", "--data", "{data}", "--seeds", "0-2", "--parallel", "2"], "this one machine"),
        (["train", CIPS, "--tiny", "--data", "{data}", "--set", "recipe=a/b"], "recipe='a/b'"),
        (["demo", "--out", "{tmp}/demo", "--set", "exec.nodes=2"], "this one machine"),
        (["status", "--runs", "{tmp}/absent"], "no such folder"),
        (["reproduce", "geopos.con"], "did you mean 'geopos.com'?"),
        (["reproduce", "geopos.vae"], "table='geopos.vae' needs --data DIR"),
        (["reproduce", "geopos.vae", "--data", "{data}"], "needs --validation DIR"),
        (["reproduce", "geopos.vae", "--data", "{data}", "--validation", "{tmp}/absent"], "absent"),
        (["reproduce", "geopos.com", "--data", "{data}"], "makes its own data sets; leave --data out"),
        (["reproduce", "geopos.com", "--parallel", "2"], "this one machine"),
        (["reproduce", "geopos.com", "--cluster", "lab"], "sbatch is not on PATH"),
        (["reproduce", "geopos.com", "--seeds", "a"], "seeds='a'"),
        (["report", "geopos.com"], "start with graticule reproduce geopos.com"),
        (["report", "geopos"], "table='geopos' is unknown"),
        (["sample", "{tmp}/empty"], "not a run folder"),
        (["sample", "{tmp}/empty", "--seeds", "a"], "seeds='a'"),
        (["sample", "{tmp}/empty", "--size", "1x2x3"], "size='1x2x3'"),
        (["register", "{tmp}/empty"], "not a run folder"),
        (["sync", "{tmp}/empty"], "not a run folder"),
        (["logs", "{tmp}/empty"], "not a run folder"),
        (["cancel", "{tmp}/empty"], "not a run folder"),
    ],
)
def test_a_wrong_word_gets_one_line_and_exit_code_2(graticule, photos, tmp_path, monkeypatch, words, said):
    data = photos(32)
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "corrupt").mkdir()
    (tmp_path / "corrupt" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing more")
    shutil.copytree(data, tmp_path / "stale")
    (tmp_path / "stale" / "index.bin").write_bytes(b"\0" * (tmp_path / "stale" / "index.bin").stat().st_size)
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    code, _, err = graticule(*(w.format(tmp=tmp_path, data=data) for w in words))
    assert code == 2, err
    assert said in err
    assert len(err.strip().splitlines()) == 1, err
    assert sorted(tmp_path.rglob("*")) == before  # nothing half-written


@pytest.mark.parametrize("cluster", ["local", "lab"])
def test_a_dry_run_writes_nothing(graticule, photos, tmp_path, monkeypatch, cluster):
    monkeypatch.chdir(tmp_path)
    words = ["submit", CIPS, "--tiny", "--data", photos(32), "--cluster", cluster, "--gpus", 2, "--dry-run"]
    code, out, err = graticule(*words)
    assert code == 0, err
    assert "submitit.core._submit" in out
    assert list(tmp_path.rglob("*")) == []


@pytest.mark.parametrize("cluster", ["local", "lab"])
def test_seeds_are_runs_of_one_array_and_a_dry_run_writes_none(graticule, photos, tmp_path, monkeypatch, cluster):
    monkeypatch.chdir(tmp_path)
    words = ["submit", CIPS, "--tiny", "--data", photos(32), "--cluster", cluster, "--dry-run"]
    code, out, err = graticule(*words, "--seeds", "3,0-1,3")
    assert code == 0, err
    assert list(tmp_path.rglob("*")) == []
    folders = [
        graticule(*words, "--set", f"seed={n}")[1].split("PYTHONPATH=")[1].split("/jobs/001")[0] for n in (3, 0, 1)
    ]
    assert [line.partition(": ")[2] for line in out.splitlines()[-3:]] == folders
    assert f"{tmp_path}/runs/.arrays/001/code" in out
    if cluster == "lab":
        assert "#SBATCH --array=0-2%3" in out
        assert "#SBATCH --array=0-2%2" in graticule(*words, "--seeds", "0-2", "--parallel", 2)[1]
    single = graticule(*words, "--seeds", "3")[1]
    assert f"{folders[0]}/jobs/001/code" in single
    assert "--array" not in single


def test_a_checkpoint_of_another_recipe_is_refused(runner, graticule):
    mine, other = runner(CIPS), runner(CIPS)
    folder = mine.train_here("total_kimg=0.032")
    stranger = other.train_here("total_kimg=0.032", "seed=5")
    shutil.rmtree(folder / "checkpoints")
    shutil.copytree(stranger / "checkpoints", folder / "checkpoints")
    code, _, err = graticule(*mine.command("total_kimg=0.032")[1:])
    assert code == 2
    assert "belongs to configuration" in err


@pytest.mark.parametrize(("recipe", "trained", "untrained"), [(MSPIE, "48", "80x40"), (CIPS, "32", "20x50")])
def test_sample_writes_a_grid_at_trained_sizes_and_at_one_never_trained(runner, graticule, recipe, trained, untrained):
    folder = runner(recipe).train_here("total_kimg=0.048")
    for size, (h, w) in ((trained, (int(trained), int(trained))), (untrained, map(int, untrained.split("x")))):
        grid = folder / f"{size}.png"
        code, out, err = graticule("sample", folder, "--seeds", "0-2", "--size", size, "--columns", 3, "--grid", grid)
        assert code == 0, err
        assert f"3 images of {h}x{w} px" in out
        with Image.open(grid) as picture:
            assert picture.size == (3 * w, h)


def test_training_goes_on_without_a_tracking_server(runner):
    """Nothing listens on that port: every image is trained on, every metric is on disk."""
    run = runner(CIPS)
    env = {**os.environ, "MLFLOW_TRACKING_URI": "http://127.0.0.1:9", "OMP_NUM_THREADS": "1"}
    command = run.command("total_kimg=0.064", "exec.track=true")
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert (max(run.folder().glob("checkpoints/*"))).name == f"{64:012d}"
    assert '"nimg": 64' in (run.folder() / "metrics.jsonl").read_text()
    assert "tracking down" in (run.folder() / "events.jsonl").read_text()


def test_another_world_than_asked_for_is_an_error(runner):
    run = runner(CIPS)
    done = subprocess.run([GRATICULE, *run.command("exec.gpus=2")[1:]], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "asks for 2 ranks, 1 came up" in done.stderr


def test_a_precision_of_the_launcher_that_contradicts_the_run_leaves_no_folder(runner):
    run = runner(CIPS)
    env = {**ENV, "ACCELERATE_MIXED_PRECISION": "bf16"}
    done = subprocess.run(run.command(), env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "contradicts precision='fp32'" in done.stderr
    assert not list(run.runs.glob("*"))


def test_the_same_recipe_runs_under_accelerate_launch(runner):
    run = runner(CIPS)
    accelerate = str(GRATICULE).replace("graticule", "accelerate")
    command = [
        accelerate,
        "launch",
        "--num_processes",
        "1",
        "--cpu",
        "-m",
        "pipeline.cli",
        *run.command()[1:],
    ]
    done = subprocess.run([*command, "--set", "total_kimg=0.032"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr

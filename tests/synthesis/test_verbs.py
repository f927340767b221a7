"""The verbs that make pictures, as users meet them: files, their names, and one line for each wrong word."""

import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image

from pipeline import cli
from pipeline.synthesis.sample import generate, grid
from tests.runs import CIPS, MSPIE
from tests.synthesis.untrained import NIMG

ROOT = Path(__file__).resolve().parents[2]
GROUPS = ("probe", "look")
PAGE = (ROOT / "docs" / "seeing.md").read_text()


@pytest.fixture
def run(untrained, tmp_path, monkeypatch) -> Path:
    """A run folder of this test's own, below the current folder."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(untrained(MSPIE), tmp_path / "run"))


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def test_without_a_file_named_the_picture_lies_in_the_run_under_a_name_that_says_what_it_shows(graticule, run):
    shown = {
        ("sample", run, "--seeds", "0-2", "--size", "16x24"): "sample-{}-px16x24-seeds0-2.png",
        ("sample", run, "--seeds", "0-2", "--truncation-psi", "0.5"): "sample-{}-px16x16-seeds0-2-psi0.5.png",
        ("sample", run, "--seeds", "0-2", "--columns", 1): "sample-{}-px16x16-seeds0-2-columns1.png",
        ("interpolate", run, "--seeds", "0,3", "--frames", 3): "interpolate-{}-px16x16-seeds0,3-frames3-spacew.png",
        ("edit", run, "--direction", 2, "--alpha", "-1..1", "--layers", "1,3"): (
            "edit-{}-px16x16-direction2-alpha-1..1-layers1,3-seeds0-3.png"
        ),
        ("edit", run, "--direction", 1, "--seeds", 4, "--normalize"): (
            "edit-{}-px16x16-direction1-alpha-3..3-seeds4-normalizeTrue.png"
        ),
        ("probe", "padding", run): "probe-padding-{}-px16x16-seed0.png",
    }
    for words, name in shown.items():
        code, out, err = graticule(*words)
        path = run / "pictures" / name.format(f"{NIMG:012d}")
        assert (code, err) == (0, ""), words
        assert path.is_file(), sorted((run / "pictures").iterdir())
        assert f"{path}: " in out
        first = path.read_bytes()
        assert graticule(*words)[0] == 0
        assert path.read_bytes() == first
    assert len(list((run / "pictures").iterdir())) == len(shown)
    assert not list(run.rglob("mlflow*"))  # neither asked for nor known there


def test_a_name_never_gets_too_long_for_a_disk_and_differs_all_the_same(graticule, run):
    for seeds in (",".join(map(str, range(100))), ",".join(map(str, range(99)))):
        assert graticule("sample", run, "--seeds", seeds)[0] == 0
    names = [p.name for p in (run / "pictures").iterdir()]
    assert len(names) == 2
    assert max(map(len, names)) < 150


def test_an_edit_is_a_row_a_seed_and_a_column_an_alpha_and_alpha_0_is_sample(graticule, run, generator):
    code, out, err = graticule(
        "edit", run, "--alpha", "-2..2:2", "--seeds", "5,1", "--size", "16x24", "--out", "edit.png"
    )
    assert code == 0, err
    assert "2 seeds by 3 alphas of 16x24 px" in out
    assert not (run / "pictures").exists()
    table = pixels(Path("edit.png"))
    assert table.shape == (2 * 16, 3 * 24, 3)
    np.testing.assert_array_equal(table[:, 24:48], grid(generate(generator(), [5, 1], (16, 24)), columns=1))


def test_interpolate_makes_a_row_a_leg_and_an_animation_beside_it(graticule, run):
    words = ["interpolate", run, "--seeds", "0,3,7", "--frames", 4, "--space", "z", "--out", "way.png", "--animate"]
    assert graticule(*words)[0] == 0
    assert pixels(Path("way.png")).shape == (2 * 16, 4 * 16, 3)
    with Image.open("way-animated.png") as picture:
        assert (picture.n_frames, picture.size) == (7, (16, 16))
        durations = {picture.seek(i) or picture.info["duration"] for i in range(7)}
    assert len(durations) == 1  # a frame that two legs share is not there twice


def test_probe_padding_prints_both_variances_of_each_of_five_pictures(graticule, run):
    code, out, _ = graticule("probe", "padding", run, "--size", "16x32", "--out", "probe.png")
    assert code == 0
    assert pixels(Path("probe.png")).shape == (16, 5 * 32, 3)
    rows = re.findall(r"│ +(-?[\d.]+) +│ +([\d.e-]+) +│ +([\d.e-]+) +│", out)
    assert [float(value) for value, _, _ in rows] == [-1, -0.5, 0, 0.5, 1]
    assert min(float(border) for _, _, border in rows) > 0


def test_probe_stationarity_draws_curves_and_writes_their_numbers_beside_them(graticule, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = ["probe", "stationarity", "--size", 6, "--samples", 200, "--layers", 1]
    code, out, _ = graticule(*small)
    assert code == 0
    assert "curves over 200 samples" in out
    rows = json.loads(Path("stationarity.json").read_text())
    assert [(r["padding"], r["relu"]) for r in rows] == [
        (p, relu) for relu in (False, True) for p in ("zero", "reflect", "circular", "none")
    ]
    first = Path("stationarity.png").read_bytes()
    assert graticule(*small)[0] == 0
    assert Path("stationarity.png").read_bytes() == first
    assert graticule(*small, "--padding", "zero", "--out", "zero.png")[0] == 0
    assert {r["padding"] for r in json.loads(Path("zero.json").read_text())} == {"zero"}
    assert pixels(Path("zero.png")).shape == pixels(Path("stationarity.png")).shape


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["edit", "{run}", "--direction", "16"], "direction=16: this generator has directions 0 to 15"),
        (["edit", "{run}", "--direction", "-1"], "direction=-1"),
        (["edit", "{run}", "--layers", "2,77"], "layers=77: this generator has layers 0 to 5"),
        (["edit", "{run}", "--layers", "x"], "layers='x'"),
        (["edit", "{run}", "--alpha", "3..-3"], "alpha='3..-3'"),
        (["edit", "{tmp}"], "not a run folder"),
        (["interpolate", "{run}", "--seeds", "3"], "at least two"),
        (["interpolate", "{run}", "--frames", "1"], "--frames"),
        (["interpolate", "{run}", "--space", "x"], "--space"),
        (["interpolate", "{run}", "--size", "17"], "multiples of 4"),
        (["interpolate", "{run}", "--out", "{tmp}/absent/x.png"], "out="),
        (["probe"], "Missing command"),
        (["probe", "padding", "{tmp}"], "not a run folder"),
        (["probe", "padding", "{cips}"], "CIPSGenerator has no code at its head"),
        (["probe", "padding", "{run}", "--size", "0"], "size='0'"),
        (["probe", "stationarity", "--padding", "same"], "--padding"),
        (["probe", "stationarity", "--size", "2"], "--size"),
        (["probe", "stationarity", "--out", "{tmp}/x.json"], "ends in .png"),
        (["probe", "stationarity", "--samples", "2", "--size", "4", "--out", "{tmp}/absent/x.png"], "out="),
        (["sample", "{run}", "--grid", "{tmp}/absent/x.png"], "grid="),
    ],
)
def test_a_wrong_word_gets_one_line_and_exit_code_2(graticule, run, untrained, tmp_path, words, said):
    before = sorted(tmp_path.rglob("*"))
    places = {"run": run, "tmp": tmp_path, "cips": untrained(CIPS)}
    code, _, err = graticule(*(w.format(**places) for w in words))
    assert code == 2, err
    assert said in err
    assert len(err.strip().splitlines()) == 1, err
    assert sorted(tmp_path.rglob("*")) == before


def test_a_run_folder_that_takes_no_picture_is_one_line_that_names_the_option(graticule, run):
    (run / "pictures").write_text("in the way")
    code, _, err = graticule("sample", run)
    assert code == 2
    assert "choose another file with --grid" in err
    assert len(err.strip().splitlines()) == 1


def test_the_page_shows_each_verb_by_a_command_that_exists_and_its_picture():
    commands = typer.main.get_command(cli.app).commands
    commands |= {f"{group} {name}": c for group in GROUPS for name, c in commands[group].commands.items()}
    seen = set()
    for line in re.findall(r"^graticule (.+)$", PAGE, flags=re.M):
        verb, *words = shlex.split(line)
        verb = f"{verb} {words[0]}" if verb in GROUPS else verb
        options = {o for p in commands[verb].params for o in p.opts}
        assert {w for w in words if w.startswith("--")} <= options, line
        seen.add(verb)
    alone = {"sample", "interpolate", "edit"}
    assert seen - {"train", "demo"} == alone | {verb for verb in commands if verb.split(" ")[0] in GROUPS} - set(GROUPS)
    pictures = [ROOT / "docs" / name for name in re.findall(r"!\[[^]]*\]\(([^)]+)\)", PAGE)]
    assert len(pictures) == 12
    assert all(p.name in PAGE.replace(f"]({p.name})", "") for p in pictures)  # and in the command that makes it
    assert all(p.stat().st_size < 200_000 for p in pictures)

"""`graticule look` and `sample --chunk-px` as users meet them: files, names, numbers, one line for each wrong word."""

import json
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.models.cips import CIPSGenerator
from pipeline.synthesis.sample import generate
from tests.runs import CIPS, MSPIE
from tests.synthesis.untrained import NIMG


@pytest.fixture
def run(untrained, tmp_path, monkeypatch) -> Path:
    """A run folder of this test's own, below the current folder."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(untrained(CIPS), tmp_path / "run"))


@pytest.fixture(scope="module")
def embedding(tmp_path_factory) -> Path:
    """A TorchScript file whose features are the pixels."""
    path = tmp_path_factory.mktemp("embedding") / "pixels.ts"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.trace(torch.nn.Flatten(), torch.zeros(2, 3, 16, 16)).save(path)
    return path


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def test_each_picture_lies_in_the_run_under_a_name_that_says_what_it_shows(graticule, run, photos, embedding):
    data = photos(16)
    shown = {
        ("dense", run): "dense-{}-px31x31-seeds0-1.png",
        ("foveated", run, "--percent", "25,100", "--size", "8x24"): "foveated-{}-px8x24-percent25,100-seeds0-1.png",
        ("panorama", run, "--truncation-psi", 0.5): "panorama-{}-px16x16-seeds0-3-psi0.5.png",
        ("mix", run, "--layers", "1-2,4"): "mix-{}-px16x16-to0-2-of3-6-layers1-2,4.png",
        ("zeroed", run): "zeroed-{}-px16x16-seeds0-3.png",
        ("codes", run): "codes-{}-px16x16.png",
        ("spectra", run, "--data", data, "--images", 8): "spectra-{}-px16-images8.png",
        ("neighbours", run, "--data", data, "--embedding", embedding): "neighbours-{}-seeds0-3-count5-bypixels.png",
    }
    for (verb, *words), name in shown.items():
        code, out, err = graticule("look", verb, *words)
        path = run / "pictures" / f"look-{name.format(f'{NIMG:012d}')}"
        assert (code, err) == (0, ""), verb
        assert path.is_file(), sorted((run / "pictures").iterdir())
        assert f"{path}: " in out
        if verb in ("foveated", "codes"):
            first = path.read_bytes()
            assert graticule("look", verb, *words)[0] == 0
            assert path.read_bytes() == first
    assert {p.suffix for p in (run / "pictures").iterdir()} == {".png", ".json"}
    assert len(list((run / "pictures").iterdir())) == len(shown) + 3


def test_spectra_measure_the_set_and_every_model_on_one_chart(graticule, run, photos, untrained):
    other = shutil.copytree(untrained(MSPIE), "other")
    words = ["look", "spectra", run, "--data", photos(16), "--against", other, "--images", 8, "--out", "s.png"]
    code, out, err = graticule(*words)
    assert code == 0, err
    assert "real (8), run (8), other (8)" in out
    found = json.loads(Path("s.json").read_text())
    assert {name: (one["images"], len(one["power"])) for name, one in found.items()} == {
        name: (8, 12) for name in ("real", "run", "other")
    }
    assert len({tuple(one["power"]) for one in found.values()}) == 3


def test_neighbours_by_pixels_are_those_of_the_pixels(graticule, run, photos, embedding, generator):
    from pipeline.data.reader import ShardReader

    words = ["look", "neighbours", run, "--data", photos(16), "--embedding", embedding, "--count", 2]
    assert graticule(*words, "--seeds", "0,7", "--out", "n.png")[0] == 0
    found = json.loads(Path("n.json").read_text())["neighbours"]
    set_ = ShardReader(photos(16))
    bank = np.stack([set_.read(i)[0] for i in range(len(set_))]).astype(float)
    for one, image in zip(found, generate(generator(CIPS), [0, 7]), strict=True):
        far = np.sqrt((((bank - image.transpose(2, 0, 1)) / 127.5) ** 2).sum(axis=(1, 2, 3)))
        assert one["samples"] == far.argsort()[:2].tolist()
        np.testing.assert_allclose(one["distances"], np.sort(far)[:2], rtol=1e-4)


def test_codes_print_the_shares_of_three_components(graticule, run):
    assert graticule("look", "codes", run, "--out", "codes.png")[0] == 0
    shares = json.loads(Path("codes.json").read_text())
    assert list(shares) == ["fourier", "embedding"]
    for one in shares.values():
        assert one["explained"] == sorted(one["explained"], reverse=True)
        assert 0 < sum(one["explained"]) <= 1


def test_a_chunk_changes_memory_and_not_the_picture(graticule, run, monkeypatch):
    blocks, colours = [], CIPSGenerator._colours
    monkeypatch.setattr(
        CIPSGenerator,
        "_colours",
        lambda G, ws, x, noise: blocks.append(len(ws) * x.shape[1]) or colours(G, ws, x, noise),
    )
    for chunk in (7, 100000):
        words = ["sample", run, "--seeds", "0-2", "--size", "20x30", "--chunk-px", chunk, "--grid", f"{chunk}.png"]
        assert graticule(*words)[0] == 0
    assert (blocks[-1], set(blocks[:-1])) == (3 * 600, {6})  # two pixels of three pictures
    a, b = (pixels(Path(f"{chunk}.png")).astype(int) for chunk in (7, 100000))
    assert np.abs(a - b).max() <= 1  # sums of floats in another order
    assert (a != b).mean() < 0.01


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["dense", "{run}", "--factor", "1"], "--factor"),
        (["dense", "{mspie}"], "MSPIEGenerator makes no pixel alone"),
        (["foveated", "{run}", "--percent", "50,120"], "percent=120"),
        (["foveated", "{run}", "--percent", "0"], "percent=0"),
        (["foveated", "{run}", "--percent", "5"], "at least 16 of 16x16 pixels"),
        (["foveated", "{run}", "--percent", "half"], "percent='half'"),
        (["foveated", "{run}", "--size", "1"], "size=1x1"),
        (["panorama", "{mspie}"], "kind='cips'"),
        (["panorama", "{run}", "--seeds", "x"], "seeds='x'"),
        (["mix", "{run}", "--layers", "3-9"], "layers=3-9: this generator has groups 1 to 4"),
        (["mix", "{run}", "--layers", "a"], "layers='a'"),
        (["mix", "{run}", "--sources", "b"], "sources='b'"),
        (["mix", "{mspie}"], "kind='cips'"),
        (["zeroed", "{mspie}"], "kind='cips'"),
        (["codes", "{mspie}"], "kind='cips'"),
        (["codes", "{run}", "--out", "x.json"], "ends in .png"),
        (["spectra", "{run}"], "Missing option '--data'"),
        (["spectra", "{run}", "--data", "{tmp}/absent"], "no such folder"),
        (["spectra", "{run}", "--data", "{data}"], "holds 32 px pictures, the model makes 16x16"),
        (["neighbours", "{run}", "--data", "{data}", "--embedding", "{tmp}/absent"], "no such file"),
        (["neighbours", "{run}", "--data", "{data}", "--embedding", "{run}/config.json"], "is no TorchScript file"),
        (["neighbours", "{run}", "--data", "{data}", "--embedding", "{embedding}"], "holds 32 px pictures"),
        (["dense", "{tmp}"], "not a run folder"),
        ([], "Missing command"),
    ],
)
def test_a_wrong_word_gets_one_line_and_exit_code_2(
    graticule, run, untrained, photos, embedding, tmp_path, words, said
):
    before = sorted(tmp_path.rglob("*"))
    places = {"run": run, "tmp": tmp_path, "mspie": untrained(MSPIE), "data": photos(32), "embedding": embedding}
    code, _, err = graticule("look", *(w.format(**places) for w in words))
    assert code == 2, err
    assert said in err
    assert len(err.strip().splitlines()) == 1, err
    assert sorted(tmp_path.rglob("*")) == before


def test_a_chunk_is_for_generators_that_make_each_pixel_alone(graticule, untrained):
    code, _, err = graticule("sample", untrained(MSPIE), "--chunk-px", 10)
    assert code == 2
    assert "MSPIEGenerator makes no pixel alone" in err

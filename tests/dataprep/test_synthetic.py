"""Sources that draw their images: densities and glyphs, against the rules that their heads state."""

from functools import lru_cache
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from dataprep.sources import densities, glyphs, open_source
from dataprep.sources.densities import Densities
from dataprep.sources.glyphs import CELLS, DIRECTIONS, FACES, LETTERS, Glyphs, rendered
from dataprep.transform import Transform
from dataprep.writer import prepare
from pipeline.errors import UserError

SIDE = 32
SPLITS = [("densities", s) for s in densities.SPLITS] + [("glyphs", s) for s in glyphs.SPLITS]


@lru_cache(maxsize=64)
def entries(name, split, size_px):
    return open_source(name, None, split).entries(size_px)


def image(source, i, size_px=SIDE):
    return np.asarray(source.read(entries(source.name, source.split, size_px)[i]))


def box(grey):
    """Left, top, right, bottom of what is not black; right and bottom exclusive."""
    rows, columns = np.flatnonzero(grey.any(1)), np.flatnonzero(grey.any(0))
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1


@pytest.mark.parametrize(("name", "split"), SPLITS)
def test_a_split_has_its_fixed_number_of_each_class_under_keys_of_their_own(name, split):
    source = open_source(name, None, split)
    table = {"densities": densities.SPLITS, "glyphs": glyphs.SPLITS}[name]
    entries = list(source.entries(SIDE))
    assert np.bincount([e.label for e in entries]).tolist() == [table[split]] * len(source.classes)
    assert len({e.key for e in entries}) == len(entries)
    assert all(e.name.startswith(source.classes[e.label] + "/") for e in entries)


def test_the_numbers_are_those_of_the_docs():
    assert {s: len(Densities(None, s).entries(SIDE)) for s in densities.SPLITS} == {"train": 4200, "validation": 700}
    assert {s: len(Glyphs(None, s).entries(SIDE)) for s in glyphs.SPLITS} == {
        "identity-train": 4800, "identity-seen": 960, "identity-unseen": 960,
        "relative-train": 4800, "relative-seen": 960, "relative-unseen": 960,
        "absolute-train": 4680, "absolute-seen": 936,
    }  # fmt: skip
    assert [len(Glyphs(None, f"{t}-seen").classes) for t in glyphs.TASKS] == [24, 4, 9]


@pytest.mark.parametrize(("name", "split"), SPLITS)
def test_an_image_is_a_function_of_split_and_number_alone(name, split):
    ahead, other = open_source(name, None, split), open_source(name, None, split)
    assert np.array_equal(image(ahead, 11), image(other, 11))
    seen = [image(ahead, i).tobytes() for i in range(40)]
    assert len(set(seen)) == 40
    for of, another in SPLITS:
        if of == name and another != split and (name == "densities" or another.split("-")[0] == split.split("-")[0]):
            assert image(open_source(name, None, another), 11).tobytes() not in seen


@pytest.mark.parametrize("kind", densities.KINDS)
def test_a_density_is_its_formula_at_the_points_of_a_pixel(kind):
    source = Densities(None, "train")
    entry = next(e for e in source.entries(SIDE) if e.name.startswith(kind))
    x0, y0, width, turn, height = densities.draws("densities", "train", int(entry.name.split("/")[1])).random(5)
    x0, y0, width, height = 0.1 + 0.8 * x0, 0.1 + 0.8 * y0, 0.08 + 0.16 * width, 0.3 + 0.7 * height
    got, angle = np.asarray(source.read(entry)), 2 * np.pi * turn
    assert (got == got[..., :1]).all()
    formula = densities.KINDS[kind]
    for row, column in [(i, j) for i in range(0, SIDE, 3) for j in range(0, SIDE, 3)]:
        values = []
        for k in range(16):
            dx = ((column + (k % 4 + 0.5) / 4) / SIDE - x0) / width
            dy = ((row + (k // 4 + 0.5) / 4) / SIDE - y0) / width
            u, v = np.cos(angle) * dx + np.sin(angle) * dy, np.cos(angle) * dy - np.sin(angle) * dx
            values.append(float(formula(np.array(u), np.array(v))))
        assert got[row, column, 0] == pytest.approx(255 * height * np.mean(values), abs=0.51)


def test_every_density_is_seen_and_some_reach_beyond_the_image():
    source = Densities(None, "train")
    images = [image(source, i)[..., 0] for i in range(84)]
    assert min(x.max() for x in images) > 20
    assert sum(np.concatenate([x[0], x[-1], x[:, 0], x[:, -1]]).max() > 60 for x in images) > 8


@pytest.mark.parametrize("task", ["identity", "relative"])
def test_what_was_trained_lies_in_the_upper_left_quarter_and_what_was_not_outside_of_it(task):
    touched = dict.fromkeys(("train", "seen", "unseen"), 0)
    for part in touched:
        source = Glyphs(None, f"{task}-{part}")
        for i in range(96):
            grey = image(source, i)[..., 0]
            touched[part] = touched[part] + grey.astype(int)
            quarter = grey[: SIDE // 2, : SIDE // 2]
            assert (quarter.any(), (quarter.sum() == grey.sum())) == (
                (False, False) if part == "unseen" else (True, True)
            )
    rest = touched["unseen"].astype(bool)
    rest[: SIDE // 2, : SIDE // 2] = True
    assert rest.mean() > 0.9  # all over the rest


def test_a_letter_is_one_of_its_class():
    source = Glyphs(None, "identity-seen")
    for i in range(0, 96):
        grey = image(source, i)[..., 0]
        left, top, right, bottom = box(grey)
        ink = grey[top:bottom, left:right]
        letter = LETTERS[source.classes[i % 24]]
        assert any(np.array_equal(ink, rendered(letter, face, em)) for face in FACES for em in range(11, 15))


def test_the_omega_lies_where_the_class_says():
    """By brute force: both letters are looked for in the image."""
    source = Glyphs(None, "relative-unseen")
    for i in range(48):
        grey, at = image(source, i)[..., 0], {}
        for letter in "ιω":
            shapes = {
                rendered(letter, face, em).tobytes(): rendered(letter, face, em) for face in FACES for em in (8, 9)
            }
            found = [
                (ink.sum(), x + ink.shape[1] / 2, y + ink.shape[0] / 2)
                for ink in shapes.values()
                for y, x in np.argwhere((np.lib.stride_tricks.sliding_window_view(grey, ink.shape) == ink).all((2, 3)))
            ]
            at[letter] = max(found)[1:]
        (x1, y1), (x2, y2) = at["ι"], at["ω"]  # noqa: RUF001
        across, down = DIRECTIONS[source.classes[i % 4]]
        assert (x2 - x1) * across + (y2 - y1) * down > max(abs((x2 - x1) * down), abs((y2 - y1) * across))


@pytest.mark.parametrize("split", ["absolute-train", "absolute-seen"])
def test_the_middle_of_a_letter_lies_in_the_cell_of_its_class(split):
    source = Glyphs(None, split)
    for i in range(90):
        left, top, right, bottom = box(image(source, i)[..., 0])
        column, row = (left + right) / 2 // (SIDE / 3), (top + bottom) / 2 // (SIDE / 3)
        assert source.classes[i % 9] == CELLS[int(3 * row + column)]


def test_other_sizes_are_drawn_at_that_size_and_stored_as_drawn(tmp_path):
    for size_px in (33, 48, 101):
        for split in glyphs.SPLITS:
            for i in range(8):
                assert image(Glyphs(None, split), i, size_px).shape == (size_px, size_px, 3)
    source = open_source("densities", None, "validation")
    source.entries = lambda size_px: type(source).entries(source, size_px)[:9]  # enough of them
    m = prepare(
        source, tmp_path / "x", Transform(size_px=20, crop=source.crop, encoding="raw"), split="validation", workers=1
    )
    assert (m.count, m.split, m.size_px, list(m.classes)) == (9, "validation", 20, list(densities.KINDS))
    shard = (tmp_path / "x" / m.shards[0].name).read_bytes()
    assert all(image(source, i, 20).tobytes() in shard for i in range(9))


def test_a_path_an_unknown_split_none_and_letters_of_no_size_are_refused_in_one_line(tmp_path):
    refused = {
        "draws its images; leave PATH out": lambda: open_source("densities", tmp_path, "train"),
        "source 'glyphs' draws": lambda: open_source("glyphs", tmp_path, "identity-seen"),
        "did you mean 'validation'": lambda: open_source("densities", None, "valid"),
        "did you mean 'absolute-seen'": lambda: open_source("glyphs", None, "absolute-unseen"),
        "split: not given; source 'densities' has train, validation": lambda: open_source("densities"),
        "letters need --size 32": lambda: open_source("glyphs", None, "absolute-seen").entries(31),
    }
    for words, wrong in refused.items():
        with pytest.raises(UserError, match=words) as e:
            wrong()
        assert "\n" not in str(e.value)


def test_faces_are_twelve_files_and_each_has_every_letter():
    notdef = {face: rendered("\U0010fffe", face, 14).tobytes() for face in FACES}
    assert all((glyphs.fonts_folder() / f"{face}.ttf").is_file() for face in FACES)
    for face in FACES:
        inks = [rendered(letter, face, 14).tobytes() for letter in LETTERS.values()]
        assert len(set(inks)) == 24
        assert notdef[face] not in inks
    assert len(set(FACES)) == 12
    assert all(a != b for a, b in pairwise(FACES))
    assert Image.fromarray(rendered("ω", FACES[0], 14)).mode == "L"

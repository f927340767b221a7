"""The tables of the papers are ones that can be trained, measured, compared and told apart, in both forms.

Recipes' docstrings are the second witness of what was published: numbers are written in both places.
"""

import re
from functools import cache
from pathlib import Path

import pytest

from dataprep.sources import open_source
from pipeline.errors import UserError
from pipeline.metrics.protocols import Protocol, better, metric_name, parse
from pipeline.metrics.sliced import SlicedConfig
from pipeline.plan import RunConfig, check, run_name
from pipeline.recipes import Recipe, recipes
from pipeline.tables import TABLES, given
from pipeline.tables.table import Asked, Form, Row, Table

FORMS: tuple[Form, ...] = ("small", "full")
EVERY = pytest.mark.parametrize("table", TABLES.values(), ids=list(TABLES))
SAME = "any"  # a recipe's name where that alone tells runs apart


@cache
def rows_of(table: str, form: Form) -> tuple[Row, ...]:
    return tuple(TABLES[table].rows(form))


@cache
def all_recipes() -> dict[str, tuple[Recipe, str]]:
    """With what each is but for its name."""
    return {name: (recipe, _but_for_its_name(recipe.make())) for name, recipe in recipes().items()}


def _but_for_its_name(run: RunConfig) -> str:
    return run.replace(recipe=SAME).to_json()


@pytest.mark.parametrize("form", FORMS)
@EVERY
def test_every_row_is_a_run_that_its_table_can_train_and_compare(table: Table, form: Form):
    rows, columns = rows_of(table.name, form), table.columns(form)
    assert len({row.name for row in rows}) == len(rows)
    assert len({m.key for m in columns}) == len(columns)
    for row in rows:
        check(row.run, table.exec_of(form))
        for name in (table.axes.x, table.axes.line, table.axes.panel or table.axes.x):
            assert name in row.labels
        for one in filter(None, (row.data, *row.validation)):
            assert open_source(one.source, None, one.split).classes
            assert one.size_px == row.run.data.size_px
        assert set(row.published) <= {m.key for m in columns}
        assert set(row.metrics) <= {m.metric for m in columns}
    for c in table.comparisons:
        if c.metric not in {m.key for m in columns}:
            continue
        sides = [
            [r for r in rows if r.labels[c.column] == side and all(r.labels[k] == v for k, v in c.within.items())]
            for side in (c.variant, c.against)
        ]
        assert len(sides[0]) == len(sides[1]) > 0
        others = [[{k: v for k, v in r.labels.items() if k != c.column} for r in side] for side in sides]
        assert any(one in others[1] for one in others[0]), "no pair of rows differs in this label alone"


# --- published numbers

NOT_OF_A_TABLE = {  # pictures, models that were released beside the paper, and crossings that no paper did
    *(f"cips.{name}" for name in ("ffhq_1024", "landscapes_panorama", "release_skips", "release_residual")),
    *(f"geopos.{name}" for name in ("stylegan2_geo", "stylegan2_coord", "pggan_geo", "asl_geo_spe", "asl_geo_csg")),
}


def test_every_experiment_of_the_papers_is_in_a_table():
    there = [row.run for table in TABLES for row in rows_of(table, "full")]
    named, trained = {run.recipe for run in there}, {_but_for_its_name(run) for run in there}
    for name, (_, same) in all_recipes().items():
        pictures = name in NOT_OF_A_TABLE or name.startswith("mspie.singan_")
        assert (name in named or same in trained) != pictures, name


def _witnesses(row: Row) -> str:
    """What recipes of this row's configuration say was published."""
    wanted = _but_for_its_name(row.run)
    found = [recipe for name, (recipe, same) in all_recipes().items() if name == row.run.recipe or same == wanted]
    return " ".join(recipe.facts["Published"] for recipe in found)


@EVERY
def test_what_is_published_of_a_row_is_what_its_recipe_says(table: Table):
    computed = {m.key for m in table.measures if m.of}
    for row in rows_of(table.name, "full"):
        shown = [*(text for key, text in row.published.items() if key not in computed), *_beside(row)]
        said = _numbers(_witnesses(row)) if shown else []
        for number in (n for text in shown for n in _numbers(text)):
            assert number in said, (row.name, number, said)


def _beside(row: Row) -> list[str]:
    return [str(value) for name, value in row.labels.items() if name.endswith("published")]


def _numbers(text: str) -> list[str]:
    return re.findall(r"\d+(?:\.\d+)?", text)


def test_no_published_number_of_a_recipe_was_forgotten():
    shown: dict[str, set[str]] = {}
    for row in (row for table in TABLES for row in rows_of(table, "full")):
        texts = [*row.published.values(), *_beside(row)]
        shown.setdefault(_but_for_its_name(row.run), set()).update(n for text in texts for n in _numbers(text))
    for name, (recipe, same) in all_recipes().items():
        if name.startswith("geopos.") or name in NOT_OF_A_TABLE or "singan" in name:
            continue
        said = re.sub(r"\([^)]*images\)", "", recipe.facts["Published"])  # lengths are no results
        missing = {n for n in _numbers(said) if "." in n} - shown[same]
        assert not missing, name


def test_parameters_of_cips_table_4_are_those_published_to_the_digit():
    table = TABLES["cips.table4"]
    (measure,) = table.measures
    assert measure.of
    assert not table.trains("full")
    for row in rows_of(table.name, "full"):
        assert f"{measure.of(row.run):.{measure.digits}g}" == f"{float(row.published[measure.key]):.3g}", row.name


# --- measures


def _made(asked: Asked, row: Row) -> dict[str, str]:
    """Names of the numbers that an evaluation of a row would make, and which way each is better."""
    protocols, found = [parse(metric) for metric in asked.metrics], {}
    for px, _, of in (size.partition("of") for size in asked.sizes or map(str, {s for s, _ in row.run.family.sizes()})):
        trained = int(of or px)
        assert (trained, trained) in row.run.family.sizes(), (row.name, trained)
        for protocol in protocols:
            name = metric_name(protocol, protocol.detector, int(px), int(of) if of else None)
            found |= {name + suffix: better(suffix or protocol.kind) for suffix in _suffixes(protocol, int(px))}
    return found


def _suffixes(protocol: Protocol, px: int) -> list[str]:
    if protocol.kind == "swd":
        sides = SlicedConfig().levels((px, px))
        return ["", *(f"/{side}" for side in sides), *(["/avg32"] if px >= 32 else [])]
    return {"pr": ["/precision", "/recall"], "dc": ["/density", "/coverage"]}.get(protocol.kind, [""])


@pytest.mark.parametrize("form", FORMS)
@EVERY
def test_what_is_asked_is_what_the_columns_show(table: Table, form: Form):
    columns = [m for m in table.columns(form) if m.metric.startswith("Metrics/")]
    shown = set()
    for row in rows_of(table.name, form):
        asked = table.asked_of(row, form)
        assert not asked or [parse(metric).name for metric in asked.metrics] == list(asked.metrics), "as it is written"
        made = _made(asked, row) if asked else {}
        own = {m.key: row.metrics.get(m.metric, m.metric) for m in columns}
        shown |= {m.key for m in columns if made.get(own[m.key]) == m.better}
        for m in columns:
            assert (own[m.key] in made) == (m.key in row.published) or form == "small" or not asked, (row.name, m.key)
            assert not m.at_best_of or table.measure(m.at_best_of).best
    assert shown == {m.key for m in columns}, "every column is of some row"


@EVERY
def test_small_forms_need_no_detector_and_are_small(table: Table):
    asked = [table.asked_of(row, "small") for row in rows_of(table.name, "small")]
    assert all(not parse(metric).detector and parse(metric).fake <= 256 for a in asked if a for metric in a.metrics)
    if not table.trains("small"):
        return
    images = {run_name(row.run): row.run.total_kimg for row in rows_of(table.name, "small")}
    assert sum(images.values()) * len(table.seeds) <= 3200
    if table.name not in ("geopos.com", "geopos.bias", "geopos.vae"):  # measured: docs/reproduce.md
        pixels = sum(row.run.total_kimg * row.run.data.size_px**2 for row in rows_of(table.name, "small"))
        assert pixels * len(table.seeds) <= 160_000, "thousands of pixels: minutes on two cores"


def test_rows_of_mspie_table_5_differ_in_their_small_form_too():
    families = [row.run.family.to_json() for row in rows_of("mspie.table5", "small")]
    assert len(set(families)) == len(families) == 11


# --- sets that the user gives


def test_sets_that_differ_are_given_by_name_and_rows_without_theirs_are_left_out():
    table = TABLES["cips.table1"]
    assert given.names_of(table, "full") == ("ffhq", "churches", "landscapes", "sat_buildings", "sat_landscapes")
    assert given.names_of(table, "small") == ()
    folders = given.sets_given(table, "full", ["ffhq=/d/f=1", Path("churches=c")])
    assert folders == {"ffhq": [Path("/d/f=1")], "churches": [Path("c")]}
    found = {row.name: given.folders_of(row, folders) for row in rows_of(table.name, "full")}
    assert found == {
        "ffhq": [Path("/d/f=1")],
        "churches": [Path("c")],
        "landscapes": None,
        "sat_buildings": None,
        "sat_landscapes": None,
    }
    one = TABLES["cips.table3"]
    folders = given.sets_given(one, "full", ["a=b", "c"])
    assert {tuple(given.folders_of(row, folders) or ()) for row in rows_of(one.name, "full")} == {
        (Path("a=b"), Path("c"))
    }
    assert given.sets_given(one, "full", []) == {}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["/d"], r"data='/d' does not say which set it is: .* NAME of ffhq, churches"),
        (["fhq=/d"], r"data='fhq=/d': did you mean 'ffhq'\?"),
        (["ffhq=/d", "ffhq=/e"], r"data='ffhq=/e': ffhq is given twice"),
        (["ffhq="], "does not say which set"),
    ],
)
def test_a_set_that_is_no_rows_is_refused(words, said):
    with pytest.raises(UserError, match=said):
        given.sets_given(TABLES["cips.table1"], "full", words)


def test_rows_of_the_users_sets_agree_in_their_size_and_measured_ones_want_held_out_images():
    for table in TABLES.values():
        for form in FORMS:
            sizes: dict[str, set[int]] = {}
            for row in rows_of(table.name, form):
                if row.data is None:
                    sizes.setdefault(row.set, set()).add(row.run.data.size_px)
                assert row.run.family.validates == table.validates(form), table.name
            assert not table.trains(form) or all(len(found) == 1 for found in sizes.values()), table.name
            assert not sizes or table.needs or not table.trains(form)

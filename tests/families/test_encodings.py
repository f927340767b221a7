"""The table of encodings by families: what it says yes to is built and drawn, what it says no to is refused."""

from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin

import pytest
import torch
from torch import nn

from pipeline.cli import app
from pipeline.config import override
from pipeline.errors import UserError
from pipeline.families import KINDS
from pipeline.families.encodings import ENCODINGS, applied, markdown
from pipeline.phases import Generator
from pipeline.synthesis.sample import generate

PAGE = Path(__file__).resolve().parents[2] / "docs" / "encodings.md"
CELLS = [(encoding, kind) for encoding in ENCODINGS for kind in KINDS]
YES = [(e, k) for e, k in CELLS if applied(e, KINDS[k]())]
BY_NAME = {e.name: e for e in ENCODINGS}


def named(cells):
    return [pytest.param(e, k, id=f"{e.name}-{k}") for e, k in cells]


@pytest.mark.parametrize(("encoding", "kind"), named(YES))
def test_what_the_table_says_yes_to_is_built_and_draws_an_image(encoding, kind):
    family, settings = applied(encoding, KINDS[kind]())
    assert override(KINDS[kind](), [s.removeprefix("family.") for s in settings]) == family
    small = family.tiny()
    for setting in settings:  # which shrinking keeps
        field, _, value = setting.removeprefix("family.G.").partition("=")
        at: Any = small.G
        for name in field.split("."):
            at = getattr(at, name)
        assert str(at).lower() == value
    built = small.build(0)
    if built.stages:
        built.stages.begin(built.nets, 0)
    G = built.nets["G"].eval()
    if isinstance(G, Generator) and type(G).forward is nn.Module.forward:
        img = generate(G, [0], G.native_size)
        assert img.shape == (1, *G.native_size, 3)
        assert img.std() > 0
    else:
        with torch.no_grad():
            out = G(torch.rand(1, getattr(G, "img_channels", 3), *small.sizes()[0]))
        assert torch.cat([t.flatten() for t in (out if isinstance(out, tuple) else (out,))]).isfinite().all()


@pytest.mark.parametrize(("encoding", "kind"), named([c for c in CELLS if c not in YES]))
def test_what_it_says_no_to_is_refused_in_one_line(encoding, kind):
    for way in encoding.ways:
        with pytest.raises(UserError, match=r"--set family\.G\.\w+") as error:
            override(KINDS[kind](), [f"G.{setting}" for setting in way], prefix="family.")
        assert "\n" not in str(error.value)


def test_no_head_resizing_or_coordinate_channel_of_any_family_is_missing_from_it():
    for config in KINDS.values():
        found = {s for e in ENCODINGS for s in (applied(e, config()) or ((), ()))[1]}
        fields = type(config().G).model_fields
        for name in ("head", "resize"):
            values = literals(fields[name].annotation) if name in fields else []
            assert {f"family.G.{name}={value}" for value in values} <= found
        if "coords" in fields:
            assert {"family.G.coords.mode=geo", "family.G.coords.mode=coord"} <= found


def literals(annotation: Any) -> list[str]:
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    assert not isinstance(annotation, UnionType)
    return []


@pytest.mark.parametrize(
    ("name", "kind", "settings"),
    [
        ("GeoConv", "mspie", ("family.G.coords.mode=geo",)),
        ("GeoConv", "pggan", ("family.G.coords.mode=geo",)),
        ("GeoConv", "cips", None),
        ("learned constant", "mspie", ("family.G.head=const", "family.G.resize=interp")),
        ("learned constant", "pggan", None),
        ("zero padding alone", "singan", ("family.G.head=none", "family.G.padding=input")),
        ("zero padding alone", "mspie", None),
    ],
)
def test_some_cells_are_those_that_a_reader_of_the_networks_would_write(name, kind, settings):
    assert (applied(BY_NAME[name], KINDS[kind]()) or (None, None))[1] == settings


def test_the_page_holds_what_the_command_prints(capsys):
    app(["recipes", "--encodings"], standalone_mode=False)
    printed = capsys.readouterr().out
    assert printed == "\n".join(markdown()) + "\n"
    assert printed in PAGE.read_text()


def test_the_command_takes_no_other_choice_beside_it():
    with pytest.raises(UserError, match=r"--encodings is a table of its own; leave out --markdown"):
        app(["recipes", "--encodings", "--markdown"], standalone_mode=False)

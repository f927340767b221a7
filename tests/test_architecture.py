"""Decisions of the design, nailed: tables are complete, files and functions stay small, no forbidden names."""

import ast
import re
import tomllib
from pathlib import Path

import pytest

from pipeline.families import KINDS
from pipeline.models import GENERATORS

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted(p for d in ("pipeline", "jobs", "dataprep") for p in (ROOT / d).rglob("*.py"))


def classes(folder: str, ending: str) -> dict[str, str]:
    """Class -> file, for classes of that name with a `kind` field."""
    found = {}
    for path in (ROOT / "pipeline" / folder).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and node.name.endswith(ending):
                fields = [a.target.id for a in node.body if isinstance(a, ast.AnnAssign) and hasattr(a.target, "id")]
                if "kind" in fields:
                    found[node.name] = path.name
    return found


def test_every_family_and_every_generator_stands_in_its_table():
    assert set(classes("families", "Config")) == {c.__name__ for c in KINDS.values()}
    assert set(classes("models", "GeneratorConfig")) == {c.__name__ for c in GENERATORS.values()}
    for table in (KINDS, GENERATORS):
        assert all(config.model_fields["kind"].default == kind for kind, config in table.items())


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_and_functions_stay_small_and_say_what_they_are(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 350
    assert path.stem not in ("utils", "helpers", "common", "misc")
    assert not re.search(r"class (Base|Abstract)\w*|class \w*Manager\b", text)
    tree = ast.parse(text)
    assert ast.get_docstring(tree), "no module docstring"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and not (path.name == "loop.py" and node.name == "train"):
            assert node.end_lineno - node.lineno < 60, f"{node.name} has {node.end_lineno - node.lineno} lines"


def test_every_package_is_installed():
    """setuptools takes those that pyproject.toml lists."""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = [
        p.parent.relative_to(ROOT)
        for top in ("pipeline", "jobs", "dataprep")
        for p in (ROOT / top).rglob("__init__.py")
    ]
    assert sorted(listed) == sorted(".".join(f.parts) for f in folders)

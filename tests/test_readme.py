"""The README is true: its commands exist with those options, its table is the recipes', its files are there."""

import re
import shlex
from pathlib import Path

import typer

from pipeline import cli
from pipeline.recipes import COLUMNS, markdown_table, recipes

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "README.md").read_text()


def test_every_command_in_the_readme_exists_with_its_options():
    commands = typer.main.get_command(cli.app).commands
    lines = [line.split("#")[0] for line in TEXT.splitlines() if line[:1] != "|"]
    lines += re.findall(r"`(graticule [^`]+)`", TEXT)
    seen = 0
    for line in lines:
        words = shlex.split(line) if "graticule " in line or "pipeline.cli" in line else []
        start = next((i for i, w in enumerate(words) if w in ("graticule", "pipeline.cli")), None)
        if (
            start is None
            or words[start + 1 :] == []
            or not line.lstrip().startswith(("graticule", "torchrun", "accelerate"))
        ):
            continue
        verb, *rest = words[start + 1 :]
        command = commands[verb]
        if hasattr(command, "commands"):  # a group
            command = command.commands[rest[0]]
        options = {o for p in command.params for o in p.opts}
        assert {w.partition("=")[0] for w in rest if w.startswith("--")} <= options, line
        seen += 1
    assert seen > 10


def rows_of(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|\n").split("|")] for line in text.splitlines() if line[:3] == "| `"]


def test_its_table_says_of_each_recipe_what_the_recipe_says():
    known = {f"`{r.name}`": [r.facts[f] for f in COLUMNS] for r in recipes().values()}
    rows = [row for row in rows_of(TEXT) if row[0] in known]
    assert len(rows) >= 5
    assert all(rest == known[name] for name, *rest in rows)


def test_the_page_of_recipes_is_what_the_command_prints():
    """graticule recipes --markdown; all of them."""
    page = (ROOT / "docs" / "recipes.md").read_text().splitlines()
    table = markdown_table(recipes().values())
    first = page.index(table[0])
    assert page[first : first + len(table)] == table


def test_every_file_and_make_target_that_it_names_exists():
    for path in re.findall(r"\]\(((?!http)[^)]+)\)", TEXT):
        assert (ROOT / path).is_file(), path
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.M))
    assert set(re.findall(r"make ([a-z-]+)", TEXT)) <= targets

"""Experiments as programs: every public function of a module here is a recipe `paper.function`.

A paper is a module, or a package of modules.

A recipe returns a full RunConfig. Its docstring is a title line and then the lines Command:, Data:, Cost:,
Published: and Measured:; the last four are the columns of `graticule recipes` and of the README's table.
"""

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from pipeline.config import nearest
from pipeline.plan import RunConfig
from pipeline.spec import UserError

COLUMNS = ("Data", "Cost", "Published", "Measured")
FACTS = ("Command", *COLUMNS)


@dataclass(frozen=True)
class Recipe:
    """A named experiment and what its docstring says of it."""

    name: str
    make: Callable[[], RunConfig]
    title: str
    facts: dict[str, str]  # one entry for each of FACTS


def recipes() -> dict[str, Recipe]:
    """All recipes by name, in the order of their files and lines."""
    found = {}
    for info in pkgutil.walk_packages(__path__, f"{__name__}."):
        module = importlib.import_module(info.name)
        paper = info.name.removeprefix(f"{__name__}.").partition(".")[0]
        functions = [f for f in vars(module).values() if inspect.isfunction(f) and f.__module__ == module.__name__]
        for function in functions:
            if not function.__name__.startswith("_"):
                name = f"{paper}.{function.__name__}"
                found[name] = Recipe(name, function, *_read_docstring(name, inspect.getdoc(function) or ""))
    return found


def find(name: str) -> Recipe:
    """The recipe of that name; UserError with the nearest name otherwise."""
    known = recipes()
    if name not in known:
        raise UserError(f"recipe={name!r} is unknown; {nearest(name, known)} (`graticule recipes` lists all)")
    return known[name]


def markdown_table(found: Iterable[Recipe]) -> list[str]:
    """Lines of a table: recipe, what it is, and its facts."""
    head = ["recipe", "what", *(fact.lower() for fact in COLUMNS)]
    rows = [[f"`{r.name}`", r.title, *(r.facts[fact] for fact in COLUMNS)] for r in found]
    return [f"| {' | '.join(row)} |".replace("|  |", "| |") for row in (head, ["---"] * len(head), *rows)]


def _read_docstring(name: str, doc: str) -> tuple[str, dict[str, str]]:
    title, _, rest = doc.partition("\n")
    facts, current = {}, None
    for line in rest.splitlines():
        head, colon, tail = line.partition(":")
        if colon and head in FACTS:
            current = head
            facts[head] = tail.strip()
        elif current and line.strip():
            facts[current] += " " + line.strip()
    missing = [f for f in FACTS if f not in facts]
    if missing:
        raise ValueError(f"recipe {name}: docstring lacks {', '.join(missing)}")
    return title.rstrip("."), facts

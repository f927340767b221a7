"""docs/reliability.md is true as far as words can be checked: the tests, files, keys and commands it names exist."""

import ast
import re
import tomllib
from pathlib import Path

import pytest
import typer

from jobs.cluster import Cluster
from pipeline import cli
from pipeline.plan import ExecConfig, override_all
from pipeline.recipes import find

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "reliability.md").read_text()
TEST = re.compile(r"tests/[\w/]+\.py::\w+")
SETTING = re.compile(r"--set (?:'([^']+)'|([^\s`]+))")


@pytest.mark.parametrize("page", ["README.md", "docs/reliability.md"])
def test_every_test_that_a_page_names_exists(page):
    for link in TEST.findall((ROOT / page).read_text()):
        path, name = link.split("::")
        assert (ROOT / path).is_file(), link
        tree = ast.parse((ROOT / path).read_text())
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, link


def test_each_of_our_promises_has_a_test_and_each_fault_too():
    numbered = dict(re.findall(r"^(\d+)\. (.*(?:\n   .*)*)", PAGE, flags=re.M))
    (ours,) = (line for line in PAGE.splitlines() if line.startswith("| **graticule** |"))
    for cell in ours.split("|")[2:-1]:
        numbers = re.findall(r"\[(\d+)\]", cell)
        assert numbers, cell
        assert all(TEST.search(numbered[n]) for n in numbers), cell
    faults = PAGE.split("## Faults")[1].split("##")[0].strip().splitlines()[2:]
    assert len(faults) > 20
    for row in faults:
        assert TEST.search(row), row


def test_every_setting_that_it_shows_is_taken():
    settings = [a or b for a, b in SETTING.findall(PAGE)]
    assert len(settings) > 10
    for setting in settings:
        key = setting.split("=")[0]
        if key == "exec.ds_config":  # a file of the user's
            assert "ds_config" in ExecConfig.model_fields
        else:
            override_all(find("mspie.table5_f").make(), ExecConfig(), [setting])
    for key in re.findall(r"exec\.(\w+)", PAGE):
        assert key == "json" or key in ExecConfig.model_fields, key


def test_every_key_of_a_cluster_that_it_shows_is_taken():
    (block,) = re.findall(r"```toml\n(.*?)```", PAGE, flags=re.S)
    Cluster.model_validate({"executor": "slurm", **tomllib.loads(block)})


def test_every_command_that_it_shows_exists_with_its_options():
    commands = typer.main.get_command(cli.app).commands
    shown = re.findall(r"`graticule ([^`]+)`", PAGE)
    assert shown
    for line in shown:
        verb, *words = line.split()
        options = {o for p in commands[verb].params for o in p.opts}
        assert {w for w in words if w.startswith("--")} <= options, line


def test_every_file_of_the_project_that_it_names_exists():
    for path in re.findall(r"(?:tests|docs|slurm|pipeline|jobs)/[\w/]+\.(?:py|md|toml|sh)", PAGE):
        assert (ROOT / path).is_file(), path
    for path in re.findall(r"\]\(((?!http)[^)]+)\)", PAGE):
        assert (ROOT / "docs" / path).is_file(), path

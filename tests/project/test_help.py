"""What a newcomer asks Python and the repository."""

import pydoc
import re
import tomllib
from pathlib import Path

import pytest
from helpers.layer_kinds import NAMES as LAYER_NAMES

import fastdrop as fd

ROOT = Path(__file__).parents[2]


def test_the_package_introduces_its_modules():
    shown = pydoc.render_doc(fd, renderer=pydoc.plaintext)
    for name in ("layers", "mc", "schedules", "adapters"):
        assert f"`{name}`" in shown.split("PACKAGE CONTENTS")[0]


@pytest.mark.parametrize("name", LAYER_NAMES)
def test_help_of_a_layer_is_of_the_layer(name):
    """Nothing private, and not the whole docstring of its op."""
    shown = pydoc.render_doc(getattr(fd.layers, name), renderer=pydoc.plaintext)
    assert not re.search(r"^ \|  _[a-z]", shown, re.MULTILINE)
    assert len(shown.splitlines()) < 160


def test_readme_is_short_and_has_the_two_commands():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 150
    install = "python3 -m venv .venv && .venv/bin/pip install -e "
    assert lines.count(install + "'.[demo]' && .venv/bin/python -m fastdrop train") == 1
    assert lines.count(install + "'.[test]' && .venv/bin/pytest") == 1


@pytest.mark.skipif(not (ROOT / "CITATION.cff").exists(), reason="a checkout has it")
def test_one_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (cited,) = re.findall(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert fd.__version__ == project["version"] == cited

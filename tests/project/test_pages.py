"""README and the pages of docs/: every block of Python runs, and prints what the page says.

Each page is one script in a process of its own: its blocks ```python in their order. What they
print must be the block ```output that follows them.
"""

import re
import subprocess
import sys
from importlib.util import find_spec
from itertools import zip_longest
from os import environ, pathsep
from pathlib import Path

import numpy as np
import pytest

import fastdrop as fd

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"^```(\w*).*?\n(.*?)^```$", re.DOTALL | re.MULTILINE)
ALL = sorted(
    str(path.relative_to(ROOT))
    for path in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    if "_build" not in path.parts
)
PAGES = [page for page in ALL if "```python" in (ROOT / page).read_text()]
# Pages of other libraries, which take seconds to import: slow tests.
NEEDS = {
    "docs/guides/dask_mpi.md": ["dask", "mpi4py"],
    "docs/guides/jax.md": ["jax"],
    "docs/guides/keras.md": ["keras", "torch"],
    "docs/guides/others.md": ["autograd", "numba", "sklearn", "thinc"],
    "docs/guides/sklearn.md": ["sklearn"],
    "docs/guides/torch.md": ["torch"],
}
BETWEEN = "\x00"  # printed behind each block


def script(text):
    """The page's Python, each line where it stands in the page, so that a traceback tells it."""
    lines = [""] * text.count("\n")
    for fence in FENCE.finditer(text):
        if fence[1] == "python":
            first = text[: fence.start()].count("\n") + 1
            block = fence[2].splitlines()
            lines[first : first + len(block)] = block
            lines[first + len(block)] = f"print({BETWEEN!r}, end='')"  # where the fence ends
    return "\n".join(lines) + "\n"


def expected(text):
    """What each block of Python prints, as the page says; None where it shows no output."""
    blocks = [fence.groups() for fence in FENCE.finditer(text)]
    for (kind, _), (after, output) in zip_longest(blocks, blocks[1:], fillvalue=("", "")):
        if kind == "python":
            yield output if after == "output" else None


@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=pytest.mark.slow if page in NEEDS else []) for page in PAGES]
)
def test_page(page, tmp_path):
    if missing := [name for name in NEEDS.get(page, ()) if not find_spec(name)]:
        pytest.skip(f"needs {', '.join(missing)}")
    text = (ROOT / page).read_text()
    code = tmp_path / "page.py"
    code.write_text(script(text))
    paths = [str(Path(fd.__file__).parents[1]), environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, code],
        cwd=tmp_path,
        env={
            **environ,
            "PYTHONPATH": pathsep.join(filter(None, paths)),
            "OPENBLAS_NUM_THREADS": "1",  # the matrices are small
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{page}:\n{done.stderr}"
    *printed, rest = done.stdout.split(BETWEEN)
    assert rest == ""
    for block, (shown, output) in enumerate(zip(printed, expected(text), strict=True)):
        assert shown == (output or ""), f"block {block + 1} of {page} prints this"


def test_every_page_that_needs_a_library_is_there():
    assert set(NEEDS) <= set(PAGES)


@pytest.mark.parametrize("page", ALL)
def test_links_lead_to_files(page):
    """As a reader of the repository follows them; those of the site are Sphinx's to check."""
    text = re.sub(r"```.*?```|`[^`\n]*`", "", (ROOT / page).read_text(), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        if not re.match(r"https?:", link):
            assert (ROOT / page).parent.joinpath(link).is_file(), link


def test_lines_of_a_page():
    page = "```python\nprint(1)\n```\n\n```output\n1\n```\n\n```python\nx = 2\n```\ntext\n"
    assert list(expected(page)) == ["1\n", None]
    assert script(page).splitlines()[1] == "print(1)"
    assert script(page).splitlines()[9] == "x = 2"


def test_the_specification_gives_its_coefficients_twice():
    """As text, and in the program, which compares them with fastdrop's."""
    text = (ROOT / "docs/stream.md").read_text()
    told = dict(re.findall(r"^(LOG|SIN|COS|LN2|TURN) +((?:[0-9a-f]{8} ?)+)", text, re.MULTILINE))
    told = {name: words.strip() for name, words in told.items()}
    names = re.findall(r'^(.*) = numbers\("(.*)"\)$', text, re.MULTILINE)
    told["LN2, TURN"] = f"{told.pop('LN2')} {told.pop('TURN')}"
    assert dict(names) == told


def test_pictures_of_masks_are_what_fastdrop_draws():
    image = pytest.importorskip("PIL.Image")
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        import masks
    finally:
        sys.path.pop(0)
    drawn = {name: np.asarray(masks.image(levels)) for name, levels in masks.pictures()}
    there = {path.stem: np.asarray(image.open(path)) for path in (ROOT / "docs/masks").iterdir()}
    assert there.keys() == drawn.keys()
    for name, picture in drawn.items():
        np.testing.assert_array_equal(there[name], picture, err_msg=name)
    text = (ROOT / "docs/variants.md").read_text()
    assert set(re.findall(r"\(masks/(\w+)\.png\)", text)) == drawn.keys()

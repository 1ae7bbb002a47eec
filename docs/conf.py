"""How the site is built: ``python -m sphinx -W docs docs/_build/html``. No network is needed."""

import os
import re
from importlib.util import find_spec
from pathlib import Path

import fastdrop

project = "fastdrop"
author = "the fastdrop developers"
copyright = "2026, the fastdrop developers"
release = version = fastdrop.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "numpydoc"]
default_role = "py:obj"  # `Layer` in a docstring is a link, if there is such a name
exclude_patterns = ["_build"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3

# Each name of `__all__`, with its docstring; base classes' methods stand with the base.
autodoc_default_options = {"members": True, "member-order": "groupwise"}
autodoc_typehints = "none"  # the docstrings have them, in words
os.environ.setdefault("KERAS_BACKEND", "torch")
numpydoc_show_class_members = False

html_theme = "furo"
html_title = f"fastdrop {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False

linkcheck_anchors = False


def rubrics(app, what, name, obj, options, lines):
    """Headings in docstrings of modules, which numpydoc leaves alone, are no sections of a page."""
    if what == "module":
        text = re.sub(r"^(\w+)\n-{3,}$", r".. rubric:: \1\n", "\n".join(lines), flags=re.MULTILINE)
        lines[:] = text.split("\n")


def gallery(docs):
    """A picture of each study that leads to its section of STUDIES.md."""
    headings = re.findall("^## (.*)$", (docs.parent / "STUDIES.md").read_text(), re.MULTILINE)
    found = sorted(docs.glob("studies/*/*.png"), reverse=True)
    yield ":::{container} gallery"
    for study, picture in sorted({path.parent.name: path for path in found}.items()):
        section = "STUDIES.md"
        for heading in headings:
            if study in heading:
                section += "#" + re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")
                break
        yield f"[![{study}]({picture.relative_to(docs)})]({section})"
    yield ":::"


def of_adapter(section):
    """The reference of an adapter, if it can be imported where this is built."""
    adapter = section[1]
    needed = [{"mpi": "mpi4py"}.get(adapter, adapter), *(["torch"] if adapter == "keras" else [])]
    if all(map(find_spec, needed)):
        return section[0]
    heading = section[0].splitlines()[0]
    return f"{heading}\n\nIts library was not installed where this page was built.\n\n"


def pages(app, name, source):
    """A page links to the files above docs/, as a reader of the repository needs it. In the site
    they are pages of the same names in docs/.
    """
    source[0] = re.sub(r"\]\(\.\./((?:\.\./)*[A-Z]+\.md)", r"](\1", source[0])
    if name == "api/adapters":
        source[0] = re.sub(
            r"(?ms)^## `fastdrop\.adapters\.(\w+)`\n.*?(?=^## |\Z)", of_adapter, source[0]
        )
    if name == "gallery":
        source[0] += "\n".join(["", *gallery(Path(app.srcdir)), ""])


def setup(app):
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", rubrics)
    app.connect("source-read", pages)

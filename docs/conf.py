"""Sphinx: these pages, and the reference from the docstrings. Nothing is fetched, so it builds offline."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "src"))

from sphinx.ext.napoleon import Config, GoogleDocstring

import devicekit

project = "devicekit"
author = "the devicekit authors"
copyright = author
version = release = devicekit.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build", "README.zh.md", "examples/third_party_backend"]

myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
smartquotes = False

html_theme = "furo"
html_title = f"devicekit {release}"
html_copy_source = False
html_show_copyright = False


def read_docstring(app, what, name, obj, options, lines):
    """Our docstrings as Sphinx wants them: indented examples become literal blocks, Args: and its like become fields.

    Fields not for attributes: sphinx.ext.napoleon takes what stands before a colon there for a type.
    """
    marked = []
    for before, line in zip(["", *lines], lines, strict=False):
        above = next((text for text in reversed(marked) if text.strip()), "")
        if line.startswith("    ") and not before.strip() and above and not above.startswith(" "):
            marked += ["::", ""]
        marked.append(line)
    if what not in ("attribute", "property"):
        marked = GoogleDocstring(marked, Config(), app, what, name, obj, options).lines()
    lines[:] = marked


def setup(app):
    """Sphinx calls this."""
    app.connect("autodoc-process-docstring", read_docstring)

"""Sphinx's settings for the site, which `make docs` writes to build/site."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.domains.python import PyObject

import optuna_s2e

ROOT = Path(__file__).parent.parent

project = "optuna_s2e"
version = release = optuna_s2e.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
]
exclude_patterns = ["optunahub/**", "templates/**"]
templates_path = ["templates"]
default_role = "py:obj"  # `names` in docstrings are links where there is something to link to

html_theme = "furo"
pygments_dark_style = "github-dark"
html_title = "optuna_s2e"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"
html_show_sphinx = False
html_show_copyright = False
html_copy_source = False

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_fence_as_directive = ["math"]  # GitHub draws such fences, too
myst_heading_anchors = 4  # [links](page.md#to-a-heading), as on GitHub

autosummary_ignore_module_all = False
autodoc_type_aliases = {
    name: name for name in ("npt.ArrayLike", "FloatArray", "IntArray", "Network", "Statistics")
}
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
napoleon_numpy_docstring = False
napoleon_use_ivar = True
strip_signature_backslash = True  # else attributes lose the underscore at their end

# Annotations and docstrings name classes of other packages and of private modules: no page here.
nitpicky = True
nitpick_ignore_regex = [("py:(class|data|exc|obj)", r".*")]
suppress_warnings = ["ref.python"]  # "theta" in a docstring may be one of several attributes

# Pages that stand beside README.md, where GitHub looks for them.
TOP_PAGES = {"CHANGELOG": "changelog", "CONTRIBUTING": "contributing", "SECURITY": "security"}
TOP_LINK = re.compile(r"\]\((?:\.\./)*(CHANGELOG|CONTRIBUTING|SECURITY|README)\.md")

# Python has no docstrings for constants and aliases.
CONSTANTS = {
    "optuna_s2e.coteaching.DATA_SETS": "The names that `load_data` knows.",
    "optuna_s2e.coteaching.METHODS": "The methods that have a name, with their default options.",
    "optuna_s2e.coteaching.NETWORKS": "The networks that have a name, as functions of "
    "(input_shape, n_classes).",
    "optuna_s2e.distributions.Family": "One factor of p_theta: `Beta`, `Dirichlet` or "
    "`Categorical`.",
    "optuna_s2e.distributions.Key": "What random numbers depend on: ints and strings.",
    "optuna_s2e.estimators.DEFAULT_ESTIMATOR": "The estimator that is used if none is named.",
    "optuna_s2e.estimators.ESTIMATORS": "The estimators by name.",
    "optuna_s2e.estimators.SIGNS": 'The signs that a step of "paper" may have: "-" (Eq 9) and "+" '
    "(Eq 8).",
    "optuna_s2e.surrogate.MAX_POINTS": "Most points that a Gaussian process is fitted to.",
    "optuna_s2e.surrogate.N_POINTS": "Points of the grid on which schedules are compared.",
}


def read_page(app: Sphinx, docname: str, source: list[str]) -> None:
    """Show the pages beside README.md, and turn links to them into links within the site."""
    for file, page in TOP_PAGES.items():
        if docname == page:
            text = (ROOT / f"{file}.md").read_text()
            source[0] = re.sub(r"\]\((?!https?:|#|docs/)", "](../", text).replace("](docs/", "](")
    source[0] = TOP_LINK.sub(lambda m: f"](/{TOP_PAGES.get(m[1], 'index')}.md", source[0])


def edit_docstring(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    """Make reStructuredText of what our docstrings have besides."""
    if name in CONSTANTS:
        lines[:] = [CONSTANTS[name]]
    text = "\n".join(lines)
    text = re.sub(r"\$([^$]+)\$", lambda m: f":math:`{' '.join(m[1].split())}`", text)
    # a colon in the first line of what is returned does not end a type
    text = re.sub(r"^(Returns:\n +)(?=\S)", r"\1: ", text, flags=re.MULTILINE)
    lines[:] = text.split("\n")


def edit_signature(
    app: Sphinx,
    what: str,
    name: str,
    obj: Any,
    options: Any,
    signature: str | None,
    returns: str | None,
) -> tuple[str | None, str | None]:
    """Write the name of an alias where Sphinx writes its own class around it."""
    alias = re.compile(r"TypeAliasForwardRef\('(?:npt\.)?(\w+)'\)|\bnpt\.(?=ArrayLike)")
    return signature and alias.sub(r"\1", signature), returns and alias.sub(r"\1", returns)


def skip_member(
    app: Sphinx, what: str, name: str, obj: Any, skip: bool, options: Any
) -> bool | None:
    """Leave out what scikit-learn adds to classes for its routing of metadata."""
    return True if re.fullmatch(r"set_\w+_request", name) else None


def write_math(translator: Any, node: nodes.math | nodes.math_block) -> None:
    """Write a formula as MathML, which browsers draw without a script."""
    display = "block" if isinstance(node, nodes.math_block) else "inline"
    formula = node.astext().replace("{aligned}", "{align*}")  # which latex2mathml knows
    translator.body.append(convert(formula, display=display))
    raise nodes.SkipNode


def keep_percent_signs(app: Sphinx, doctree: nodes.document) -> None:
    """Keep "40 %" in one line."""
    for text in list(doctree.findall(nodes.Text)):
        if " %" in text and not isinstance(text.parent, nodes.literal | nodes.literal_block):
            kept = re.sub(r"(?<=\d) %", "\N{NO-BREAK SPACE}%", text)
            text.parent.replace(text, nodes.Text(kept))


def setup(app: Sphinx) -> None:
    """Connect the functions above."""
    for field in PyObject.doc_field_types:
        if field.name == "variable":
            field.label = "Attributes"
    app.connect("doctree-read", keep_percent_signs)
    app.connect("source-read", read_page)
    app.connect("autodoc-process-docstring", edit_docstring, priority=100)  # before napoleon
    app.connect("autodoc-process-signature", edit_signature)
    app.connect("autodoc-skip-member", skip_member)
    app.add_html_math_renderer("mathml", (write_math, None), (write_math, None))

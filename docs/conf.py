"""Sphinx configuration. Build with `make docs`; warnings are errors there."""

import os
import pathlib
import sys

import jax

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE / "_extensions"))

import flatjax

project = "flatjax"
author = "The flatjax authors"
project_copyright = "The flatjax authors, Apache-2.0"
version = release = flatjax.__version__

extensions = [
    "myst_nb",  # Markdown pages, and pages whose code cells are run by the build
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "mathml",  # formulas that need no script
    "sphinx.ext.viewcode",
    "api_pages",  # writes docs/api/; lets patterns of index.md match nothing
    "docstring_markup",  # `$...$` and [`name`][] in docstrings
]
exclude_patterns = ["_build", "_extensions"]
default_role = "py:obj"
add_module_names = False

# Docstrings: Google style, types in the description.
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"
autosummary_generate = False
toc_object_entries_show_parents = "hide"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
napoleon_custom_sections = [("Yields", "returns_style"), "Cost", "Reference"]

# Markdown: $...$ and $$...$$, definition lists, directives by colons.
myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
# Pages with code cells run at every build and any exception fails it.
# The pages compile many programs and run little: as in tests/conftest.py.
if "XLA_FLAGS" not in os.environ:
    emitters = " --xla_cpu_use_fusion_emitters=false" if jax.__version_info__ < (0, 11) else ""
    os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0" + emitters
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 180
nb_merge_streams = True

html_math_renderer = "mathml"
html_theme = "sphinx_book_theme"
html_title = f"flatjax {release}"
html_theme_options = {
    "show_toc_level": 2,
    "home_page_in_toc": True,
    "navbar_persistent": [],  # the side bar has the search already
}
html_context = {"default_mode": "auto"}  # light or dark as the system is
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_favicon = "_static/favicon.svg"
html_show_sourcelink = False

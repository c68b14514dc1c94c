"""How Sphinx builds these pages: `make docs`. Nothing here needs a network."""

from importlib.metadata import version as installed_version

project = "Holdfast"
author = "The Holdfast authors"
copyright = author  # noqa: A001 - the name that Sphinx reads
release = version = installed_version("holdfast")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
exclude_patterns = ["build"]

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
napoleon_google_docstring = True
napoleon_numpy_docstring = False

html_theme = "furo"
html_title = "Holdfast"
html_show_sourcelink = False
html_copy_source = False

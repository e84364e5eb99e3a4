"""Sphinx: `make docs`. Everything is local; a warning is an error."""

import os
import sys
from pathlib import Path

import thinned

sys.path.insert(0, str(Path(__file__).parent))

project = "Thinned"
release = version = thinned.__version__
author = copyright = "the Thinned authors"
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
]
html_theme = "furo"
html_title = "Thinned"
# Tables of a hundred characters fit.
html_theme_options = {"light_css_variables": {"code-font-size": "0.72rem"}}
html_static_path = ["_static"]
html_css_files = ["doors.css"]
exclude_patterns = ["_build", "*.ipynb", "jupyter_execute"]
myst_heading_anchors = 3
# They would make a long dash of the two before a flag.
smartquotes = False
myst_enable_extensions = ["colon_fence"]


# "off" builds the pages around the tutorial's outputs, for those who have just run it otherwise.
nb_execution_mode = os.environ.get("NB_EXECUTION", "cache")
nb_execution_timeout = 1200
nb_execution_raise_on_error = True
nb_merge_streams = True
autodoc_typehints = "description"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
napoleon_google_docstring = True
napoleon_use_ivar = True
os.environ.setdefault("JAX_PLATFORMS", "cpu")

"""Settings of the site that `make docs` builds: Sphinx over the pages as they lie, API pages from docstrings."""

from __future__ import annotations

# Imported here: autodoc would do it with typing.TYPE_CHECKING on, which LlamaIndex's own models do not survive.
import langchain_msa  # noqa: F401
import llama_index.indices.managed.msa
import llama_index.llms.msa  # noqa: F401
from msa_plugin import __version__

project, author, copyright = "msa-plugin", "the msa-plugin authors", "2026, the msa-plugin authors"
release = version = __version__
root_doc = "docs/index"
html_theme, html_title = "furo", f"msa-plugin {release}"
extensions = ["myst_parser", "sphinx.ext.autodoc"]

# The pages link to each other across the repository, as they do where it is read on the web: the source is its root.
source_suffix = {".md": "markdown"}
include_patterns = ["*.md", "docs/**", "notebooks/README.md"]
exclude_patterns = [
    ".*",
    ".*/**",
    "src",
    "kernels",
    "integrations",
    "tests",
    "shared",
    "dist",
    "build",
    "site",
    "**/*.py",
]
myst_heading_anchors = 4

autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "undoc-members": True, "show-inheritance": True}
autodoc_mock_imports = ["ray", "faiss"]
autodoc_preserve_defaults = True
default_role = "code"
pygments_style = "friendly"

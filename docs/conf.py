"""The site of the documents (make docs): Sphinx, MyST and furo.

The source is the repository's root, so that README.md and docs/ link to each other and to files of the code as they do
on a forge; what a link names must be there, and so must its anchor: every warning is an error.
"""

project = "gesr-batch-scoring"
html_title = project
root_doc = "docs/index"
include_patterns = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/*.md"]
# Folders that need not be walked.
exclude_patterns = [".*", "var", "build", "benchmarks", "gesr_core", "jobs", "tests", "*.egg-info"]
extensions = ["myst_parser"]
# Anchors as a forge makes them.
myst_heading_anchors = 4
# Indented blocks are of no language.
highlight_language = "text"
html_theme = "furo"
# The root page lies in docs/: one that leads there.
html_extra_path = ["site"]

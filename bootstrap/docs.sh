#!/bin/sh
# docs.sh: builds the site of the documents into var/docs. A link to nothing, an unknown anchor: every warning is an error.
set -eu
if ! python -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo 'not built, and links not checked: Sphinx wants a Python from 3.11 on'
    exit 0
fi
# All of it anew (-E, -a): what is kept from a former build is not checked again.
python -m sphinx -q -E -a --fail-on-warning --keep-going -c docs -d var/doctrees . var/docs
echo "var/docs/index.html"

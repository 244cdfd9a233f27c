#!/bin/sh
# Runs its arguments with the first Python from 3.10 on that it finds: $PYTHON, the environment in $ENV, the PATH, pyenv.
# It is the one file here that cannot be Python.
ok() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 10))' </dev/null >/dev/null 2>&1; }

for candidate in "${PYTHON:-}" "${ENV:-.venv}/bin/python" python3 python3.14 python3.13 python3.12 python3.11 python3.10 python \
    "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.1[0-9]*/bin/python3; do
    if [ -n "$candidate" ] && ok "$candidate"; then exec "$candidate" "$@"; fi
done
echo "gesr set-up: no Python from 3.10 on is here: install one, or name it (make env PYTHON=/path/to/python3)" >&2
exit 2

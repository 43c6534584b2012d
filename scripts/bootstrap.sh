#!/bin/sh
# Makes the virtual environment at $1, anew, from a Python that the project supports: $PYTHON if set, else the first
# of python3, python3.13, python3.12, python3.11 that is 3.11 to 3.13. Says what to do where it cannot.
set -eu

venv=${1:?usage: bootstrap.sh VENV}
supported='import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))'

is_supported() { "$1" -c "$supported" >/dev/null 2>&1; }

python=
if [ -n "${PYTHON:-}" ]; then
    is_supported "$PYTHON" || { echo "PYTHON=$PYTHON is not a Python 3.11, 3.12 or 3.13 that runs" >&2; exit 1; }
    python=$PYTHON
else
    for candidate in python3 python3.13 python3.12 python3.11; do
        if is_supported "$candidate"; then python=$candidate; break; fi
    done
fi
if [ -z "$python" ]; then
    echo "no Python 3.11, 3.12 or 3.13 found (python3 here: $(python3 --version 2>&1 || true))." >&2
    echo "Install one (Debian, Ubuntu: apt install python3 python3-venv), or name one: make up PYTHON=/path/to/python3.12" >&2
    exit 1
fi

if ! "$python" -c 'import ensurepip, venv' >/dev/null 2>&1; then
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    echo "$python cannot make virtual environments: its ensurepip is missing." >&2
    echo "On Debian and Ubuntu it is a package of its own: apt install python$version-venv" >&2
    exit 1
fi

echo "making $venv with $("$python" --version)"
"$python" -m venv --clear "$venv"

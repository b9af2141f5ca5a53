#!/usr/bin/env bash
# Makes the virtual environment from the lock file. Usage: install.sh PYTHON VENV
set -euo pipefail
python=$1 venv=$2

fail() {
  printf '%s\n' "$@" >&2
  exit 1
}

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null ||
  fail "Python 3.11 or later is needed to run everything here; '$python' is $("$python" --version 2>&1 || echo missing)." \
    "Install it, or name another: make PYTHON=/path/to/python3.12 ..."

if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
  [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null ||
    fail "Python's venv module is needed for the virtual environment: sudo apt-get install python3-venv"
  echo "installing python3-venv, for the virtual environment"
  apt-get -o DPkg::Lock::Timeout=300 update -qq
  apt-get -o DPkg::Lock::Timeout=300 install -qq -y --no-install-recommends python3-venv
fi

echo "making the virtual environment $venv"
"$python" -m venv "$venv"
"$venv/bin/pip" install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.txt
"$venv/bin/pip" install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .

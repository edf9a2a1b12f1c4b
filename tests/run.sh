#!/usr/bin/env bash
# The tests as CI runs them: ruff and pytest in .venv. With --all also the long ones, on whole corpora.
#   bash tests/run.sh [--all] [pytest arguments]
set -euo pipefail
cd "$(dirname "$0")/.."
select=(-m "not slow")
if [ "${1:-}" = "--all" ]; then
    select=()
    shift
fi
[ -x .venv/bin/python ] || python3 -m venv .venv
if ! cat requirements.txt tests/requirements.txt | cmp -s - .venv/installed-tests.txt; then
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt -r tests/requirements.txt
    cp requirements.txt .venv/installed.txt
    cat requirements.txt tests/requirements.txt >.venv/installed-tests.txt
fi
.venv/bin/python -m ruff check .
.venv/bin/python -m ruff format --check .
.venv/bin/python -m pytest "${select[@]}" "$@"

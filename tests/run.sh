#!/usr/bin/env bash
# The tests as CI runs them: ruff and pytest in .venv, two files at a time. With --all also the long ones.
# The report is opened in Chromium; where there is none, and this runs as root on Debian (CI), it is installed first.
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
if ! command -v chromium chromium-browser google-chrome >/dev/null && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null
then
    { apt-get update && apt-get install --yes --no-install-recommends chromium; } >/dev/null 2>&1 ||
        echo "chromium could not be installed: the tests that open the report are skipped" >&2
fi
.venv/bin/python -m ruff check .
.venv/bin/python -m ruff format --check .
.venv/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder "${select[@]}" "$@"

"""The recipes, run as a user runs them, in a copy of the project.

.venv/bin/python -m pytest tests/test_recipes.py
"""

import json
import re
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory):
    """The quickstart in a copy of the project that has this environment as its .venv: (folder, what it printed)."""
    folder = tmp_path_factory.mktemp("clone") / "project"
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(".venv", ".git", "out", "__pycache__", ".*_cache"))
    (folder / ".venv").symlink_to(sys.prefix)
    done = subprocess.run(["bash", "recipes/quickstart.sh"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_quickstart_beats_its_floor_and_shows_where_things_lie(quickstart):
    folder, shown = quickstart
    out = folder / "out" / "rare_en"
    systems = json.loads((out / "metrics.json").read_text())["systems"]
    f1, floor = (systems[name]["entity"]["micro"]["f1"] for name in ("MiniLM", "votes"))
    assert f1 >= 0.40 and 0.2 < floor < f1
    assert re.search(rf"(?m)^MiniLM +{f1:.4f} ", shown) and re.search(rf"(?m)^votes +{floor:.4f} ", shown)  # the table
    for name in ("minilm", "minilm/test.pred.jsonl", "vote.jsonl", "metrics.json", "report.html"):
        assert f"out/rare_en/{name}" in shown and (out / name).exists()


def test_steps_are_one_visible_line_each(quickstart):
    steps = [line for line in quickstart[1].splitlines() if line.startswith("== ")]
    assert [step.split(":")[0] for step in steps] == ["== environment", "== convert", "== fine-tune and predict",
                                                      "== label without a model", "== score", "== done"]  # fmt: skip


@pytest.mark.slow
def test_quickstart_again_gives_the_same_predictions(quickstart):
    folder, _ = quickstart
    pred = folder / "out" / "rare_en" / "minilm" / "test.pred.jsonl"
    before = pred.read_bytes()
    again = subprocess.run(["bash", "recipes/quickstart.sh"], cwd=folder, capture_output=True, text=True)
    assert again.returncode == 0 and pred.read_bytes() == before

"""The recipes, run as a user runs them, in a copy of the project.

.venv/bin/python -m pytest tests/test_recipes.py
"""

import json
import re
import shutil
import subprocess
import sys
from collections import Counter, defaultdict

import pytest
from conftest import ROOT

from utils import read_records, write_jsonl


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory):
    """The quickstart in a copy of the project that has this environment as its .venv: (folder, what it printed)."""
    folder = tmp_path_factory.mktemp("clone") / "project"
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(".venv", ".git", "out", "__pycache__", ".*_cache"))
    (folder / ".venv").symlink_to(sys.prefix)
    done = subprocess.run(["bash", "recipes/quickstart.sh"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def dictionary(train, test):
    """The floor: every leftmost-longest match of a training mention, with its most frequent type."""
    types = defaultdict(Counter)
    for record in train:
        for entity in record["entities"]:
            types[entity["text"].lower()][entity["type"]] += 1
    terms = "|".join(map(re.escape, sorted(types, key=len, reverse=True)))
    pattern = re.compile(rf"(?<!\w)(?:{terms})(?!\w)")
    for record in test:
        found = [{"start": m.start(), "end": m.end(), "type": types[m[0]].most_common(1)[0][0]}
                 for m in pattern.finditer(record["text"].lower())]  # fmt: skip
        yield {"id": record["id"], "doc_id": record["doc_id"], "text": record["text"], "entities": found}


def test_quickstart_beats_a_dictionary_and_shows_where_things_lie(quickstart, cli, tmp_path):
    folder, shown = quickstart
    out = folder / "out" / "rare_en"
    system = json.loads((out / "metrics.json").read_text())["systems"]["MiniLM"]
    f1 = system["entity"]["micro"]["f1"]
    write_jsonl(
        tmp_path / "dictionary.jsonl", dictionary(read_records(out / "train.jsonl"), read_records(out / "test.jsonl"))
    )
    floor = cli(
        "ner_eval.py", "--gold", out / "test.jsonl", "--pred", tmp_path / "dictionary.jsonl", "--format", "json"
    )
    floor = json.loads(floor.stdout)["systems"]["dictionary.jsonl"]["entity"]["micro"]["f1"]
    assert f1 >= 0.40 and 0.2 < floor < f1
    assert re.search(rf"(?m)^MiniLM +{f1:.4f} ", shown)  # the table
    for name in ("minilm", "minilm/test.pred.jsonl", "metrics.json", "report.html"):
        assert f"out/rare_en/{name}" in shown and (out / name).exists()


def test_steps_are_one_visible_line_each(quickstart):
    steps = [line for line in quickstart[1].splitlines() if line.startswith("== ")]
    assert [step.split(":")[0] for step in steps] == ["== environment", "== convert", "== fine-tune and predict",
                                                      "== score", "== done"]  # fmt: skip


@pytest.mark.slow
def test_quickstart_again_gives_the_same_predictions(quickstart):
    folder, _ = quickstart
    pred = folder / "out" / "rare_en" / "minilm" / "test.pred.jsonl"
    before = pred.read_bytes()
    again = subprocess.run(["bash", "recipes/quickstart.sh"], cwd=folder, capture_output=True, text=True)
    assert again.returncode == 0 and pred.read_bytes() == before

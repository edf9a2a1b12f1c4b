"""The recipes, run as a user runs them, in a copy of the project.

.venv/bin/python -m pytest tests/test_recipes.py
"""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT

SYSTEMS = {  # of each recipe: where its report goes, and what it compares at least
    "raredis": (".", {"votes", "encoder", "llm/zero", "llm/shots", "llm/rag", "qlora"}),
    "encoders_vs_llms": ("rare_en", {"bert", "llama"}),
    "instruct_ner": ("reviews_ru", {"encoder_flat", "encoder_per_type", "llm_found", "llm_all"}),
    "gatortron": ("rare_en", {"encoder", "floor"}),
    "pharmaconer": (
        ".",
        {"encoder", "tokens_plain_none", "tokens_plain_all", "tokens_es_all", "json_plain", "json_es"},
    ),
}


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A copy of the project that has this environment as its .venv."""
    folder = tmp_path_factory.mktemp("clone") / "project"
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(".venv", ".git", "out", "__pycache__", ".*_cache"))
    (folder / ".venv").symlink_to(sys.prefix)
    return folder


def bash(folder, *command, **env):
    """Run a recipe somewhere else than where it lies; return what it printed."""
    done = subprocess.run(["bash", *map(str, command)], cwd=folder.parent, capture_output=True, text=True,
                          env={**os.environ, "OMP_NUM_THREADS": "1", **env})  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", SYSTEMS)
def test_each_paper_at_toy_size(name, clone, tmp_path):
    """One table of the systems, a report; run again (one of them), finished stages are skipped, the scores stand."""
    recipe, (place, systems) = clone / "recipes" / f"{name}.sh", SYSTEMS[name]
    shown = bash(clone, recipe, "nowhere", tmp_path, TOY="1")
    metrics = tmp_path / place / "metrics.json"
    scored = json.loads(metrics.read_text())["systems"]
    assert set(scored) >= systems and (tmp_path / place / "report.html").stat().st_size > 10_000
    for system, levels in scored.items():
        assert re.search(rf"(?m)^{re.escape(system)} +{levels['entity']['micro']['f1']:.4f} ", shown)
    if name == "encoders_vs_llms":
        again = bash(clone, recipe, "nowhere", tmp_path, TOY="1")
        assert again.count(": is there\n") == len(systems) and json.loads(metrics.read_text())["systems"] == scored


def test_a_recipe_says_where_its_corpus_is(clone, tmp_path):
    for name in SYSTEMS:
        done = subprocess.run(["bash", clone / "recipes" / f"{name}.sh", tmp_path / "nowhere", tmp_path / "o"],
                              capture_output=True, text=True)  # fmt: skip
        assert done.returncode == 1 and "nowhere" in done.stderr and done.stderr.startswith("error: "), done.stderr


def test_recipes_name_flags_that_exist(clone):
    for path in sorted((clone / "recipes").glob("*.sh")):
        text = re.sub(r"(?m)^#.*", "", path.read_text()).replace("\\\n", " ")
        for script, rest in re.findall(r"(?m)(\w+\.py)\b(.*)$", text):
            known = subprocess.run([sys.executable, clone / script, "--help"], capture_output=True, text=True).stdout
            for flag in re.findall(r"(--[a-z]\w+)", rest):
                assert f"{flag} " in known or f"{flag}\n" in known or f"{flag}]" in known, (path.name, script, flag)


def test_quickstart_in_one_epoch(clone):
    shown = bash(clone, clone / "recipes" / "quickstart.sh", QUICK="1")
    steps = [line for line in shown.splitlines() if line.startswith("== ")]
    assert [step.split(":")[0] for step in steps] == ["== environment", "== convert", "== fine-tune and predict",
                                                      "== label without a model", "== score", "== done"]  # fmt: skip
    systems = json.loads((clone / "out" / "rare_en" / "metrics.json").read_text())["systems"]
    floor = systems["votes"]["entity"]["micro"]["f1"]
    assert 0.2 < floor < 1 and re.search(rf"(?m)^votes +{floor:.4f} ", shown) and "MiniLM" in systems


@pytest.mark.slow
def test_quickstart_beats_its_floor_shows_where_things_lie_and_gives_the_same_again(clone):
    out = clone / "out" / "rare_en"
    shown = bash(clone, clone / "recipes" / "quickstart.sh")
    systems = json.loads((out / "metrics.json").read_text())["systems"]
    f1, floor = (systems[name]["entity"]["micro"]["f1"] for name in ("MiniLM", "votes"))
    assert f1 >= 0.40 and 0.2 < floor < f1
    assert re.search(rf"(?m)^MiniLM +{f1:.4f} ", shown) and re.search(rf"(?m)^votes +{floor:.4f} ", shown)  # the table
    for name in ("minilm", "minilm/test.pred.jsonl", "vote.jsonl", "metrics.json", "report.html"):
        assert f"out/rare_en/{name}" in shown and (out / name).exists()
    before = (out / "minilm" / "test.pred.jsonl").read_bytes()
    shutil.rmtree(out)
    bash(clone, clone / "recipes" / "quickstart.sh")
    assert (out / "minilm" / "test.pred.jsonl").read_bytes() == before

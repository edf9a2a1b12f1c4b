"""The house: scripts stand alone, help is instant, headers and requirements agree, the README's commands exist.

.venv/bin/python -m pytest tests/test_repo.py
"""

import ast
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import time

import pytest
from conftest import ROOT

from utils import read_records, write_iob, write_jsonl

if sys.version_info >= (3, 11):
    import tomllib
else:
    tomllib = pytest.importorskip("tomli")

HOUSE = ["brat2iob.py", "ner_eval.py", "ner_ft_encoder.py", "ner_ft_llm.py", "ner_prompt_openai.py", "ner_rag.py"]
SCRIPTS = [name for name in HOUSE if (ROOT / name).exists()]
HEAVY = ["torch", "transformers", "numpy", "peft", "trl", "openai", "sentence_transformers", "seqeval"]


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """A folder that, on PYTHONPATH, makes every heavy package fail to import: a machine without torch."""
    folder = tmp_path_factory.mktemp("bare")
    for name in HEAVY:
        (folder / f"{name}.py").write_text(f"raise ImportError('{name} must not be needed')\n")
    return folder


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_is_instant_and_needs_no_package(cli, bare, script):
    best = float("inf")
    for _ in range(3):  # the machine may be busy: the best of three
        started = time.perf_counter()
        done = cli(script, "--help", PYTHONPATH=str(bare))
        best = min(best, time.perf_counter() - started)
    assert done.returncode == 0 and done.stderr == ""
    assert best < 0.5
    tree = ast.parse((ROOT / script).read_text(encoding="utf-8"))
    for line in ast.get_docstring(tree).splitlines():
        assert line.strip() in done.stdout  # the docstring is the manual
    for word in ("Reads ", "Writes ", "Needs ", "Source ", "Differs "):
        assert f"\n{word}" in done.stdout


@pytest.mark.parametrize("script", SCRIPTS)
def test_flags_are_few_and_none_is_positional_or_abbreviated(cli, script):
    usage = cli(script, "--help").stdout.split("\n\n")[0]
    flags = set(re.findall(r"--\w+", usage)) - {"--help"}
    common = {"--train_file", "--validation_file", "--test_file", "--output_dir", "--output_file", "--model", "--seed",
              "--limit", "--trust_remote_code"}  # fmt: skip
    assert len(flags - common) <= (28 if script in ("ner_ft_llm.py", "ner_prompt_openai.py") else 20)
    assert "positional arguments" not in cli(script, "--help").stdout
    longest = max(flags, key=len)
    done = cli(script, longest[:-1])
    assert done.returncode == 2 and "Traceback" not in done.stderr


@pytest.mark.parametrize("script", SCRIPTS)
def test_no_script_imports_another_and_utils_none(script):
    for name, allowed in ((script, {"utils"}), ("utils.py", set())):
        tree = ast.parse((ROOT / name).read_text(encoding="utf-8"))
        modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        modules |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        ours = {path.stem for path in ROOT.glob("*.py")}
        assert modules & ours <= allowed
    tops = {m.split(".")[0] for m in modules}
    assert tops <= set(sys.stdlib_module_names)  # utils.py: the standard library alone


def test_the_house_has_no_other_script():
    assert {path.name for path in ROOT.glob("*.py")} <= {*HOUSE, "utils.py"}


@pytest.mark.parametrize("script", SCRIPTS)
def test_header_names_what_requirements_pin(script):
    header = re.search(r"(?m)^# /// script\n((?:#.*\n)+?)# ///$", (ROOT / script).read_text(encoding="utf-8"))
    needs = tomllib.loads(re.sub(r"(?m)^# ?", "", header[1]))["dependencies"]
    pinned = dict(
        re.match(r"([\w-]+)==(\S+)", line).groups()
        for line in (ROOT / "requirements.txt").read_text().splitlines()
        if line and not line.startswith("#")
    )
    assert {re.match(r"[\w-]+", need)[0] for need in needs} <= pinned.keys()
    tree = ast.parse((ROOT / script).read_text(encoding="utf-8"))
    modules = {node.module.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    modules |= {
        alias.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
    }
    third = modules - set(sys.stdlib_module_names) - {"utils"}
    assert third <= {re.match(r"[\w-]+", need)[0].replace("-", "_") for need in needs}


def test_scripts_work_alone_in_an_empty_folder(tmp_path, tiny_models):
    """Each script with utils.py copied somewhere, run from somewhere else, does its stage."""
    home, work = tmp_path / "copied", tmp_path / "work"
    home.mkdir()
    work.mkdir()
    for name in ("utils.py", *SCRIPTS):
        shutil.copy(ROOT / name, home)

    def stage(script, *args):
        command = [sys.executable, home / script, *map(str, args)]
        done = subprocess.run(command, cwd=work, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    stage("brat2iob.py", "--input", ROOT / "data" / "pharma_es", "--output_dir", "records")
    stage("ner_ft_encoder.py", "--model", tiny_models["bert"], "--train_file", "records/train.jsonl", "--limit", 20,
          "--test_file", "records/dev.jsonl", "--output_dir", "model", "--max_length", 100)  # fmt: skip
    table = stage("ner_eval.py", "--gold", "records/dev.jsonl", "--pred", "model/dev.pred.jsonl", "--allow_missing")
    assert "signature: " in table
    assert len(list(read_records(work / "model" / "dev.pred.jsonl"))) == 20
    assert not list(work.rglob("*.part"))


def commands(text):
    """The `python …` commands of a docstring or README, continuation lines joined."""
    joined = re.sub(r"\\\\?\n\s*", " ", text)
    return [shlex.split(line.strip(), comments=True) for line in re.findall(r"(?m)^ *(python \w+\.py .*)$", joined)]


def test_every_command_in_docstrings_and_readme_has_only_flags_that_exist(cli):
    usage = {script: cli(script, "--help").stdout for script in SCRIPTS}
    texts = [ast.get_docstring(ast.parse((ROOT / script).read_text(encoding="utf-8"))) for script in SCRIPTS]
    found = [
        command for text in [*texts, (ROOT / "README.md").read_text(encoding="utf-8")] for command in commands(text)
    ]
    assert len(found) >= 8
    for _, script, *args in found:
        for flag in (word for word in args if word.startswith("--")):
            assert re.search(rf"{flag}\b", usage[script]), f"{script} has no {flag}"


@pytest.fixture
def reader(cli, tmp_path):
    """(a folder where the README's names are small files and a random model, what stands in for hub ids and server)."""
    from test_ner_ft_llm import CHAT, byte_level, save_model
    from test_ner_prompt_openai import Server

    for name in ("utils.py", *SCRIPTS):
        (tmp_path / name).symlink_to(ROOT / name)
    small, whole = tmp_path / "data" / "rare_en", ROOT / "data" / "rare_en"
    for path in [each for split in ("train", "dev", "test") for each in sorted((whole / split).iterdir())[:6]]:
        (small / path.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, small / path.parent.name)
    shutil.copy(whole / "labels.json", small)
    (tmp_path / "my_corpus").symlink_to(small)
    assert cli("brat2iob.py", "--input", small, "--output_dir", tmp_path, "--to", "jsonl").returncode == 0
    for name, copies in {"train": ("NCBItrainset_corpus.jsonl", "train.tsv"), "dev": ("devel.tsv",),
                         "test": ("NCBItestset_corpus.jsonl", "new.jsonl", "test.tsv")}.items():  # fmt: skip
        for copy in copies:
            write = write_iob if copy.endswith(".tsv") else write_jsonl
            write(tmp_path / copy, read_records(tmp_path / f"{name}.jsonl"))
    texts = [record["text"] for record in read_records(tmp_path / "train.jsonl")]
    save_model(tmp_path / "MODEL", byte_level(texts, CHAT))
    (tmp_path / "out" / "rare_en" / "minilm").mkdir(parents=True)  # as the quickstart leaves it
    write_jsonl(tmp_path / "out" / "rare_en" / "minilm" / "test.pred.jsonl", read_records(tmp_path / "test.jsonl"))
    server = Server()
    hub = dict.fromkeys(("meta-llama/Llama-3.2-1B", "meta-llama/Llama-3.1-8B-Instruct"), "MODEL")
    yield tmp_path, hub | {"http://127.0.0.1:8000/v1": server.url}
    server.shutdown()


def test_every_command_of_the_readme_runs(reader, monkeypatch, capfd):
    """In the README's order, as they stand but for hub ids, the server, and what makes a run short."""
    folder, names = reader
    monkeypatch.chdir(folder)
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    found = [shlex.split(line) for line in re.findall(r"`(python \w+\.py [^`]*)`", text)] + commands(text)
    assert {script for _, script, *_ in found} == set(SCRIPTS)
    one = ["--num_train_epochs", "1"]
    short = {"ner_ft_encoder.py": one, "ner_ft_llm.py": [*one, "--max_new_tokens", "4"]}
    for _, script, *args in found:
        command = [script, *(names.get(each, each) for each in args), *short.get(script, [])]
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as done:
            runpy.run_path(script, run_name="__main__")  # in this process: the heavy packages are imported once
        assert done.value.code == 0, f"{' '.join(command)}: {capfd.readouterr().err}"


def test_the_first_commands_of_the_converter_and_the_judge_run_as_they_stand(tmp_path):
    (tmp_path / "data").symlink_to(ROOT / "data")
    for script in ("brat2iob.py", "ner_eval.py"):
        (tmp_path / script).symlink_to(ROOT / script)
        for command in commands(ast.get_docstring(ast.parse((ROOT / script).read_text(encoding="utf-8")))):
            if "data/rare_en" in command or script == "ner_eval.py":
                done = subprocess.run([sys.executable, *command[1:]], cwd=tmp_path, capture_output=True, text=True)
                assert done.returncode == 0, f"{command}: {done.stderr}"


def test_the_readme_has_no_gap_left_to_fill():
    assert not re.search(r"\b(?:QUICK|NCBI|BENCH|TEST)[A-Z]{3,}", (ROOT / "README.md").read_text(encoding="utf-8"))


def test_no_path_of_a_machine_and_no_secret_in_the_project():
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    for name in files or pytest.skip("not a git checkout"):
        text = (ROOT / name).read_bytes()
        assert not re.search(rb"/(home|root|Users)/\w|hf_[A-Za-z0-9]{20}|sk-[A-Za-z0-9]{20}", text), name

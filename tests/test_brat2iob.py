"""brat2iob.py: refusals as users meet them, golden files, properties of random documents, real corpora, sentences."""

import gzip
import itertools
import json
import lzma
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import pytest
from conftest import ROOT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import brat2iob
from utils import fragments, is_iob, read_records, sentence_starts, tag_spans, tokenize

GOLDEN = Path(__file__).parent / "golden"
PROPERTY = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
OVERLAPS = ["longest", "shortest", "first", "last"]
STAND_INS = ["drop", "hull", "first", "longest", "split"]


def write(folder, files):
    """Write {relative name: text or bytes}; return the folder."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def outputs(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def errors(done):
    """The error lines of a finished run; there is no traceback."""
    assert "Traceback" not in done.stderr, done.stderr
    return [line for line in done.stderr.splitlines() if line.startswith("error:")]


# ---------------------------------------------------------------------------- refusals, on the command line

FINE = "".join(f"word\tO\nfever\tB-X\n{'' if i % 3 else chr(10)}" for i in range(3000))
BAD_IOB = {  # name of the input: (content, where the error is, a word of it)
    "empty.iob": ("", "", "no token"),
    "blank.iob": ("\n \n\n", "", "no token"),
    "binary.iob": (bytes(range(256)), ":1", "binary"),
    "utf16.tsv": ("a\tO\n".encode("utf-16"), ":1", "NUL"),
    "latin.iob": (b"a\tO\nni\xf1o\tO\n", ":2", "not UTF-8"),
    "empty_tag.iob": ("a\tO\nb\t\n", ":2", "empty tag"),
    "prefix.iob": ("a\tO\n\nb\tX-D\n", ":3", "unknown tag"),
    "columns.iob": ("a\tO\nb\tNN\tB-D\n", ":2", "3 columns"),
    "one.conll": ("a\tO\nb\n", ":2", "too few columns"),
    "late.iob": (FINE + "b\tX-D\n", ":7001", "unknown tag"),
    "cut.iob.gz": (gzip.compress(FINE.encode())[:-30], ":", "gzip"),
}


@pytest.mark.parametrize("name", BAD_IOB)
def test_a_bad_iob_file_gives_one_line_and_no_output(cli, tmp_path, name):
    content, line, says = BAD_IOB[name]
    write(tmp_path, {name: content})
    done = cli("brat2iob.py", "--input", tmp_path / name, "--output_dir", tmp_path / "out")
    assert done.returncode == 1 and done.stdout == ""
    (error,) = errors(done)
    assert error.startswith(f"error: {tmp_path / name}{line}") and says in error
    assert outputs(tmp_path) == [name]


BAD_BRAT = [
    ({"a.txt": "abc"}, "", "no .ann"),
    ({"a.txt": "abc def", "a.ann": "T1\tA 0 3\tabc\nT2\tA 4 9\tdef\n"}, "/a.ann:2", "not a span"),
    ({"a.txt": "abc", "a.ann": "T1\tA 2 1\tb\n"}, "/a.ann:1", "not a span"),
    ({"a.txt": "abc", "a.ann": "T1\tA x 1\tb\n"}, "/a.ann:1", "TYPE START END"),
    ({"a.txt": "abc", "a.ann": "T1\tA B 0 1\ta\n"}, "/a.ann:1", "TYPE START END"),
    ({"a.txt": bytes(range(256)), "a.ann": ""}, "/a.txt:", "not UTF-8"),
    ({"a.txt": "ab\n\0c", "a.ann": ""}, "/a.txt:2", "NUL"),
    ({"a.txt": "a\nni\xf1o".encode("cp1252"), "a.ann": ""}, "/a.txt:2", "--encoding cp1252"),
    ({"a.txt": "abc", "a.ann": b"\xff\x00\x01"}, "/a.ann:", ""),
    ({"a.txt": "abc", "a.ann": f"T1\tA 0 {'9' * 5000}\tabc\n"}, "/a.ann:1", ""),
    ({"a.ann": "T1\tA 0 1\ta\n"}, "/a.ann", "no .txt"),
]


@pytest.mark.parametrize("files, where, says", BAD_BRAT)
def test_a_bad_brat_folder_gives_one_line_and_no_output(cli, tmp_path, files, where, says):
    write(tmp_path / "in", files)
    done = cli("brat2iob.py", "--input", tmp_path / "in", "--output_dir", tmp_path / "out", "--report", tmp_path / "r")
    assert done.returncode == 1 and done.stdout == ""
    (error,) = errors(done)
    assert error.startswith(f"error: {tmp_path / 'in'}{where}") and says in error
    assert [name for name in outputs(tmp_path) if name != "r"] == [f"in/{name}" for name in sorted(files)]


@pytest.mark.parametrize("files", [{"notes.md": "x"}, {}])
@pytest.mark.parametrize("name", ["missing.iob", "missing", "in", "in/notes.md"])
def test_a_path_that_holds_nothing_to_read_is_refused(cli, tmp_path, files, name):
    write(tmp_path / "in", {"sub/x.md": "x", **files})
    done = cli("brat2iob.py", "--input", tmp_path / name, "--output_dir", tmp_path / "out")
    (error,) = errors(done)
    assert done.returncode == 1 and error.startswith(f"error: {tmp_path / name}:") and not (tmp_path / "out").exists()


def test_a_broken_json_line_is_named_by_the_judge(cli, tmp_path):
    write(tmp_path, {"good.jsonl": '{"id": "a", "text": "x"}\n', "bad.jsonl": '{"id": "a", "text": "x"}\n{broken\n'})
    done = cli("ner_eval.py", "--gold", tmp_path / "good.jsonl", "--pred", tmp_path / "bad.jsonl",
               "--output_file", tmp_path / "m.json")  # fmt: skip
    (error,) = errors(done)
    assert done.returncode == 1 and error.startswith(f"error: {tmp_path / 'bad.jsonl'}:2: not JSON")
    assert outputs(tmp_path) == ["bad.jsonl", "good.jsonl"]


@pytest.mark.parametrize(
    "flags",
    [
        ["--bogus", "1"],
        ["--unit", "word"],
        ["--overlap", "most"],
        ["--out", "x"],
        ["--overlap", "layers", "--discontinuous", "hull"],
        ["extra"],
        ["--encoding", "nonsense"],
        ["--encoding", "base64"],
    ],
)
def test_usage_errors_exit_2(cli, tmp_path, flags):
    write(tmp_path / "in", {"a.txt": "abc", "a.ann": ""})
    done = cli("brat2iob.py", "--input", tmp_path / "in", "--output_dir", tmp_path / "out", *flags)
    assert done.returncode == 2 and "Traceback" not in done.stderr and not (tmp_path / "out").exists()
    assert cli("brat2iob.py").returncode == 2


def test_a_broken_document_is_left_out_and_the_others_are_converted(cli, tmp_path):
    files = {
        "a.txt": "abc def",
        "a.ann": "T1\tA 0 3\tabc\nT2\tA 4 9\tdef\n",
        "b.txt": "abc def",
        "b.ann": "T1\tA 4 7\tdef\n",
    }
    write(tmp_path / "in", files)
    done = cli("brat2iob.py", "--input", tmp_path / "in", "--output_dir", tmp_path / "out")
    (error,) = errors(done)
    assert done.returncode == 1 and error.startswith(f"error: {tmp_path}/in/a.ann:2: T2 A 4-9: not a span")
    (record,) = read_records(tmp_path / "out" / "in.jsonl")
    assert record["doc_id"] == "b" and [e["text"] for e in record["entities"]] == ["def"]
    assert outputs(tmp_path / "out") == ["in.iob", "in.iob.run.json", "in.jsonl", "in.jsonl.run.json"]
    assert outputs(tmp_path / "in") == sorted(files)  # nothing is ever written into the input


def test_missing_annotations_are_not_an_empty_gold(cli, tmp_path):
    write(tmp_path / "in", {"a.txt": "abc", "b.txt": "def", "b.ann": ""})
    done = cli("brat2iob.py", "--input", tmp_path / "in", "--output_dir", tmp_path / "out")
    assert done.returncode == 0 and f"warning: {tmp_path}/in/a.txt: no .ann" in done.stderr
    assert [r["doc_id"] for r in read_records(tmp_path / "out" / "in.jsonl")] == ["b"]


@pytest.mark.parametrize("ann, code", [("T1\tA 0 3\tabc\n", 0), ("T1\tA 0 3\tabd\n", 1)])
def test_strict_makes_a_warning_an_exit_of_1(cli, tmp_path, ann, code):
    write(tmp_path / "in", {"a.txt": "abc def", "a.ann": ann})
    where = ["--input", tmp_path / "in", "--output_dir", tmp_path / "out"]
    assert cli("brat2iob.py", *where).returncode == 0
    assert cli("brat2iob.py", *where, "--strict").returncode == code


def test_the_encoding_can_be_said(cli, tmp_path):
    write(tmp_path / "in", {"a.txt": "el ni\xf1o".encode("cp1252"), "a.ann": "T1\tA 3 7\tni\xf1o\n".encode("cp1252")})
    done = cli("brat2iob.py", "--input", tmp_path / "in", "--output_dir", tmp_path / "out", "--encoding", "cp1252")
    assert done.returncode == 0
    assert next(read_records(tmp_path / "out" / "in.jsonl"))["entities"][0]["text"] == "ni\xf1o"


def test_the_same_bytes_on_every_run(cli, tmp_path):
    for seed in "12":
        cli(
            "brat2iob.py",
            "--input",
            GOLDEN / "corpus",
            "--output_dir",
            tmp_path / seed,
            PYTHONHASHSEED=seed,
            LC_ALL="C",
        )
    for name in ("corpus.jsonl", "corpus.iob"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()


# ---------------------------------------------------------------------------- golden files


@pytest.mark.parametrize("unit", ["sentence", "document"])
def test_golden_files_byte_by_byte(cli, tmp_path, unit):
    """CRLF, an astral letter, a combining mark, nested, discontinuous, adjacent and repeated mentions, a mention that
    ends inside a token, one that BRAT split at a line end, an abbreviation, all kinds of lines, an empty .ann."""
    done = cli("brat2iob.py", "--input", GOLDEN / "corpus", "--output_dir", tmp_path, "--unit", unit, "--strict")
    assert done.returncode == 0, done.stderr
    for name in ("corpus.jsonl", "corpus.iob"):
        assert (tmp_path / name).read_bytes() == (GOLDEN / unit / name).read_bytes()


def test_the_sidecar_counts_what_was_done(cli, tmp_path):
    cli("brat2iob.py", "--input", GOLDEN / "corpus", "--output_dir", tmp_path, "--report", tmp_path / "r.json")
    info = json.loads((tmp_path / "corpus.jsonl.run.json").read_text())
    counts = json.loads((tmp_path / "r.json").read_text())["counts"]
    assert info["script"] == "brat2iob.py" and info["arguments"]["unit"] == "sentence" and len(info["inputs"]) == 1
    wanted = {
        "documents": 2,
        "records": 6,
        "read": 13,
        "entities": 12,
        "duplicates": 1,
        "cuts": 1,
        "joins": 1,
        "tokens": 69,
    }
    assert {name: counts[name] for name in wanted} == wanted
    assert {name[6:] for name in counts if name.startswith("lines ")} == set("REAMN*#")


def test_the_sidecar_has_the_counts_of_the_report(cli, tmp_path):
    cli("brat2iob.py", "--input", GOLDEN / "corpus", "--output_dir", tmp_path, "--report", tmp_path / "r.json")
    info = json.loads((tmp_path / "corpus.jsonl.run.json").read_text())
    counts = json.loads((tmp_path / "r.json").read_text())["counts"]
    assert {name: info["counts"].get(name, 0) for name in ("documents", "read", "entities", "records", "tokens")} == {
        name: counts[name] for name in ("documents", "read", "entities", "records", "tokens")
    }


# ---------------------------------------------------------------------------- one document, in this process


def convert(folder, out, *flags):
    """Run main(); return (exit code, {split: records}, report)."""
    code = brat2iob.main(["--input", str(folder), "--output_dir", str(out), "--report", str(out / "report"), *flags])
    found = {path.stem: list(read_records(path)) for path in out.glob("*.jsonl")}
    return code, found, json.loads((out / "report").read_text())


def one(tmp_path, text, ann, *flags):
    """Convert one document; return (its records, the report)."""
    folder = write(tmp_path / "d", {"a.txt": text, "a.ann": ann})
    _, found, report = convert(folder, tmp_path / "out", *flags)
    return found.get("d", []), report


def mentions(records):
    """[(type, [start, end] pairs)] of a document's records, in the document's characters, sorted."""
    return sorted((e["type"], [[a + r["start"], b + r["start"]] for a, b in fragments(e)]) for r in records
                  for e in r["entities"])  # fmt: skip


def adds_up(report):
    counts = Counter(report["counts"])
    left = counts["dropped"] + counts["duplicates"] + counts["other types"]
    assert counts["read"] == counts["entities"] + left
    assert sum(state["n"] for state in report["tags"]) == counts["entities"]


def test_white_space_between_fragments_is_no_gap(tmp_path):
    ann = "T1\tA 0 3;4 7\tabc def\nT2\tB 9 12;4 7\tdef ghi\nT3\tC 0 3;3 7\tabc  def\n"
    records, report = one(tmp_path, "abc\ndef, ghi", ann, "--unit", "document")
    assert mentions(records) == [("A", [[0, 7]]), ("B", [[4, 7], [9, 12]]), ("C", [[0, 7]])]
    assert [e["text"] for e in records[0]["entities"]] == ["abc\ndef", "abc\ndef", "def ghi"]
    adds_up(report)


def test_duplicates_are_counted_and_other_types_kept(tmp_path):
    ann = "T1\tA 0 3\tabc\nT2\tA 0 3\tABC\nT3\tB 0 3\tabc\nT4\tA 0 1;1 3\ta bc\nT5\tA 4 5\t \n"
    records, report = one(tmp_path, "abc   def", ann)
    assert mentions(records) == [("A", [[0, 3]]), ("B", [[0, 3]])] and "reference" not in records[0]["entities"][0]
    assert {name: report["counts"][name] for name in ("read", "duplicates", "dropped")} == {
        "read": 5, "duplicates": 2, "dropped": 1}  # fmt: skip
    adds_up(report)


@pytest.mark.parametrize(
    "files",
    [
        {"a/x.txt": "abc", "a/x.ann": "T1\tA 0 3\tabc\n", "b/x.txt": "abc", "b/x.ann": "T1\tA 0 3\tabc\n"},
        {"a/x.txt": "ab  c", "a/x.ann": "T1\tA 2 3\t \nT2\tA 9 10\tx\n", "b/y.txt": "a", "b/y.ann": ""},
    ],
)  # fmt: skip
def test_the_report_adds_up_over_left_out_documents(tmp_path, files):
    write(tmp_path, {f"{name.split('/')[0]}/in/{name.split('/')[1]}": content for name, content in files.items()})
    inputs = [str(tmp_path / side / "in") for side in "ab"]
    brat2iob.main(["--input", *inputs, "--output_dir", str(tmp_path / "o"), "--report", str(tmp_path / "r")])
    adds_up(json.loads((tmp_path / "r").read_text()))


@pytest.mark.parametrize(
    "policy, found, reference",
    [
        ("repair", [("A", [[4, 7]])], None),
        ("drop", [], None),
        ("keep", [("A", [[5, 8]])], "def"),
        ("error", None, None),
    ],
)
def test_mismatch_policies(tmp_path, policy, found, reference):
    records, report = one(tmp_path, "abc def ghi", "T1\tA 5 8\tdef\nT2\tB 0 3\tabc\n", "--mismatch", policy)
    if found is None:
        assert records == [] and report["messages"][0]["level"] == "error"
        return
    assert mentions(records) == [*found, ("B", [[0, 3]])]
    assert reference in (None, records[0]["entities"][-1].get("reference"))
    assert [(m["level"], m["where"][-7:]) for m in report["messages"]] == [("warning", "a.ann:1")]
    adds_up(report)


@pytest.mark.parametrize(
    "text, spans, reference, found",
    [
        ("the fever and a fever", "5 10", "fever", [[4, 9]]),  # 1 away, the other 11
        ("fever fever fever", "3 8", "fever", None),  # 3 away on both sides
        ("x" * 60 + " fever", "0 5", "fever", None),  # too far
        ("ab fever cd", "4 8", "fever", None),  # another length is no shift: left out, not guessed
        ("ab fever cd", "2 8", "fever", [[2, 8]]),  # white space too many is no other text
        ("no such word", "3 7", "word here", None),
    ],
)
def test_repair_moves_only_to_the_one_right_place(tmp_path, text, spans, reference, found):
    records, report = one(tmp_path, text, f"T1\tA {spans}\t{reference}\n")
    assert mentions(records) == ([("A", found)] if found else [])
    adds_up(report)
    assert all(e["text"] == r["text"][e["start"] : e["end"]] for r in records for e in r["entities"])


@pytest.mark.parametrize(
    "text, span, reference",
    [
        pytest.param('a ""big"" cat', (0, 13), '"a """"big"""" cat"', id="quotes doubled"),
        pytest.param("it’s “bad”–ly", (0, 13), 'it\'s "bad"-ly', id="typographic"),
        pytest.param("Big cat", (0, 7), "big CAT", id="case"),
        pytest.param("aspirin (x)", (0, 7), "aspirin (generic)", id="more text after it"),
        pytest.param("big \t cat", (0, 9), None, id="white space alone"),
        pytest.param("big\ncat", (0, 7), None, id="BRAT can't write a line end"),
        ("big cat", (0, 7), ""),
    ],
)
def test_a_reference_that_differs_is_kept_beside_the_slice(tmp_path, text, span, reference):
    written = "big cat" if reference is None else reference
    (record,), report = one(tmp_path, text, f"T1\tA {span[0]} {span[1]}\t{written}\n", "--unit", "document")
    (found,) = record["entities"]
    assert (found["start"], found["end"], found["text"]) == (*span, text[slice(*span)])
    assert found.get("reference", found["text"]) == (reference or found["text"])
    adds_up(report)


def test_duplicates_in_records_are_kept_once_too(tmp_path):
    fever = {"start": 0, "end": 5, "type": "A", "id": "T1"}
    write(tmp_path, {"s.jsonl": lines({"id": "a", "text": "Fever", "entities": [fever, fever | {"id": "T2"}]})})
    _, found, report = convert(tmp_path / "s.jsonl", tmp_path / "o")
    assert len(found["s"][0]["entities"]) == 1 == report["counts"]["duplicates"]
    adds_up(report)


def test_document_units_carry_the_other_lines(tmp_path):
    other = ["R1\tOf Arg1:T1 Arg2:T1", "E1\tA:T1", "#1\tAnnotatorNotes T1\tx\ty  "]
    ann = "\r\n".join([other[0], "T1\tA 0 3\tabc", *other[1:]])
    (record,), _ = one(tmp_path, "abc", ann, "--unit", "document")
    assert record["other"] == other and record["id"] == record["doc_id"] == "a"
    (sentence,), _ = one(tmp_path, "abc", ann)
    assert "other" not in sentence and sentence["id"] == "a:0"


def test_layers_hold_every_continuous_mention_between_them(tmp_path):
    folder = write(tmp_path / "d", {
        "a.txt": "rare skin disease of hands",
        "a.ann": "T1\tR 0 17\nT2\tS 5 17\nT3\tD 10 17\nT4\tX 0 4;21 26\n",
    })  # fmt: skip
    brat2iob.main(["--input", str(folder), "--output_dir", str(tmp_path / "o"), "--overlap", "layers"])
    found = [[(e["type"], e["text"]) for e in next(read_records(tmp_path / "o" / f"d.layer{i}.iob"))["entities"]]
             for i in (1, 2, 3)]  # fmt: skip
    assert found == [[("R", "rare skin disease")], [("S", "skin disease")], [("D", "disease")]]
    assert not (tmp_path / "o" / "d.layer4.iob").exists()
    assert len(next(read_records(tmp_path / "o" / "d.jsonl"))["entities"]) == 4


# ---------------------------------------------------------------------------- what the inputs are

DOCUMENT = {"a.txt": "abc", "a.ann": "T1\tA 0 3\tabc\n"}


def under(prefix, files):
    return {prefix + name: content for name, content in files.items()}


@pytest.mark.parametrize(
    "files, splits",
    [
        (under("c/train/", DOCUMENT) | under("c/dev/", DOCUMENT), {"train": ["a"], "dev": ["a"]}),
        (under("c/", DOCUMENT), {"c": ["a"]}),
        (under("c/", DOCUMENT) | under("c/below/", DOCUMENT), {"c": ["a", "below/a"]}),
        (under("c/train/", DOCUMENT | {"._a.ann": "\0", ".stats_cache": "\0"}) | {"c/annotation.conf": "["},
         {"train": ["a"]}),
        ({"c/train.tsv": "a\tB-X\n", "c/dev.tsv": "b\tO\n"}, {"train": ["#0"], "dev": ["#0"]}),
        ({"c/train.tsv.gz": gzip.compress(b"a\tB-X\n")}, {"train": ["#0"]}),
        (under("c/train/", DOCUMENT) | under("c/dev/", DOCUMENT) | {"c/README.txt": "hello"},
         {"train": ["a"], "dev": ["a"]}),
        ({"c/train.tsv": "a\tB-X\n", "c/LICENSE.txt": "free"}, {"train": ["#0"]}),
    ],
)  # fmt: skip
def test_folders_and_splits(tmp_path, files, splits):
    write(tmp_path, files)
    code, found, _ = convert(tmp_path / "c", tmp_path / "out")
    assert code == 0 and {split: [r["doc_id"] for r in records] for split, records in found.items()} == splits


def test_an_iob_file_beside_brat_is_named(cli, tmp_path):
    write(tmp_path, under("c/", DOCUMENT) | {"c/all.tsv": "a\tB-X\n"})
    done = cli("brat2iob.py", "--input", tmp_path / "c", "--output_dir", tmp_path / "out")
    assert done.returncode == 0 and "all.tsv: beside .ann files and left out" in done.stderr


def test_inputs_with_one_split_name_are_joined_with_their_source(tmp_path):
    write(tmp_path, under("x/train/", DOCUMENT) | under("y/train/", {"a.txt": "other", "a.ann": ""}))
    out = tmp_path / "o"
    brat2iob.main(["--input", str(tmp_path / "x"), str(tmp_path / "y"), "--output_dir", str(out)])
    assert [(r["doc_id"], r["text"]) for r in read_records(out / "train.jsonl")] == [("a", "abc"), ("a~2", "other")]
    assert all("source" in record for record in read_records(out / "train.jsonl"))


def test_joined_iob_files_give_their_numbered_documents_their_source(tmp_path):
    write(tmp_path, {"x/train.tsv": "a\tB-X\n\nb\tO\n", "y/train.tsv": "c\tB-X\n"})
    out, inputs = tmp_path / "o", [str(tmp_path / side / "train.tsv") for side in "xy"]
    brat2iob.main(["--input", *inputs, "--output_dir", str(out), "--report", str(tmp_path / "r")])
    assert [r["id"] for r in read_records(out / "train.jsonl")] == [
        f"{inputs[0]}/#0:0", f"{inputs[0]}/#1:0", f"{inputs[1]}/#0:0"]  # fmt: skip
    assert json.loads((tmp_path / "r").read_text())["messages"] == []


@pytest.mark.parametrize("name, content", [
    ("t.jsonl", '{"tokens": ["%s"], "ner_tags": ["B-X"]}\n'), ("t.csv", "Token,Tag,File\n%s,B-X,1\n"),
])  # fmt: skip
def test_numbers_are_documents_of_their_own_file(tmp_path, name, content):
    write(tmp_path, {f"{side}/{name}": content % side for side in "xy"})
    args = ["--input", *(str(tmp_path / side / name) for side in "xy"), "--output_dir", str(tmp_path / "o")]
    assert brat2iob.main([*args, "--report", str(tmp_path / "r")]) == 0
    records = list(read_records(tmp_path / "o" / "t.jsonl"))
    assert [record["doc_id"].split("/")[-3] for record in records] == ["x", "y"]
    assert json.loads((tmp_path / "r").read_text())["messages"] == []  # none renamed


def test_plain_text_becomes_records_without_entities(tmp_path):
    write(tmp_path / "t", {"a.txt": "One came.\r\nTwo went.", "b.txt": "Three."})
    code, found, _ = convert(tmp_path / "t", tmp_path / "o", "--input_format", "text")
    assert code == 0 and [(r["id"], r["text"]) for r in found["t"]] == [
        ("a:0", "One came.\r\n"), ("a:1", "Two went."), ("b:0", "Three.")]  # fmt: skip


@pytest.mark.parametrize("unit, ids", [("sentence", ["7:0", "7:1", "8:0"]), ("document", ["7", "8"])])
def test_iob_keeps_its_tokens_and_units(tmp_path, unit, ids):
    text = "-DOCSTART- (7)\n\np53-null\tI-G\nmice\tO\n\nIL-2\tI-G\nIL-4\tB-G\n\n-DOCSTART- (8)\n\nx\tS-G\n"
    write(tmp_path, {"t.iob": text})
    code, found, report = convert(tmp_path / "t.iob", tmp_path / "o", "--unit", unit)
    records = found["t"]
    assert code == 0 and [r["id"] for r in records] == ids and all(r["pretokenized"] for r in records)
    assert [t for r in records for t in r["tokens"]] == ["p53-null", "mice", "IL-2", "IL-4", "x"]
    assert [t for r in records for t in r["tags"]] == ["B-G", "O", "B-G", "B-G", "B-G"]
    assert [e["text"] for r in records for e in r["entities"]] == ["p53-null", "IL-2", "IL-4", "x"]
    for record in records:
        assert [record["text"][a:b] for a, b in record["offsets"]] == record["tokens"]
    adds_up(report)


# ---------------------------------------------------------------------------- random documents

PIECES = [
    *("fever ", "IL-2", "e\u0301", "😀", "𝛃", "שלום ", "مرحبا ", "हिन्दी", "医。", "word", "The ", "and\n"),
    *(
        ". ",
        ".",
        "! ",
        "? ",
        "... ",
        "(",
        ")",
        "[**",
        "**]",
        ": ",
        "- ",
        '"',
        "Dr. ",
        "No. 5",
        "1. ",
        "A. ",
        "И. ",
        "г. ",
    ),
    *("\n", "\n\n", "\r\n", "\r\n\r\n", "\r", "\u2028", "\u2029", "\x85", "\x0b", "\t", " ", "\u00a0"),
]
documents = st.lists(st.sampled_from(PIECES), min_size=1, max_size=25).map("".join).filter(str.strip)


@st.composite
def annotated(draw):
    """A text and BRAT mentions of it (type, fragments in any order): nested, crossing, repeated, discontinuous."""
    text, found = draw(documents), []
    for _ in range(draw(st.integers(0, 6))):
        edges = sorted(draw(st.sets(st.integers(0, len(text)), min_size=2, max_size=6)))
        spans = [list(pair) for pair in zip(edges[::2], edges[1::2], strict=False)]
        found.append((draw(st.sampled_from(["A", "RARE-DISEASE", "ТИП"])), draw(st.permutations(spans))))
    return text, found


def brat(text, found, count=None):
    """The .ann of mentions; `count` turns a code point into the offset that a tool would write."""
    lines = []
    for i, (type_, spans) in enumerate(found):
        where = ";".join(" ".join(str(count(text, edge) if count else edge) for edge in span) for span in spans)
        reference = " ".join(text[a:b] for a, b in spans)
        if count is None and {"\n", "\r"} & set(reference):
            reference = ""  # an .ann line can't hold its own end; with a space for it other units might agree better
        lines.append(f"T{i}\t{type_} {where}\t" + reference.replace("\n", " ") + "\n")
    return "".join(lines)


def gold(text, found):
    """What must be in `entities`: each mention's characters in runs, gaps of white space filled; each mention once."""
    out = set()
    for type_, spans in found:
        inside = {i for a, b in spans for i in range(a, b)}
        if not "".join(text[i] for i in inside).strip():
            continue
        runs = []
        for i in range(min(inside), max(inside) + 1):
            if i in inside and runs and (runs[-1][1] == i or text[runs[-1][1] : i].isspace()):
                runs[-1][1] = i + 1
            elif i in inside:
                runs.append([i, i + 1])
        out.add((type_, tuple(map(tuple, runs))))
    return sorted((type_, [list(run) for run in runs]) for type_, runs in out)


@PROPERTY
@given(annotated(), st.sampled_from(["sentence", "document"]), st.sampled_from(OVERLAPS), st.sampled_from(STAND_INS))
def test_every_gold_character_comes_back(tmp_path_factory, made, unit, overlap, discontinuous):
    text, found = made
    records, report = one(tmp_path_factory.mktemp("p"), text, brat(text, found), "--unit", unit, "--overlap", overlap,
                          "--discontinuous", discontinuous)  # fmt: skip
    assert mentions(records) == gold(text, found)
    assert not report["messages"] or {m["kind"] for m in report["messages"]} == {"white space"}
    adds_up(report)
    # Units tile the document; none cuts a hull; tokens tile the text; tags hold just what they are said to hold.
    assert "".join(r["text"] for r in records) == text
    assert [r["start"] for r in records] == [0, *itertools.accumulate(len(r["text"]) for r in records)][:-1]
    assert [r["id"] for r in records] == (["a"] if unit == "document" else [f"a:{i}" for i in range(len(records))])
    assert report["counts"].get("joins", 0) == (len(sentence_starts(text)) + 1 - len(records)) * (unit == "sentence")
    exact = held = 0
    for record in records:
        assert all(e["end"] <= len(record["text"]) for e in record["entities"])
        assert "".join(record["tokens"]) == "".join(record["text"].split())
        assert [record["text"][a:b] for a, b in record["offsets"]] == record["tokens"]
        spans = tag_spans(record["tags"], strict=True)
        assert spans == tag_spans(record["tags"])
        flat = {(record["offsets"][a][0], record["offsets"][b - 1][1], type_) for a, b, type_ in spans}
        whole = {(e["start"], e["end"], e["type"]) for e in record["entities"] if "fragments" not in e}
        exact, held = exact + len(flat & whole), held + len(flat)
    states = Counter()
    for state in report["tags"]:
        states[state["state"]] += state["n"]
    assert exact >= states["exact"] and (discontinuous != "drop" or held == states["exact"] + states["trimmed"])


COUNTED = {
    "code points": lambda text, i: i,
    "code points, CRLF as one": lambda text, i: i - text.count("\r\n", 0, i),
    "UTF-16 units": lambda text, i: len(text[:i].encode("utf-16-le")) // 2,
    "UTF-8 bytes": lambda text, i: len(text[:i].encode()),
}


@PROPERTY
@given(
    st.lists(st.tuples(st.sampled_from(["", "é", "😀", "\r\n", "\r\né😀", "שלום\r\n", " - "]),
                       st.sampled_from(["", "ß", "😀", "\r\n", "e\u0301"]), st.booleans()), min_size=2, max_size=8),
    st.sampled_from(sorted(COUNTED)), st.sampled_from(["", "counted", "not counted"]),
)  # fmt: skip
def test_the_unit_of_the_offsets_is_found(tmp_path_factory, parts, unit, mark):
    text, found = "", []
    for i, (before, inside, many) in enumerate(parts):  # words that stand once, so that a wrong unit can't agree
        before += ","  # no space beside the word: see the next test
        start = len(text + before)
        word = f"word{inside}{i}x"
        text += f"{before}{word}, then {i}y,"
        found.append(("A", [[start, start + len(word)]] + [[len(text) - 3, len(text) - 1]] * many))
    bom = (3 if unit == "UTF-8 bytes" else 1) * (mark == "counted")
    ann = brat(text, found, lambda text, i: COUNTED[unit](text, i) + bom)
    records, report = one(tmp_path_factory.mktemp("u"), "\ufeff" * bool(mark) + text, ann)
    assert mentions(records) == gold(text, found) and "".join(r["text"] for r in records) == text
    messages = [m["what"] for m in report["messages"]]
    plain = all(COUNTED[unit](text, i) + bom == i for _, spans in found for span in spans for i in span)
    assert plain if not messages else len(messages) == 1 and messages[0].startswith("offsets count ")


@pytest.mark.parametrize("unit, text, end", [("UTF-16 units", "😀fever then", 6), ("UTF-8 bytes", "época de", 5)])
def test_exact_agreement_beats_agreement_but_for_spaces(tmp_path, unit, text, end):
    records, _ = one(tmp_path, text, brat(text, [("A", [[0, end]])], COUNTED[unit]))
    assert mentions(records) == [("A", [[0, end]])]


def test_half_a_reference_is_no_evidence_for_a_unit(tmp_path):
    text = "fever then\r\ncough\r\nup, and"  # read as code points the second one is "\ncough\r\n"
    found = [("A", [[0, 5]]), ("A", [[12, 21]])]
    records, _ = one(tmp_path, text, brat(text, found, COUNTED["code points, CRLF as one"]))
    assert mentions(records) == found


def test_offsets_inside_a_character_break_the_document(tmp_path):
    ann = "T1\tA 5 10\tfever\nT2\tA 16 21\tcough\nT3\tA 0 1;5 10\n"  # UTF-8 bytes, the last one in mid-character
    records, report = one(tmp_path, "éé fever éé cough", ann)
    assert records == [] and report["messages"][-1]["where"].endswith(":3")


def test_a_utf_16_file_is_read(tmp_path):
    text = "x 😀 fever"
    records, _ = one(tmp_path, text.encode("utf-16"), brat(text, [("A", [[4, 9]])]).encode("utf-16"))
    assert mentions(records) == [("A", [[4, 9]])] and records[0]["text"] == text


# ---------------------------------------------------------------------------- every format says the same

TEXTS = {
    "10": ("Café au lait spots|\nWe saw 2 boys with ataxia & fever.",
           [("SIGN", 0, 18), ("SIGN", 39, 45), ("SIGN", 48, 53)]),
    "11": ("IL-2 loss.\nNo text — none.", [("GENE", 0, 4)]),
}  # fmt: skip


def as_pubtator(eol="\n"):
    lines = []
    for doc_id, (text, found) in TEXTS.items():
        title, abstract = text.split("\n")
        lines += [f"{doc_id}|t|{title}", f"{doc_id}|a|{abstract}"]
        lines += [f"{doc_id}\t{a}\t{b}\t{text[a:b]}\t{type_}\tD1|D2\tsome|parts" for type_, a, b in found]
        lines += [f"{doc_id}\tCID\tD1\tD2", f"{doc_id}\tBind\tD1\tD2\tNovel", ""]
    return {"c.PubTator": eol.join(lines)}


def as_brat(txt, ann):
    files = {}
    for doc_id, (text, found) in TEXTS.items():
        files |= {doc_id + txt: text, doc_id + ann: brat(text, [(type_, [[a, b]]) for type_, a, b in found])}
    return files


def as_chemprot():
    rows = {"abstracts": [], "entities": [], "relations": ["10\tCPR:3\tY \tNOT\tArg1:T1\tArg2:T2"]}
    for doc_id, (text, found) in TEXTS.items():
        rows["abstracts"].append("\t".join([doc_id, *text.split("\n")]))
        rows["entities"] += [f"{doc_id}\tT{i}\t{t}\t{a}\t{b}\t{text[a:b]}" for i, (t, a, b) in enumerate(found)]
    return {f"c_{name}.tsv": "\n".join(lines) + "\n" for name, lines in rows.items()}


def bioc_documents(width=len):
    """BioC JSON of TEXTS; `width` counts the offsets."""
    documents = []
    for doc_id, (text, found) in TEXTS.items():
        passages, start = [], 0
        for line in text.split("\n"):
            notes = [{"id": str(i), "infons": {"type": t, "MESH": "D1"}, "text": text[a:b],
                      "locations": [{"offset": width(text[:a]), "length": width(text[a:b])}]}
                     for i, (t, a, b) in enumerate(found) if start <= a < start + len(line)]  # fmt: skip
            passages.append({"offset": width(text[:start]), "infons": {}, "text": line, "annotations": notes})
            start += len(line) + 1
        documents.append({"id": doc_id, "passages": passages, "relations": [{}]})
    return {"source": "x", "documents": documents}


def as_bioc_xml(sentences=False):
    root = ElementTree.Element("collection")
    for document in bioc_documents()["documents"]:
        element = ElementTree.SubElement(root, "document")
        ElementTree.SubElement(element, "id").text = document["id"]
        for passage in document["passages"]:
            piece = ElementTree.SubElement(element, "passage")
            ElementTree.SubElement(piece, "offset").text = str(passage["offset"])
            if sentences:
                piece = ElementTree.SubElement(piece, "sentence")
                ElementTree.SubElement(piece, "offset").text = str(passage["offset"])
            ElementTree.SubElement(piece, "text").text = passage["text"]
            for each in passage["annotations"]:
                note = ElementTree.SubElement(piece, "annotation", id=each["id"])
                ElementTree.SubElement(note, "infon", key="type").text = each["infons"]["type"]
                for at in each["locations"]:
                    ElementTree.SubElement(note, "location", {name: str(n) for name, n in at.items()})
                ElementTree.SubElement(note, "text").text = each["text"]
    return '<?xml version="1.0"?><!DOCTYPE collection SYSTEM "BioC.dtd">' + ElementTree.tostring(root, "unicode")


def as_rudrec():
    rows = []
    for doc_id, (text, found) in TEXTS.items():
        start = 0
        for number, line in enumerate(text.split("\n")):
            inside = [{"entity_type": t, "end": b - start, "start": a - start, "entity_id": "*[0]_se",
                       "entity_text": text[a:b], "concept_name": float("nan")}
                      for t, a, b in reversed(found) if start <= a < start + len(line)]  # fmt: skip
            rows.append({"file_name": f"{doc_id}.tsv", "text": line + "\n", "entities": inside, "sentence_id": number})
            start += len(line) + 1
    return {"c.json": "\n".join(json.dumps(row) for row in [rows[2], rows[1], rows[0], rows[3]])}


FORMATS = {
    "pubtator": (as_pubtator(), ()),
    "pubtator crlf": (as_pubtator("\r\n"), ()),
    "pubtator gz": ({"c.txt.gz": gzip.compress(as_pubtator()["c.PubTator"].encode())}, ()),
    "chemprot": (as_chemprot(), ()),
    "chemprot gz": ({f"{name}.gz": gzip.compress(text.encode()) for name, text in as_chemprot().items()}, ()),
    "bioc json": ({"c.json": json.dumps(bioc_documents(), indent=1)}, ()),
    "bioc json, bytes": ({"c.json": json.dumps(bioc_documents(lambda text: len(text.encode())))}, ()),
    "bioc xml": ({"c.xml": as_bioc_xml()}, ()),
    "bioc xml, sentences": ({"c.xml": as_bioc_xml(True)}, ()),
    "rudrec": (as_rudrec(), ()),
    "brat": (as_brat(".txt", ".ann"), ()),
    "a1 and a2": ({f"{i}.txt": text for i, (text, _) in TEXTS.items()}
                  | {"10.a1": "T1\tSIGN 0 18\tCafé au lait spots\n", "10.a2": "T2\tSIGN 39 45\tataxia\nE1\tSIGN:T2\n"
                     "T3\tSIGN 48 53\tfever\n", "11.a1": "T1\tGENE 0 4\tIL-2\n"}, ()),
    "upper case": (as_brat(".TXT", ".ANN"), ()),
    "latin": ({name: text.replace("—", "-").encode("cp1252") for name, text in as_pubtator().items()},
              ("--encoding", "cp1252")),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("unit", ["sentence", "document"])
def test_every_format_says_the_same(tmp_path, name, unit):
    files, flags = FORMATS[name]
    write(tmp_path / "c", files)
    code, found, report = convert(tmp_path / "c", tmp_path / "out", "--unit", unit, *flags)
    assert code == 0 and list(found) == ["c"], report["messages"]
    by_id = {doc_id: list(group) for doc_id, group in itertools.groupby(found["c"], key=lambda r: r["doc_id"])}
    for doc_id, (text, wanted) in TEXTS.items():
        named = sorted((t, text[a:b]) for t, a, b in wanted)
        assert sorted((e["type"], e["text"]) for r in by_id[doc_id] for e in r["entities"]) == named
        if "bytes" not in name:  # where a passage begins is known only in bytes: its gap is as wide as they say
            assert mentions(by_id[doc_id]) == sorted((t, [[a, b]]) for t, a, b in wanted)
    for doc_id, records in by_id.items():
        text = "".join(record["text"] for record in records)
        assert " ".join(text.replace("—", "-").split()) == " ".join(TEXTS[doc_id][0].replace("—", "-").split())
        assert len(records) == (1 if unit == "document" else 2)
    adds_up(report)


TOKENS = {  # (tokens, tags) of each unit, by document
    "a": [(["IL", "-", "2", "NA"], ["B-G", "I-G", "I-G", "O"]), (["null"], ["B-X"])],
    "b": [(["none"], ["O"])],
}
ROWS = [(doc, i, token, tag) for doc, units in TOKENS.items() for i, unit in enumerate(units)
        for token, tag in zip(*unit, strict=True)]  # fmt: skip
TOKEN_FORMATS = {
    "csv of RareDis": {"c.csv": "Token,Tag,Sentence_Num,Sentence_Num_Global,File\n"
                       + "".join(f"{token},{tag},{i},9,{doc}\n" for doc, i, token, tag in ROWS)},
    "csv with offsets": {"c.csv": ",File ID,Sentence #,Word,POS,Start,End,Tag\n"
                         + "".join(f'{n},{doc},Sentence:{i},"{token}",X,0,0,{tag}\n'
                                   for n, (doc, i, token, tag) in enumerate(ROWS))},
    "iob": {"c.conll": "".join(f"-DOCSTART- ({doc})\n\n" + "".join("".join(f"{token} {tag}\n" for token, tag in
            zip(*unit, strict=True)) + "\n" for unit in units) for doc, units in TOKENS.items())},
}  # fmt: skip


@pytest.mark.parametrize("name", TOKEN_FORMATS)
def test_formats_of_tokens_keep_them(tmp_path, name):
    write(tmp_path / "c", TOKEN_FORMATS[name])
    code, found, _ = convert(tmp_path / "c", tmp_path / "out")
    assert code == 0
    assert [(r["doc_id"], r["tokens"], r["tags"]) for r in found["c"]] == [
        (doc_id, *unit) for doc_id, units in TOKENS.items() for unit in units
    ]


@pytest.mark.parametrize(
    "files",
    [
        {"c.csv": "Full Text,Entity Codes,UMLS Code\n"
                  "\"['<START>', 'IL', '2', '<END>']\",\"['O', 'B-T103', 'L-T103', 'O']\",x\n"},
        {"c.jsonl": '{"id": "0", "tokens": ["IL", "2"], "ner_tags": ["B-T103", "I-T103"]}\n'},
        {"c.jsonl": '{"tokens": ["IL", "2"], "ner_tags": ["B-T103", "I-T103"], "spans": [{"text": "IL"}]}\n'},
        {"c.json": '[\n {"tokens": ["IL", "2"], "ner_tags": ["B-T103", "I-T103"]}\n]'},
    ],
    ids=["csv of lists", "json lines", "json lines with spans", "json array"],
)  # fmt: skip
def test_lists_of_tokens(tmp_path, files):
    write(tmp_path / "c", files)
    code, found, report = convert(tmp_path / "c", tmp_path / "out")
    assert code == 0, report
    assert [(r["id"], r["tokens"], r["tags"]) for r in found["c"]] == [("#0:0", ["IL", "2"], ["B-T103", "I-T103"])]


HF = '{"tokens": ["One", "fever"], "ner_tags": ["O", "B-A"]}\n'
GOOD = "12|t|One fever\n12|a|Two\n12\t4\t9\tfever\tA\tD1\n"
BROKEN = {  # what is broken (in the first of two documents), where, and the words that say so
    "pubtator columns": ({"c.PubTator": "10|t|x y\n10\tA\n\n" + GOOD}, "c.PubTator:2", "a field is missing"),
    "pubtator offsets": ({"c.PubTator": "10|t|x y\n10\t0\tone\tx\tA\tD1\n\n" + GOOD}, "c.PubTator:2", "a field"),
    "pubtator beyond": ({"c.PubTator": "10|t|x y\n10\t0\t90\tx\tA\tD1\n\n" + GOOD}, "c.PubTator:2", "not a span"),
    "pubtator other id": ({"c.PubTator": "10|t|x y\n11\t0\t1\tx\tA\tD1\n\n" + GOOD}, "c.PubTator:2", "document 10"),
    "chemprot columns": ({"c_abstracts.tsv": "10\tx\n12\tOne fever\tTwo\n",
                          "c_entities.tsv": "12\tT1\tA\t4\t9\tfever\n"},
                         "c_abstracts.tsv:1", "its title"),
    "chemprot row": ({"c_abstracts.tsv": "10\tx\ty\n12\tOne fever\tTwo\n",
                      "c_entities.tsv": "10\tT1\tA\t0\t1\n12\tT1\tA\t4\t9\tfever\n"},
                     "c_entities.tsv:1", "a field is missing"),
    "chemprot no abstract": ({"c_abstracts.tsv": "12\tOne fever\tTwo\n",
                              "c_entities.tsv": "12\tT1\tA\t4\t9\tfever\n9\tT1\tA\t4\t9\tfever\n"},
                             "c_entities.tsv:2", "no abstract of the id 9"),
    "bioc field": ({"c.json": json.dumps({"documents": [
                      {"id": 1, "passages": [{"offset": "x", "text": "a"}]},
                      {"id": 12, "passages": [{"offset": 0, "text": "One fever", "annotations": [
                          {"infons": {"type": "A"}, "text": "fever", "locations": [{"offset": 4, "length": 5}]}]}]}]})},
                   "c.json", "document 1: a field"),
    "rudrec field": ({"c.json": '{"file_name": "9", "sentence_id": 0, "text": "x", "entities": [{}]}\n'
                      '{"file_name": "12", "sentence_id": 0, "text": "One fever\\n", "entities": [{"entity_id": 1, '
                      '"start": 4, "end": 9, "entity_type": "A", "entity_text": "fever"}]}'},
                     "c.json:1", "a field is missing"),
    "csv tag": ({"c.csv": "Token,Tag,Sentence_Num,File\nx,Q,0,9\nOne,O,0,12\nfever,B-A,0,12\n"}, "c.csv:2", "a field"),
    "hf numbers": ({"c.json": '{"tokens": ["a"], "ner_tags": [3]}\n' + HF}, "c.json:1", "names"),
    "ours in an array": (
        {"c.json": '[{"id": "a", "text": "a", "entities": [], "tokens": ["a"], "tags": ["O"]}, ' + HF + "]"},
        "c.json:1", "one record a line",
    ),
    "hf no tags": ({"c.json": '{"tokens": ["a"]}\n' + HF}, "c.json:1", "no `ner_tags`"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_document_of_any_format_is_named_and_left_out(cli, tmp_path, name):
    files, where, says = BROKEN[name]
    write(tmp_path / "c", files)
    done = cli("brat2iob.py", "--input", tmp_path / "c", "--output_dir", tmp_path / "out")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    (error,) = errors(done)
    assert error.startswith(f"error: {tmp_path / 'c' / where}") and says in error
    (record,) = (r for r in read_records(tmp_path / "out" / "c.jsonl") if r["entities"])
    assert [(e["type"], e["text"]) for e in record["entities"]] == [("A", "fever")]


LAUGHS = "".join(f'<!ENTITY a{i + 1} "{f"&a{i};" * 10}">' for i in range(9))  # a billion
BOMB = f'<!DOCTYPE c [<!ENTITY a0 "ha">{LAUGHS}]><collection>&a9;</collection>'


@pytest.mark.parametrize(
    "name, content, says",
    [
        ("c.xml", "<collection><document><id>1</id>", "broken: "),
        ("c.xml", '<?xml version="1.0"?>' + BOMB, "broken: "),
        ("c.json", '{"documents": [', "broken: "),
        ("c.jsonl.gz", gzip.compress(b'{"id": "1", "text": "a"}\n', mtime=0)[:-9], "broken or cut gzip"),
        ("c.csv", "a,b\n1,2\n", "no column named Token"),
        ("c_abstracts.tsv", "1\ta\tb\n", "three columns|too few columns|unknown tag|columns"),
    ],
)
def test_a_broken_file_is_one_line(cli, tmp_path, name, content, says):
    write(tmp_path, {name: content})
    done = cli("brat2iob.py", "--input", tmp_path / name, "--output_dir", tmp_path / "out")
    (error,) = errors(done)
    assert done.returncode == 1 and error.startswith(f"error: {tmp_path / name}") and re.search(says, error)
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------------------- BRAT as it really is


def test_whole_numbers_are_read_however_they_are_written():
    assert [brat2iob.integer(value) for value in (7, "7", " 7 ", 7.0, "-7")] == [7, 7, 7, 7, -7]
    for value in (7.5, "7.0", "1_0", "+7", "٧", True, None, [7], float("nan"), float("inf")):
        with pytest.raises(brat2iob.FIELD_ERRORS):
            brat2iob.integer(value)


def test_a_reference_text_with_raw_line_ends_is_read_on(tmp_path):
    text = "Dose:\n\n20 mg\ndaily, fever"
    ann = f"T1\tX 0 18\t{text[:18]}\nR1\tOf Arg1:T1 Arg2:T1\nT2\tY 20 25\tfever\n"
    records, report = one(tmp_path, text, ann, "--unit", "document")
    assert mentions(records) == [("X", [[0, 18]]), ("Y", [[20, 25]])] and report["messages"] == []
    assert records[0]["other"] == ["R1\tOf Arg1:T1 Arg2:T1"]


@pytest.mark.parametrize("mark", ["\u2028", "\x85", "\x0c", "\x0b", "\x1c", "\u2029"])
def test_odd_line_ends_are_text(tmp_path, mark):
    text = f"ab{mark}cd fever"
    records, report = one(tmp_path, text, f"T1\tA 0 5\tab{mark}cd\nT2\tB 6 11\tfever\n", "--unit", "document")
    assert mentions(records) == [("A", [[0, 5]]), ("B", [[6, 11]])] and report["messages"] == []


def test_relations_follow_the_mention_that_is_kept(tmp_path):
    ann = "T1\tA 0 3\tabc\nT2\tA 0 3\tabc\nT3\tB 4 7\tdef\nR1\tOf Arg1:T2 Arg2:T3\n"
    (record,), _ = one(tmp_path, "abc def", ann, "--unit", "document")
    assert record["other"] == ["R1\tOf Arg1:T1 Arg2:T3"] and [e["id"] for e in record["entities"]] == ["T1", "T3"]


# ---------------------------------------------------------------------------- back to BRAT


def strip(entity):
    return {name: value for name, value in entity.items() if name not in ("id", "reference")}


def whole(records):
    """{doc_id: (text, entities)} of records, units joined."""
    out = {}
    for record in records:
        text, entities = out.get(record["doc_id"], ("", []))
        assert record["start"] == len(text)
        moved = [brat2iob.shifted(strip(entity), -len(text)) for entity in record["entities"]]
        out[record["doc_id"]] = text + record["text"], entities + moved
    return out


@pytest.mark.parametrize("unit", ["sentence", "document"])
@given(made=annotated())
@settings(max_examples=40, deadline=None)
def test_back_to_brat_gives_the_same_entities(tmp_path_factory, made, unit):
    text, found = made
    top = tmp_path_factory.mktemp("back")
    folder = write(top / "d", {"a.txt": text, "a.ann": brat(text, found)})
    _, first, _ = convert(folder, top / "one", "--unit", unit)
    if not first:
        return
    back = ["--input", str(top / "one" / "d.jsonl"), "--output_dir", str(top / "two"), "--to", "brat"]
    assert brat2iob.main(back) == 0
    assert (top / "two" / "d" / "a.txt").read_bytes().decode("utf-8") == text.removeprefix("\ufeff")
    code, again, second = convert(top / "two" / "d", top / "three", "--unit", unit)
    assert code == 0 and whole(again["d"]) == whole(first["d"]), second["messages"]


def test_predictions_go_back_with_their_scores(cli, tmp_path):
    lines = [
        {"id": "x:0", "doc_id": "../../x", "text": "abc ",
         "entities": [{"start": 0, "end": 3, "type": "A", "score": 0.5}]},
        {"id": "x:1", "doc_id": "../../x", "start": 4, "text": "de\nf",
         "entities": [{"start": 0, "end": 4, "type": "B"}]},
        {"id": "X", "doc_id": "con*?/a", "text": "g"},
        {"id": "y", "doc_id": "CON*?/a", "text": "h"},
    ]  # fmt: skip
    write(tmp_path, {"p.pred.jsonl": "".join(json.dumps(line) + "\n" for line in lines)})
    args = ["--input", tmp_path / "p.pred.jsonl", "--output_dir", tmp_path / "out", "--to", "brat"]
    done = cli("brat2iob.py", *args)
    assert done.returncode == 0, done.stderr
    out = tmp_path / "out" / "p.pred"
    files = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    assert files == [
        "CON__/a~2.ann",
        "CON__/a~2.txt",
        "_/_/x.ann",
        "_/_/x.txt",
        "con__/a.ann",
        "con__/a.txt",
        "run.json",
    ]
    assert (out / "_/_/x.txt").read_text() == "abc de\nf"
    assert (out / "_/_/x.ann").read_text() == "T1\tA 0 3\tabc\n#T1\tAnnotatorNotes T1\tscore 0.5\nT2\tB 4 6;7 8\tde f\n"
    names = json.loads((out / "run.json").read_text())["names"]
    assert names == {"_/_/x": "../../x", "con__/a": "con*?/a", "CON__/a~2": "CON*?/a"}
    assert cli("brat2iob.py", *args).returncode == 0  # its own output, untouched, is replaced
    (out / "_/_/x.ann").write_text("T1\tA 0 2\tab\n")
    done = cli("brat2iob.py", *args)
    assert done.returncode == 1 and "annotations that were edited" in errors(done)[0]
    assert (out / "_/_/x.ann").read_text() == "T1\tA 0 2\tab\n"


# ---------------------------------------------------------------------------- types, windows, splits, statistics

MAPS = {
    "m.json": '{"T047": "DISO", "T184": null}',
    "m.tsv": "T047\tDISO\r\nT184\t\r\n",
    "SemGroups.txt": "DISO|Disorders|T047|Disease or Syndrome\nDISO|Disorders|T184|Sign or Symptom\n",
}


@pytest.mark.parametrize(
    "file, flags, found",
    [
        ("m.json", [], {"DISO": 1, "X": 1}),
        ("m.tsv", [], {"DISO": 1, "X": 1}),
        ("SemGroups.txt", [], {"Disease_or_Syndrome": 1, "Sign_or_Symptom": 1, "X": 1}),
        ("SemGroups.txt:group", [], {"DISO": 2, "X": 1}),
        ("SemGroups.txt:group", ["--types", "DISO"], {"DISO": 2}),
        (None, ["--types", "X", "T184"], {"X": 1, "T184": 1}),
    ],
)
@pytest.mark.parametrize("source", ["brat", "iob"])
def test_types_are_mapped_and_chosen_and_the_rest_is_counted(tmp_path, file, flags, found, source):
    write(tmp_path, MAPS)
    if source == "brat":
        write(
            tmp_path / "c", {"a.txt": "abc def ghi", "a.ann": "T1\tT047 0 3\tabc\nT2\tT184 4 7\tdef\nT3\tX 8 11\tghi\n"}
        )
    else:
        write(tmp_path / "c", {"c.tsv": "abc\tB-T047\ndef\tB-T184\nghi\tB-X\n"})
    flags = ["--map_types", str(tmp_path / file), *flags] if file else flags
    code, records, report = convert(tmp_path / "c", tmp_path / "out", *flags)
    assert code == 0 and Counter(e["type"] for e in records["c"][0]["entities"]) == found
    assert Counter(tag[2:] for tag in records["c"][0]["tags"] if tag != "O") == found
    left = 3 - sum(found.values())
    assert report["counts"].get("other types", 0) == left
    assert [m["kind"] for m in report["messages"]] == ["types left out"] * bool(left)


@pytest.mark.parametrize("content, says", [("a\tb\tc\n", ":1: not `old"), ("{", "not JSON"), ('{"a": 1}', "strings")])
def test_a_broken_map_is_one_line(cli, tmp_path, content, says):
    write(tmp_path, {"m.tsv": content, "c.tsv": "a\tB-X\n"})
    done = cli(
        "brat2iob.py", "--input", tmp_path / "c.tsv", "--output_dir", tmp_path / "o", "--map_types", tmp_path / "m.tsv"
    )
    (error,) = errors(done)
    assert done.returncode == 1 and says in error


@pytest.mark.parametrize("limit", [1, 7, 25, 10_000])
@pytest.mark.parametrize("name", ["test.jsonl", "test.iob"])
def test_windows_are_whole_sentences_up_to_so_many_tokens(rare_en, tmp_path, limit, name):
    code, found, _ = convert(rare_en / name, tmp_path, "--max_tokens", str(limit))
    small, windows = list(read_records(rare_en / name)), found["test"]
    assert code == 0 and "".join("".join(r["text"].split()) for r in windows) == "".join(
        "".join(r["text"].split()) for r in small
    )
    assert sum(len(r["entities"]) for r in windows) == sum(len(r["entities"]) for r in small)
    sizes = {r["doc_id"]: [] for r in small}
    for record in small:
        sizes[record["doc_id"]].append(len(record["tokens"] if name == "test.iob" else tokenize(record["text"])))
    for doc_id, group in itertools.groupby(windows, key=lambda r: r["doc_id"]):
        made = [len(r["tokens"] if name == "test.iob" else tokenize(r["text"])) for r in group]
        assert sum(made) == sum(sizes[doc_id])
        assert all(n <= limit or n in sizes[doc_id] for n in made)  # longer only where one sentence is
        assert all(a + b > limit for a, b in itertools.pairwise(made))  # none could have been joined


def test_a_split_is_by_document_and_by_text(cli, tmp_path):
    files = {}
    for i in range(50):
        text = f"Case {i % 40} fever."  # ten texts stand twice
        files |= {f"{i}.txt": text, f"{i}.ann": brat(text, [("A", [[0, 4]])])}
    write(tmp_path / "c", files)
    runs = []
    for name, seed in (("a", 1), ("b", 1), ("c2", 2)):
        args = ["--input", tmp_path / "c", "--split", 0.8, 0.1, 0.1, "--seed", seed]
        done = cli("brat2iob.py", *args, "--output_dir", tmp_path / name, PYTHONHASHSEED=str(seed + len(name)))
        assert done.returncode == 0, done.stderr
        runs.append({s: list(read_records(tmp_path / name / f"{s}.jsonl")) for s in ("train", "dev", "test")})
    assert runs[0] == runs[1] != runs[2]
    texts = {split: {r["text"] for r in records} for split, records in runs[0].items()}
    assert [len(texts[split]) for split in ("train", "dev", "test")] == [32, 4, 4]
    assert sum(map(len, runs[0].values())) == 50 and len(set.union(*texts.values())) == 40
    info = json.loads((tmp_path / "a" / "dev.jsonl.run.json").read_text())
    assert info["counts"]["records"] == len(runs[0]["dev"])


def test_a_split_leaves_no_part_without_a_document(cli, tmp_path):
    write(tmp_path, {"s.jsonl": lines(*({"id": f"d{i}", "text": f"Case {i}."} for i in range(5)))})
    command = ["brat2iob.py", "--input", tmp_path / "s.jsonl", "--output_dir", tmp_path / "o", "--split"]
    done = cli(*command, 0.8, 0.1, 0.1)
    assert done.returncode == 1 and "leave dev none" in errors(done)[-1] and not outputs(tmp_path / "o")
    assert cli(*command, 0.6, 0.2, 0.2).returncode == 0 and cli(*command, 1, 0, 0).returncode == 0
    write(tmp_path / "c", {"a.txt": b"caf\xe9", "a.ann": ""})  # what is broken is named, as ever
    done = cli("brat2iob.py", "--input", tmp_path / "c", "--output_dir", tmp_path / "o", "--split", 0.8, 0.1, 0.1)
    assert done.returncode == 1 and "not UTF-8" in done.stderr and "--split" not in done.stderr


def test_a_named_document_of_two_files_is_on_one_side_of_a_split(tmp_path):
    parts = {f"{file}.conll": "".join(f"-DOCSTART- (P{i})\n\n{file}{i}\tB-X\n\n" for i in range(20)) for file in "ab"}
    write(tmp_path, parts)
    inputs = [str(tmp_path / name) for name in parts]
    split = ["--split", "0.5", "0.25", "0.25"]
    assert brat2iob.main(["--input", *inputs, *split, "--output_dir", str(tmp_path / "o"), "--to", "jsonl"]) == 0
    sides = [{r["doc_id"].split("~")[0] for r in read_records(tmp_path / "o" / f"{side}.jsonl")}
             for side in brat2iob.SIDES]  # fmt: skip
    assert sum(map(len, sides)) == len(set.union(*sides)) == 20


@pytest.mark.parametrize("name, content, said", [
    ("a.csv", 'Token,Tag,File\na,O,f\n",O,f\nFever,B-X,f\n",O,f\nend,O,f\n', "a.csv:3: more cells"),
    ("a.csv", "Token,Tag,Sentence_Num\nFever,B-X,1,extra\nis,O,1\n", "a.csv:2: more cells"),
    ("a.json", '{"documents":[{"id":"\\ud800","passages":[{"offset":0,"text":"Fever"}]}]}', None),
    ("a.jsonl", '{"id":"\\ud800","tokens":["a"],"ner_tags":["O"]}', None),
    ("a.jsonl", '{"file_name":"r1.tsv","sentence_id":0,"text":"Fever \\ud800 now","entities":[{"entity_id":"1",'
     '"entity_type":"X","start":0,"end":4,"entity_text":"Fever"}]}', "half of a surrogate pair"),
    ("a.csv", 'Token,Tag,File,Note\nFever,B-X,f,"see\nnote"\n"\n",O,f,\nis,O,f,,\n', None),
    ("a.json", '{"id":"1","infons":{"text":"x"},"annotations":[],"passages":[{"infons":{},"offset":0,"text":"Fever"}]}',
     None),
    ("a.json", '[{"documents":[{"id":"1","passages":[{"offset":0,"text":"Fever"}]}]}]', None),
    ("a.jsonl", '{"id":"a","text":"Fever here.","entities":[],"passages":[{"id":"k","text":"K.","score":1}]}', None),
])  # fmt: skip
def test_what_once_was_lost_or_no_one_line(cli, tmp_path, name, content, said):
    """None: it is read, as PubMed Central's arrays of one collection, and what ner_rag.py writes."""
    write(tmp_path, {name: content})
    done = cli("brat2iob.py", "--input", tmp_path / name, "--output_dir", tmp_path / "o")
    assert (done.returncode, bool(errors(done))) == ((1, True) if said else (0, False)), done.stderr
    assert said is None or said in errors(done)[0]
    assert said or "1 documents (0 left out)" in done.stderr


def test_names_that_no_file_can_have(cli, tmp_path):
    """Long ones in any script, folders that are called as what is being written, and files of a folder of no UTF-8."""
    ids = ["疾" * 100, "a.txt.part/b", "a"]
    write(tmp_path, {"n.jsonl": lines(*({"id": name, "text": "Fever here."} for name in ids))})
    (tmp_path / "o" / "n").mkdir(parents=True)  # empty, so nothing to lose
    done = cli("brat2iob.py", "--input", tmp_path / "n.jsonl", "--output_dir", tmp_path / "o", "--to", "brat")
    assert done.returncode == 0 and len(list((tmp_path / "o").rglob("*.ann"))) == 3, done.stderr
    (tmp_path / "b").mkdir()
    Path(os.fsdecode(bytes(tmp_path / "b") + b"/\xff.txt")).write_text("Fever.")
    write(tmp_path / "b", DOCUMENT)
    done = cli("brat2iob.py", "--input", tmp_path / "b", "--output_dir", tmp_path / "q", "--report", tmp_path / "r")
    assert done.returncode == 0 and not errors(done), done.stderr
    assert "no .ann beside it" in (tmp_path / "r").read_text(encoding="utf-8")


def test_what_of_a_folder_is_not_read_is_said(cli, tmp_path):
    good = {"train.jsonl": lines({"id": "a", "text": "Fever."})}
    also = {"dryrun.json": '{"documents":[{"id":"1","passages":[{"offset":0,"text":"Cough"}]}]}', "x": "",
            "o.answers.jsonl": "{}", "train.jsonl.run.json": "{}"}  # fmt: skip
    write(tmp_path / "f", good | also | {"dev.jsonl": "", "test.jsonl": '{"id": "x", "txt": "y"}'})
    for flags in ((), ("--input_format", "jsonl")):
        done = cli("brat2iob.py", "--input", tmp_path / "f", "--output_dir", tmp_path / "o", *flags)
        warned = [line for line in done.stderr.splitlines() if "no format this script knows" in line]
        assert done.returncode == 0 and len(warned) == 2 and "dev.jsonl" in warned[0] and "test.jsonl" in warned[1]
        assert (tmp_path / "o" / "dryrun.jsonl").exists() or flags  # no sidecar, though it ends as one does


def test_tagged_records_of_a_document_are_one_document_of_brat(tmp_path):
    """Predictions on IOB files, say: each record begins at 0. Of a part of a document it is said where it begins."""
    write(tmp_path, {"g.iob": "-DOCSTART- (D1)\n\nFever\tB-X\n.\tO\n\nNo\tO\ncough\tB-X\n"})
    records = list(read_records(tmp_path / "g.iob"))
    assert [record["start"] for record in records] == [0, 0]
    part = {"id": "D:5", "doc_id": "D", "start": 9, "text": "a"}
    write(tmp_path, {"p.jsonl": lines(*records), "q.jsonl": lines(part)})
    args = ["--input", tmp_path / "p.jsonl", tmp_path / "q.jsonl", "--output_dir", tmp_path / "o", "--to", "brat",
            "--report", tmp_path / "r"]  # fmt: skip
    assert brat2iob.main(list(map(str, args))) == 0
    assert (tmp_path / "o" / "p" / "D1.txt").read_text() == "Fever . No cough"
    assert (tmp_path / "o" / "p" / "D1.ann").read_text() == "T1\tX 0 5\tFever\nT2\tX 11 16\tcough\n"
    (message,) = json.loads((tmp_path / "r").read_text())["messages"]
    assert message["kind"] == "part of a document" and "begins at 9" in message["what"]


def test_lines_keys_and_long_units_that_are_left_out_are_counted(cli, tmp_path):
    """And a lone CR within an .ann line is read again from JSONL."""
    ann = "T1\tX 0 5\tFever\nT2\tX 6 10\there\nR1\tR Arg1:T1 Arg2:T2\t\n#1\tAnnotatorNotes T1\tfoo\rbar\n"
    write(tmp_path / "c", {"a.txt": "Fever here and there and everywhere.", "a.ann": ann})
    command = ["brat2iob.py", "--to", "jsonl", "brat", "--input"]
    done = cli(*command, tmp_path / "c", "--output_dir", tmp_path / "o", "--max_tokens", 3)
    assert "mention edges; 1 units longer than --max_tokens" in done.stderr  # BRAT has the lines
    done = cli(*command[:-3], "iob", "--input", tmp_path / "c", "--output_dir", tmp_path / "o", "--unit", "document")
    assert "; not written: 1 lines R, 1 lines #" in done.stderr
    done = cli(*command, tmp_path / "c", "--output_dir", tmp_path / "p", "--unit", "document")
    assert done.returncode == 0 and "not written" not in done.stderr
    done = cli(*command, tmp_path / "p" / "c.jsonl", "--output_dir", tmp_path / "q", "--unit", "document")
    assert done.returncode == 0 and (tmp_path / "q" / "c" / "a.ann").read_bytes() == ann.encode()
    write(tmp_path, {"s.jsonl": lines({"id": "a", "text": "Fever.", "answer": "{}", "status": "ok"})})
    done = cli(*command, tmp_path / "s.jsonl", "--output_dir", tmp_path / "q")
    assert done.returncode == 0 and "document a: answer, status: not copied" in done.stderr


def test_workers_change_no_byte(cli, tmp_path, rare_en):
    for n in (1, 2):
        args = [
            "--input",
            ROOT / "data" / "rare_en",
            GOLDEN / "corpus",
            "--overlap",
            "layers",
            "--to",
            "jsonl",
            "iob",
            "brat",
        ]
        done = cli("brat2iob.py", *args, "--output_dir", tmp_path / str(n), "--workers", n)
        assert done.returncode == 0, done.stderr
    files = [path.relative_to(tmp_path / "1") for path in (tmp_path / "1").rglob("*") if path.is_file()]
    assert len(files) > 200
    for path in files:
        if not path.name.endswith("run.json"):
            assert (tmp_path / "1" / path).read_bytes() == (tmp_path / "2" / path).read_bytes()


def test_statistics_count_what_stands_there(cli, tmp_path):
    text = "abc def ghi. Kl mn."
    spans = [("A", [[0, 7]]), ("B", [[0, 7]]), ("A", [[4, 7]]), ("A", [[4, 11]]), ("C", [[0, 3], [8, 11]])]
    write(tmp_path / "c/train", {"a.txt": text, "a.ann": brat(text, spans)})
    write(tmp_path / "c/dev", {"b.txt": "xyz", "b.ann": ""})
    done = cli("brat2iob.py", "--input", tmp_path / "c", "--stats")
    assert done.returncode == 0, done.stderr
    table = {re.split(r"\s{2,}", line.strip())[0]: re.split(r"\s{2,}", line.strip())[1:]
             for line in done.stdout.splitlines()}  # fmt: skip
    assert table["dev"] == ["train"]
    assert table["entities"] == ["0", "5"] and table["A"] == ["0", "3"] and table["documents"] == ["1", "1"]
    # 4-7 in all three others of its characters; 0-7 twice; 4-11 crosses both, C crosses 0-7 twice and 4-11
    assert [table[k][1] for k in ("nested", "same span", "crossing", "discontinuous")] == ["1", "2", "4", "1"]
    assert table["records"] == ["1", "2"] and table["texts, words, longest"] == ["1", "3"]
    assert table["mentions, characters, longest"] == ["0", "7"] and table["exact in tags, shortest"] == [
        "0.00%",
        "20.00%",
    ]
    assert not list(tmp_path.glob("*.jsonl"))


# ---------------------------------------------------------------------------- what a hostile review found


def bioc_xml(*passages, id_="<id>1</id>", extra=""):
    """A BioC document of (offset, inner XML) passages."""
    inner = "".join(f"<passage><offset>{at}</offset>{xml}</passage>" for at, xml in passages)
    return f"<collection><document>{id_}{inner}{extra}</document></collection>"


def annotation(start, text, type_="S"):
    location = f'<location offset="{start}" length="{len(text)}"/>'
    return f'<annotation id="1"><infon key="type">{type_}</infon>{location}<text>{text}</text></annotation>'


@pytest.mark.parametrize(
    "xml",
    [
        bioc_xml((10, "<text>Fever and pain</text>" + annotation(10, "Fever"))),
        bioc_xml((10, "<text>Fever</text>" + annotation(10, "Fever")), (0, "<text>Title</text>")),
        bioc_xml((0, "<text>Fever</text>"), extra=annotation(0, "Fever")),
        bioc_xml((0, f"<text>Fever</text><sentence><offset>0</offset>{annotation(0, 'Fever')}</sentence>")),
        bioc_xml((0, f"<text>Fe<b>ver</b> x</text>{annotation(0, 'Fever')}")),
        bioc_xml((0, "<text>Title</text>" + annotation(7, "Fever")), (7, "<text>Fever</text>")),
        bioc_xml((0, "<text>Fever</text>" + annotation(0, "Fever")), (0, "<text>Title</text>")),
        bioc_xml((0, "<text>Fever</text>" + annotation(0, "Fever")), (0, "<text></text>")),
        bioc_xml(
            (
                0,
                "<sentence><offset>7</offset><text>Fever</text></sentence><sentence><offset>0</offset><text>One."
                "</text></sentence>" + annotation(7, "Fever"),
            )
        ),
    ],
    ids=[
        "first not at 0",
        "out of order",
        "of the document",
        "of a sentence",
        "mixed content",
        "in another passage",
        "two passages at 0",
        "an empty passage",
        "sentences out of order",
    ],
)
def test_bioc_annotations_anywhere_are_where_they_say(tmp_path, xml):
    write(tmp_path, {"c.xml": xml})
    code, found, report = convert(tmp_path / "c.xml", tmp_path / "o", "--unit", "document", "--to", "jsonl", "brat")
    assert code == 0, report
    assert [(e["text"], e["type"]) for r in found["c"] for e in r["entities"]] == [("Fever", "S")]
    adds_up(report)


ENTITY = '{"id": "1", "text": "a", "entities": [{"start": 0, "end": 1, "type": "A", *}]}'


@pytest.mark.parametrize(
    "name, content, says",
    [
        ("c.xml", bioc_xml((0, "<text>a</text>"), id_=""), "a field is missing"),
        ("c.xml", bioc_xml((10, "<text>Fever and pain</text>" + annotation(6, "pain"))), "not a span"),
        ("c.xml", BOMB.replace("[", f"[<!--{'x' * 70_000}-->"), "broken: "),
        ("c.xml", '<?xml version="1.0"?><!--<collection>-->' + BOMB, "broken: "),
        ("c.json", '{"documents": [{"id": "1", "passages": [], "annotations": [{"infons": {"type": "S"}, "text": "ab", '
         '"locations": [{"offset": 0, "length": 2}]}]}]}', "a field is missing"),
        ("c.PubTator", "1|t|Fever\n1\t0\t5\tFever\n", "a field is missing"),
        ("c.json", '{"documents": [{"id": "1", "passages": [{"offset": 1e400, "text": "a"}]}]}', "a field is missing"),
        ("c.json", '{"documents": [{"id": "1", "passages": [{"offset": 0, "text": "a", "annotations": [{"id": 1, '
         '"text": 5, "infons": {"type": "A"}, "locations": [{"offset": 0, "length": 1}]}]}]}]}', "a field is missing"),
        ("c.json", '{"file_name": "9", "sentence_id": 0, "text": "x", "entities": [{"entity_id": 1, "start": 0, '
         '"end": 1, "entity_type": "", "entity_text": "x"}]}', "a field is missing"),
        ("c.json", '{"file_name": "9", "sentence_id": 0, "text": "xyz", "entities": [{"entity_id": 1, "start": 0, '
         '"end": 1.7, "entity_type": "A", "entity_text": "x"}]}', "a field is missing"),
        ("c.PubTator", "1|t|Fever and pain\n1\t0\t1_0\tFever and \tA\tX\n", "a field is missing"),
        ("c.PubTator", "1|t|Fever and pain\n1\t1_0\t14\tpain\tA\n", "a field is missing"),
        ("c.json", '{"file_name": 9, "sentence_id": 0, "text": "x", "entities": []}', "a field is missing"),
        ("c.json", '{"tokens": ["\\ud800"], "ner_tags": ["O"]}', "surrogate"),
        ("c.jsonl", '{"id": "1", "text": "a", "start": "x"}', "start"),
        ("c.jsonl", '{"id": "1", "text": "a", "start": -5}', "start"),
        ("c.jsonl", '{"id": "1", "text": "a", "other": 5}', "lines of a BRAT file"),
        ("c.jsonl", '{"id": "1", "text": "a", "other": ["R1\\nT9"]}', "lines of a BRAT file"),
        ("c.jsonl", ENTITY.replace("*", '"score": "x\\nT9"'), "score"),
        ("c.jsonl", ENTITY.replace("*", '"score": NaN'), "score"),
        ("c.jsonl", ENTITY.replace("*", '"id": ["x"]'), "the id and"),
        ("c.jsonl", ENTITY.replace("0", '"SECRET"').replace("*", '"id": "T1"'), "whole numbers"),
    ],
)  # fmt: skip
def test_odd_fields_are_one_line(cli, tmp_path, name, content, says):
    write(tmp_path, {name: content})
    done = cli(
        "brat2iob.py", "--input", tmp_path / name, "--output_dir", tmp_path / "o", "--to", "jsonl", "iob", "brat"
    )
    assert done.returncode == 1 and says in errors(done)[0] and "SECRET" not in done.stderr, done.stderr
    assert len(errors(done)) == 1 and not (tmp_path / "o").exists()


def lines(*records):
    return "".join(json.dumps(record) + "\n" for record in records)


SAMPLED = [{"id": f"d{i}:{j}", "doc_id": f"d{i}", "start": j * 20, "text": f"Case {i} {j} fever."}
           for i in range(12) for j in (0, 2, 3, 5)]  # fmt: skip


def test_records_with_gaps_keep_their_ids_and_can_be_read_again(tmp_path):
    write(tmp_path, {"s.jsonl": lines(*SAMPLED)})
    for unit in ("sentence", "document"):
        out = tmp_path / unit
        _, found, report = convert(tmp_path / "s.jsonl", out, "--unit", unit)
        assert report["messages"] == [] and len({r["id"] for r in found["s"]}) == len(found["s"])
        assert {(r["doc_id"], r["start"]) for r in found["s"]} <= {(r["doc_id"], r["start"]) for r in SAMPLED}
    assert [r["id"] for r in read_records(tmp_path / "sentence" / "s.jsonl")] == [r["id"] for r in SAMPLED]


def test_pretokenized_records_keep_id_start_and_source(tmp_path):
    record = {"id": "d:7", "doc_id": "d", "start": 90, "text": "a b", "tokens": ["a", "b"], "offsets": [[0, 1], [2, 3]],
              "tags": ["B-X", "O"], "pretokenized": True, "source": "s"}  # fmt: skip
    write(tmp_path, {"s.jsonl": lines(record)})
    _, found, _ = convert(tmp_path / "s.jsonl", tmp_path / "o")
    (back,) = found["s"]
    assert {key: back[key] for key in record} == record
    assert [e["text"] for e in back["entities"]] == ["a"]  # which its tags alone said


def test_a_split_keeps_the_parts_of_a_document_together(tmp_path):
    write(tmp_path, {"s.jsonl": lines(*SAMPLED)})
    code, found, _ = convert(tmp_path / "s.jsonl", tmp_path / "o", "--split", "0.5", "0.25", "0.25")
    assert code == 0 and sorted(found) == ["dev", "test", "train"]
    sides = {split: {r["doc_id"] for r in records} for split, records in found.items()}
    assert [len(sides[split]) for split in ("train", "dev", "test")] == [6, 3, 3] and len(
        set.union(*sides.values())
    ) == 12


def test_two_annotation_files_of_one_text_are_not_mixed(cli, tmp_path):
    files = {"a.txt": "Fever and cough.", "a.ann": "T1\tA 0 5\tFever\n", "b.txt": "Pain.", "b.ann": "T1\tA 0 4\tPain\n"}
    write(tmp_path / "c", files)
    (tmp_path / "c" / "a.ann.gz").write_bytes(gzip.compress(b"T1\tA 10 15\tcough\n"))
    done = cli("brat2iob.py", "--input", tmp_path / "c", "--output_dir", tmp_path / "out")
    assert done.returncode == 1 and "stands there twice" in done.stderr
    assert [r["doc_id"] for r in read_records(tmp_path / "out" / "c.jsonl")] == ["b"]


def test_parts_of_two_documents_with_one_id_stay_apart(cli, tmp_path):
    first = [
        {"id": "d:0", "doc_id": "d", "text": "Fever x"},
        {"id": "d:5", "doc_id": "d", "start": 50, "text": "Pain x"},
    ]
    second = [
        {"id": "d:0", "doc_id": "d", "text": "fever x"},
        {"id": "d:5", "doc_id": "d", "start": 40, "text": "Pain y"},
    ]
    taken = [{"id": "d~2", "text": "other"}, {"id": "B:0", "doc_id": "A", "text": "u"}, {"id": "B", "text": "v"}]
    write(tmp_path, {"1/s.jsonl": lines(*first, *taken), "2/s.jsonl": lines(*second)})
    args = ["--input", tmp_path / "1/s.jsonl", tmp_path / "2/s.jsonl", "--to", "jsonl"]
    done = cli("brat2iob.py", *args, "--output_dir", tmp_path / "o")
    assert done.returncode == 0, done.stderr
    records = list(read_records(tmp_path / "o/s.jsonl"))  # refuses an id that stands twice
    texts = {}
    for record in records:
        texts.setdefault(record["doc_id"], set()).add(record["text"])
    assert sorted(map(sorted, texts.values())) == [
        ["Fever x", "Pain x"],
        ["Pain y", "fever x"],
        ["other"],
        ["u"],
        ["v"],
    ]


@pytest.mark.parametrize("target", ["o/s.jsonl.run.json", "o/s.layer1.iob", "o/s/x", "o/s", "m.tsv", "c_entities.tsv"])
def test_the_report_has_a_place_of_its_own(cli, tmp_path, target):
    write(tmp_path, {"s.jsonl": lines(SAMPLED[0]), "m.tsv": "A\tB\n", "c_abstracts.tsv": "1\tOne\tTwo\n",
                     "c_entities.tsv": "1\tT1\tA\t0\t3\tOne\n"})  # fmt: skip
    source = "c_abstracts.tsv" if target.startswith("c_") else "s.jsonl"
    args = ["--input", tmp_path / source, "--output_dir", tmp_path / "o", "--map_types", tmp_path / "m.tsv"]
    done = cli("brat2iob.py", *args, "--to", "jsonl", "brat", "--report", tmp_path / target)
    assert done.returncode == 1 and "choose another --report" in errors(done)[0] and not (tmp_path / "o").exists()
    assert (tmp_path / "m.tsv").read_text() == "A\tB\n"


def test_codes_in_notes_are_no_ids(tmp_path):
    ann = ("T1\tA 0 3\tabc\nT2\tA 0 3\tabc\nN1\tReference T2 MESH:T2\tabc\nR1\tT2 Arg1:T1 Arg2:T2\n"
           "*\tEquiv T1 T2\n")  # fmt: skip
    (record,), _ = one(tmp_path, "abc def", ann, "--unit", "document")
    assert record["other"] == ["N1\tReference T1 MESH:T2\tabc", "R1\tT2 Arg1:T1 Arg2:T1", "*\tEquiv T1 T1"]


def test_a_map_is_applied_once_to_a_renamed_document(cli, tmp_path):
    record = {"id": "a", "text": "x y", "entities": [{"start": 0, "end": 1, "type": "A"}]}
    other = record | {"text": "x z"}
    taken = record | {"id": "a~2", "doc_id": "a~2"}
    write(tmp_path, {"1/s.jsonl": lines(record, taken), "2/s.jsonl": lines(other), "swap.json": '{"A": "B", "B": "A"}'})
    for n in (1, 2):
        args = ["--input", tmp_path / "1/s.jsonl", tmp_path / "2/s.jsonl", "--map_types", tmp_path / "swap.json"]
        done = cli("brat2iob.py", *args, "--workers", n, "--output_dir", tmp_path / f"o{n}")
        assert done.returncode == 0 and "now a~" in done.stderr
        assert [e["type"] for r in read_records(tmp_path / f"o{n}/s.jsonl") for e in r["entities"]] == ["B"] * 3


@pytest.mark.parametrize("target", ["in/s.jsonl", "o/s.jsonl"])
def test_the_report_never_takes_the_place_of_data(cli, tmp_path, target):
    write(tmp_path / "in", {"s.jsonl": lines(SAMPLED[0])})
    args = ["--input", tmp_path / "in/s.jsonl", "--output_dir", tmp_path / "o", "--report", tmp_path / target]
    done = cli("brat2iob.py", *args)
    assert done.returncode == 1 and "would be written over" in errors(done)[0]
    assert (tmp_path / "in/s.jsonl").read_text() == lines(SAMPLED[0])


def test_packed_documents_of_a_folder_are_read(tmp_path):
    pack = gzip.compress
    write(tmp_path / "c", {"a.txt": "abc", "a.ann": "T1\tA 0 3\tabc\n", "b.txt.gz": pack(b"def"),
                           "b.ann.gz": pack(b"T1\tA 0 3\tdef\n")})  # fmt: skip
    for source in ("c", "c/b.ann.gz"):
        code, found, _ = convert(tmp_path / source, tmp_path / "o" / source)
        texts = [e["text"] for records in found.values() for r in records for e in r["entities"]]
        assert code == 0 and texts == (["abc", "def"] if source == "c" else ["def"])


def test_a_folder_of_our_own_outputs_is_read_once(cli, tmp_path):
    write(tmp_path / "c", under("train/", DOCUMENT))
    assert cli("brat2iob.py", "--input", tmp_path / "c", "--output_dir", tmp_path / "one").returncode == 0
    done = cli("brat2iob.py", "--input", tmp_path / "one", "--output_dir", tmp_path / "two", "--to", "brat")
    assert done.returncode == 0 and outputs(tmp_path / "two") == ["train/a.ann", "train/a.txt", "train/run.json"], (
        done.stderr
    )
    done = cli("brat2iob.py", "--input", tmp_path / "two", "--output_dir", tmp_path / "two" / "x", "--to", "brat")
    assert done.returncode == 1 and "lies in an input folder" in errors(done)[0]


def test_notes_stay_and_what_points_nowhere_goes_with_a_warning(tmp_path):
    ann = ("T1\tA 0 3\tabc\nT2\tA 0 3\tabc\nT3\tB 4 7\tdef\nR1\tOf Arg1:T2 Arg2:T3\nA1\tNeg R1\n"
           "#1\tAnnotatorNotes T2\tstage T2 per T2-weighted MRI\n")  # fmt: skip
    (record,), _ = one(tmp_path, "abc def", ann, "--unit", "document")
    assert record["other"][2] == "#1\tAnnotatorNotes T1\tstage T2 per T2-weighted MRI"
    (record,), report = one(tmp_path / "2", "abc def", ann, "--unit", "document", "--types", "A")
    assert record["other"] == ["#1\tAnnotatorNotes T1\tstage T2 per T2-weighted MRI"]
    assert [m["what"] for m in report["messages"] if m["kind"] == "dangling line"] == [
        "2 lines that point to mentions left out are left out, too"
    ]


def test_names_that_clash_or_are_too_long_are_files_all_the_same(tmp_path):
    ids = ["A", "A.txt/x", "/".join(["y" * 100] * 60), "../../evil", "/etc/x", "\ufeff", "a/../b"]
    write(
        tmp_path, {"s.jsonl": lines(*({"id": str(i), "doc_id": id_, "text": "\ufeffabc"} for i, id_ in enumerate(ids)))}
    )
    out = tmp_path / "deep" / "o"
    assert brat2iob.main(["--input", str(tmp_path / "s.jsonl"), "--output_dir", str(out), "--to", "brat"]) == 0
    assert len(list(out.rglob("*.ann"))) == len(ids) and outputs(tmp_path / "deep") == [f"o/{n}" for n in outputs(out)]
    _, found, _ = convert(out / "s", tmp_path / "again")
    assert {r["text"] for r in found["s"]} == {"\ufeffabc"}


def test_strict_hears_of_every_warning(cli, tmp_path):
    write(tmp_path, {"q.conll": "-DOCSTART- (7)\n\na O\n\n-DOCSTART- (7)\n\nb I-X\n"})
    args = ["--input", tmp_path / "q.conll", "--output_dir", tmp_path / "o", "--strict", "--report", tmp_path / "r"]
    done = cli("brat2iob.py", *args)
    assert done.returncode == 1 and len(json.loads((tmp_path / "r").read_text())["messages"]) == 2, done.stderr


def test_a_blank_document_takes_its_mentions_along_in_the_counts(tmp_path):
    records, report = one(tmp_path, "  \n ", "T1\tA 0 2\t  \n")
    assert records == [] and report["counts"]["left out"] == 1 and report["counts"]["dropped"] == 1
    adds_up(report)


def test_white_space_tokens_part_two_mentions(tmp_path):
    write(tmp_path, {"c.csv": "Token,Tag,Sentence_Num,File\nFever,B-S,0,a\n ,O,0,a\nhere,I-S,0,a\n"})
    code, found, report = convert(tmp_path / "c.csv", tmp_path / "o")
    assert code == 0 and found["c"][0]["tags"] == ["B-S", "B-S"] and report["messages"][0]["kind"] == "empty token"


def test_an_interrupted_run_leaves_nothing(tmp_path):
    block = "".join(f"{i}|t|Title {i}\n{i}|a|{'word ' * 200}\n{i}\t0\t5\tTitle\tA\tD\n\n" for i in range(40_000))
    write(tmp_path, {"big.PubTator": block})
    command = [
        sys.executable,
        ROOT / "brat2iob.py",
        "--input",
        tmp_path / "big.PubTator",
        "--output_dir",
        tmp_path / "o",
    ]
    with subprocess.Popen(
        [*command, "--workers", "2"], stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as run:
        for _ in range(300):
            if list((tmp_path / "o").glob("*.part")):
                break
            time.sleep(0.05)
        os.killpg(run.pid, signal.SIGINT)
        stderr = run.communicate(timeout=60)[1]
    assert run.returncode == 130 and stderr.splitlines()[-1] == "error: interrupted" and "Traceback" not in stderr
    assert outputs(tmp_path / "o") == []


# ---------------------------------------------------------------------------- real corpora

CORPORA = {  # (archives or files, None where there is nothing to unpack)
    "pharmaconer": ["PharmaCoNERCorpus.tar.xz"],
    "raredis": ["train.zip", "dev.zip"],
    "nerel-bio": ["nerel-bio-v1.0.tar.xz"],
    "maccrobat2020": ["MACCROBAT2020.tar.xz"],
    "jnlpba": None,
    "ncbi-disease": None,
}
FILES = {
    "jnlpba": ["iob2/JNLPBA_BIO.train.tsv", "iob2/JNLPBA_BIO.valid.tsv", "iob2/JNLPBA_BIO.test.tsv"],
    "ncbi-disease": ["conll/train.tsv", "conll/devel.tsv", "conll/test.tsv"],
}
SPLIT = {"devel": "dev", "valid": "dev", "MACCROBAT2020": "all"} | {f"JNLPBA_BIO.{s}": s for s in ("train", "test")}
SPLIT["JNLPBA_BIO.valid"] = "dev"


class Facts:
    """What one conversion of a corpus gave, summed up in one pass over its files."""

    def __init__(self, inputs, out, report):
        self.inputs, self.report = inputs, report
        self.entities, self.discontinuous, self.references = Counter(), Counter(), Counter()
        self.wrong_text, self.not_tiled, self.mentions, self.tags = [], [], Counter(), Counter()
        for path in sorted(out.glob("*.jsonl")):
            split = SPLIT.get(path.stem, path.stem)
            for record in map(json.loads, path.open(encoding="utf-8")):
                self.add(split, record)

    def add(self, split, record):
        text = record["text"]
        if "".join(record["tokens"]) != "".join(text.split()) or "".join(text.split()) != "".join(
            text[a:b] for a, b in record["offsets"]
        ):
            self.not_tiled.append(record["id"])
        self.tags.update(tag[0] for tag in record["tags"])
        for entity in record["entities"]:
            spans = fragments(entity)
            if " ".join(text[a:b] for a, b in spans) != entity["text"] or not 0 <= entity["start"] < entity[
                "end"
            ] <= len(text):
                self.wrong_text.append((record["id"], entity))
            self.entities[split] += 1
            self.discontinuous[split] += len(spans) > 1
            if "reference" in entity:
                self.references[split, difference(entity["reference"], entity["text"])] += 1
            where = tuple((a + record["start"], b + record["start"]) for a, b in spans)
            self.mentions[split, record["doc_id"], entity["type"], where] += 1


def difference(reference, text):
    """How a reference text differs from the slices: by quotes, or more."""
    a, b = "".join(reference.split()), "".join(text.split())
    return "quotes" if a != b and a.replace('"', "") == b.replace('"', "") else "more"


@pytest.fixture(scope="session")
def facts(cli, corpus, tmp_path_factory):
    done = {}

    def of(name):
        if name not in done:
            if name in FILES:
                inputs = [corpus(name) / file for file in FILES[name]]
            else:
                inputs = [corpus(name, archive) for archive in CORPORA[name]]
            out = tmp_path_factory.mktemp(f"out_{name}")
            run = cli("brat2iob.py", "--input", *inputs, "--output_dir", out, "--report", out / "report")
            assert run.returncode == 0, run.stderr[-2000:]
            done[name] = Facts(inputs, out, json.loads((out / "report").read_text()))
        return done[name]

    return of


BRAT = ("pharmaconer", "raredis", "nerel-bio", "maccrobat2020")
IOB = ("jnlpba", "ncbi-disease")
COUNTS = {
    "pharmaconer": {"train": 3822, "dev": 1926, "test": 1876},
    "raredis": {"train": 10426, "dev": 1458},
    "nerel-bio": {"train": 54204, "dev": 6435, "test": 6173},
    "maccrobat2020": {"all": 25189},
    "jnlpba": {"train": 46750, "dev": 4551, "test": 8662},
    "ncbi-disease": {"train": 5145, "dev": 787, "test": 960},
}
DISCONTINUOUS = {
    "raredis": {"train": 664, "dev": 103},
    "nerel-bio": {"train": 423, "dev": 52, "test": 40},  # 439, 53 and 40 less the 17 that BRAT split at white space
    "maccrobat2020": {"all": 39},  # 44 less 5
}
REFERENCES = {  # every reference text that differs from the slices by more than white space, by how
    "raredis": {("train", "quotes"): 14, ("dev", "quotes"): 2}
}


@pytest.mark.parametrize("name", BRAT + IOB)
def test_real_entity_counts(facts, name):
    found = facts(name)
    counts = found.report["counts"]
    assert found.entities == COUNTS[name]
    assert +found.discontinuous == DISCONTINUOUS.get(name, {})
    assert counts["entities"] == sum(COUNTS[name].values()) and counts.get("dropped", 0) == 0
    assert counts.get("duplicates", 0) == (6 if name == "nerel-bio" else 0)
    adds_up(found.report)


@pytest.mark.parametrize("name", BRAT + IOB)
def test_real_slices_and_tokens(facts, name):
    found = facts(name)
    assert found.wrong_text == [] and found.not_tiled == []
    assert set(found.tags) == set("BIO") and found.tags["B"] <= sum(found.entities.values())


@pytest.mark.parametrize("name", BRAT)
def test_real_reference_texts_that_differ_are_the_known_ones(facts, name):
    found = facts(name)
    assert found.references == REFERENCES.get(name, {})
    messages = found.report["messages"]
    assert len(messages) == {"pharmaconer": 5, "raredis": 16}.get(name, 0)
    if name == "pharmaconer":
        assert found.report["counts"]["repaired"] == 5
        assert {m["where"].split("/")[-1].split(":")[0] for m in messages} == {"S0211-69952015000200015-1.ann"}
        assert all(m["kind"] == "mismatch" and "moved to" in m["what"] for m in messages)
    assert name != "raredis" or all("quotes" in m["what"] for m in messages)


def read_gold(folders):
    """The mentions of BRAT folders by a reader of the test's own, and how many lines stood for them."""
    out, lines = Counter(), 0
    for path in (path for folder in folders for path in folder.rglob("*.ann") if path.name[0] != "."):
        text = path.with_suffix(".txt").read_bytes().decode("utf-8")
        found = []
        for line in path.read_bytes().decode("utf-8").split("\n"):
            if line[:1] == "T":
                type_, where = line.split("\t")[1].split(" ", 1)
                found.append((type_, [list(map(int, span.split())) for span in where.split(";")]))
        lines += len(found)
        split = SPLIT.get(path.parent.name, path.parent.name)
        out.update((split, path.stem, type_, tuple(map(tuple, runs))) for type_, runs in gold(text, found))
    return out, lines


@pytest.mark.parametrize("name", BRAT)
def test_real_gold_characters_in_are_gold_characters_out(facts, name):
    found = facts(name)
    wanted, lines = read_gold(found.inputs)
    assert lines == found.report["counts"]["read"]
    gone, new = wanted - found.mentions, found.mentions - wanted
    if name == "pharmaconer":  # the five whose offsets drift are moved by one or two
        assert len(gone) == len(new) == 5
        moves = {
            (a[3][0][0] - b[3][0][0], a[3][0][1] - b[3][0][1]) for a, b in zip(sorted(gone), sorted(new), strict=True)
        }
        assert moves <= {(1, 1), (2, 2)}
    else:
        assert not gone and not new


@pytest.mark.parametrize("name", IOB)
def test_real_iob_comes_back_line_by_line(facts, name, tmp_path):
    """JSONL of an IOB2 file says its tokens and tags; so does the IOB written beside it."""
    source = facts(name).inputs[1]
    brat2iob.main(["--input", str(source), "--output_dir", str(tmp_path)])
    lines = [
        line.split("\t") for line in source.read_bytes().decode("utf-8").replace("\r", "").split("\n") if line.strip()
    ]
    lines = [[cells[0], cells[-1]] for cells in lines if not cells[0].startswith("-DOCSTART-")]
    for path in (path for path in tmp_path.iterdir() if path.suffix == ".jsonl" or is_iob(path)):
        found = [list(pair) for r in read_records(path) for pair in zip(r["tokens"], r["tags"], strict=True)]
        assert len(found) == len(lines) and found == lines


def test_real_document_units_say_the_same_as_sentences(facts, tmp_path):
    found = facts("maccrobat2020")
    brat2iob.main(
        ["--input", *map(str, found.inputs), "--output_dir", str(tmp_path), "--unit", "document", "--to", "jsonl"]
    )
    documents = Facts(found.inputs, tmp_path, {})
    assert documents.mentions == found.mentions and outputs(tmp_path)[0] == "MACCROBAT2020.jsonl"


# ---------------------------------------------------------------------------- real corpora in every format

FORMAT_COUNTS = {  # corpus: (what is read, archive or None, {split: entities}); exact duplicates are kept once
    "ncbi-disease": ("pubtator", None, {"NCBItrainset_corpus": 5134, "NCBIdevelopset_corpus": 787,
                                        "NCBItestset_corpus": 960}),
    "bc5cdr": ("pubtator", None, {"CDR_TrainingSet.PubTator": 9385, "CDR_DevelopmentSet.PubTator": 9591,
                                  "CDR_TestSet.PubTator": 9809}),
    "bc5cdr bioc": ("", "bioc.tar.xz", {"CDR_TrainingSet.BioC": 9560, "CDR_DevelopmentSet.BioC": 9758,
                                        "CDR_TestSet.BioC": 9924}),
    "bc5cdr iob": ("iob", None, {"train": 9385, "devel": 9593, "test": 9809}),
    "biored": ("pubtator", None, {"Train": 13351, "Dev": 3533, "Dev.crlf": 3533, "Test": 3535}),
    "chemprot": ("", None, {"chemprot_training": 25752, "chemprot_development": 15567, "chemprot_test_gs": 20828,
                            "chemprot_sample": 1289}),
    "rudrec": ("", None, {"rudrec_annotated": 4566}),
    "medmentions": ("", None, {"mm_ner_sts.dev": 66763 + 141, "mm_ner_sts.test": 66447 + 145,  # I- after no B-
                             "st21pv_sample_3docs.pubtator": 115}),
    "jnlpba": ("", "standoff.tar.xz", {"train": 51301, "test": 8662}),
    "raredis": ("dev_all.csv", None, {"dev_all": 1282}),
}  # fmt: skip
TYPES = {
    "rudrec": {"DI": 1401, "Drugname": 1043, "Drugform": 836, "ADR": 720, "Drugclass": 330, "Finding": 236},
    "biored": {"GeneOrGeneProduct": 4430 + 1180 + 2 * 1087, "CellLine": 103 + 50 + 2 * 22, "OrganismTaxon": 1429 + 393
               + 2 * 370, "DiseaseOrPhenotypicFeature": 3646 + 917 + 2 * 982, "ChemicalEntity": 2853 + 754 + 2 * 822,
               "SequenceVariant": 890 + 241 + 2 * 250},
    "bc5cdr": {"Chemical": 5203 + 5347 + 5385, "Disease": 4182 + 4244 + 4424},
}  # fmt: skip


def lzma_copies(folder, out):
    """The .xz files of a folder, unpacked."""
    out.mkdir()
    for path in sorted(folder.glob("*.xz")):
        (out / path.stem).write_bytes(lzma.decompress(path.read_bytes()))
    return out


@pytest.fixture(scope="session")
def read_corpus(cli, corpus, tmp_path_factory):
    """{split: records} and the report of a corpus of FORMAT_COUNTS, or of BioRED in BioC."""
    done = {}

    def of(name):
        if name not in done:
            below, archive, _ = FORMAT_COUNTS.get(name, ("bioc", None, {}))
            source = corpus(name.split()[0], archive) / below
            out = tmp_path_factory.mktemp("out")
            if name == "biored bioc":
                source = lzma_copies(source, out / "in")
            args = ["--input", source, "--output_dir", out, "--to", "jsonl", "--report", out / "report"]
            run = cli("brat2iob.py", *args)
            assert run.returncode == 0, run.stderr[-2000:]
            found = {path.stem: list(read_records(path)) for path in out.glob("*.jsonl")}
            done[name] = found, json.loads((out / "report").read_text())
        return done[name]

    return of


@pytest.mark.parametrize("name", FORMAT_COUNTS)
def test_real_counts_in_every_format(read_corpus, name):
    found, report = read_corpus(name)
    assert {split: sum(len(r["entities"]) for r in records) for split, records in found.items()} == FORMAT_COUNTS[name][
        2
    ]
    counts = Counter(report["counts"])
    assert (counts["dropped"], counts["repaired"]) == ((3, 1) if name == "bc5cdr bioc" else (0, 0))
    assert counts["duplicates"] == {"ncbi-disease": 11, "bc5cdr bioc": 26}.get(name, 0)
    if name in TYPES:
        assert Counter(e["type"] for rs in found.values() for r in rs for e in r["entities"]) == TYPES[name]
    adds_up(report)


def spans_of(records):
    return Counter((r["doc_id"], type_, str(spans)) for r in records for type_, spans in mentions([r]))


def texts_of(records, rename=None):
    return Counter(("any" if rename is None else rename.get(e["type"], e["type"]), "".join(e["text"].split()))
                   for r in records for e in r["entities"])  # fmt: skip


def test_bc5cdr_is_the_same_in_three_formats(read_corpus):
    """BioC adds the parts of composite mentions; IOB2 cuts words, and one mention twice, at its own token edges."""
    (pubtator, _), (bioc, _), (iob, _) = map(read_corpus, ("bc5cdr", "bc5cdr bioc", "bc5cdr iob"))
    for name, short, more, other in (("Training", "train", 175, (0, 0)), ("Development", "devel", 167, (12, 14)),
                                     ("Test", "test", 115, (5, 5))):  # fmt: skip
        first, second = spans_of(pubtator[f"CDR_{name}Set.PubTator"]), spans_of(bioc[f"CDR_{name}Set.BioC"])
        assert not first - second and (second - first).total() == more
        first, second = (texts_of(each, {}) for each in (pubtator[f"CDR_{name}Set.PubTator"], iob[short]))
        assert ((first - second).total(), (second - first).total()) == other


def test_biored_is_the_same_in_three_formats(read_corpus):
    (pubtator, _), (bioc, report) = read_corpus("biored"), read_corpus("biored bioc")
    assert pubtator["Dev.crlf"] == pubtator["Dev"]
    for split in ("Train", "Dev", "Test"):
        assert spans_of(bioc[f"{split}.BioC"]) == spans_of(pubtator[split])
    assert report["counts"]["duplicate documents"] == 200  # dev and test, in JSON as in XML: each kept once


def test_ncbi_disease_is_the_same_in_two_formats(read_corpus, facts):
    found, _ = read_corpus("ncbi-disease")
    source = dict(zip(("train", "develop", "test"), facts("ncbi-disease").inputs, strict=True))
    for name, other in (
        ("train", (2, 13)),
        ("develop", (0, 0)),
        ("test", (0, 0)),
    ):  # 11: the document that stands twice
        first, second = texts_of(found[f"NCBI{name}set_corpus"]), texts_of(read_records(source[name]))
        assert ((first - second).total(), (second - first).total()) == other


def test_jnlpba_is_the_same_in_two_formats(read_corpus, facts):
    """IOB2 writes straight quotes as `` and '', and renames types in some words, too; nothing else differs."""
    found, _ = read_corpus("jnlpba")
    files, new = facts("jnlpba").inputs, {"PRGE": "protein", "CLTP": "cell_type", "CLLN": "cell_line"}
    for split, paths, other in (("train", files[:2], 23), ("test", files[2:], 3)):
        first, second = (
            texts_of(found[split], {}),
            sum((texts_of(read_records(path), new) for path in paths), Counter()),
        )
        gone, more = first - second, second - first
        assert gone.total() == more.total() == other
        assert (
            Counter((t, re.sub("``|''", '"', text).replace("-PRGE", "-protein")) for t, text in more.elements()) == gone
        )


ROUND = ("pharmaconer", "raredis", "nerel-bio", "maccrobat2020", "jnlpba")


@pytest.mark.parametrize("unit", ["sentence", "document"])
@pytest.mark.parametrize("name", ROUND)
def test_real_brat_to_jsonl_to_brat_to_jsonl(cli, corpus, tmp_path, name, unit):
    archives = CORPORA[name] or ["standoff.tar.xz"]
    inputs = [corpus(name, archive) for archive in archives]
    for step, source, flags in (("1", inputs, ["jsonl", "brat"]), ("2", None, ["brat"]), ("3", None, ["jsonl"])):
        if step == "2":
            source = sorted((tmp_path / "1").glob("*.jsonl"))
        elif step == "3":
            source = sorted(path for path in (tmp_path / "2").iterdir() if path.is_dir())
        done = cli("brat2iob.py", "--input", *source, "--output_dir", tmp_path / step, "--unit", unit, "--to", *flags)
        assert done.returncode == 0, done.stderr[-2000:]
    first, again = (sorted((tmp_path / step).glob("*.jsonl")) for step in "13")
    assert [path.name for path in first] == [path.name for path in again] != []
    for a, b in zip(first, again, strict=True):
        one_, two = (list(read_records(path)) for path in (a, b))
        assert [r["text"] for r in one_] == [r["text"] for r in two]
        assert [list(map(strip, r["entities"])) for r in one_] == [list(map(strip, r["entities"])) for r in two]
        assert [r.get("other") for r in one_] == [r.get("other") for r in two]
    direct, back = ({str(path.relative_to(tmp_path / step)): path.read_bytes() for path in (tmp_path / step).rglob("*")
                     if path.suffix in (".txt", ".ann")} for step in "12")  # fmt: skip
    assert direct == back if unit == "document" else set(direct) == set(back)


@pytest.mark.parametrize("name", ["raredis", "nerel-bio"])
def test_real_jsonl_to_iob_to_jsonl(facts, name, tmp_path):
    """The flat entities by token index: all that IOB can hold."""
    out = tmp_path / "o"
    brat2iob.main(["--input", *map(str, facts(name).inputs), "--output_dir", str(out)])
    for path in out.glob("*.jsonl"):
        brat2iob.main(["--input", str(path.with_suffix(".iob")), "--output_dir", str(tmp_path / "again")])
        first, again = (
            [tag_spans(r["tags"], strict=True) for r in read_records(each)]
            for each in (path, tmp_path / "again" / path.name)
        )
        assert first == again


STATISTICS = {  # as the corpora's own README counts them; of NEREL-BIO less what duplicates and split mentions added
    "raredis": {"nested": "122 37", "crossing": "582 91", "same span": "888 112", "discontinuous": "664 103",
                "exact in tags, longest": "88.35% 86.97%", "exact in tags, layers": "93.63% 92.94%"},
    "nerel-bio": {"nested": "1,959 1,726 18,890", "crossing": "91 74 910", "same span": "0 0 52",
                  "discontinuous": "52 40 423", "exact in tags, shortest": "76.01% 77.95% 72.64%",
                  "exact in tags, layers": "99.19% 99.35% 99.22%"},
    "maccrobat2020": {"nested": "317", "crossing": "59", "same span": "242", "discontinuous": "39"},
    "pharmaconer": {"nested": "0 0 0", "exact in tags, longest": "100.00% 100.00% 100.00%"},
}  # fmt: skip


@pytest.mark.parametrize("name", STATISTICS)
def test_real_statistics(cli, facts, name):
    done = cli("brat2iob.py", "--input", *facts(name).inputs, "--stats")
    assert done.returncode == 0, done.stderr
    rows = [re.split(r"\s{2,}", line.strip(), maxsplit=1) for line in done.stdout.splitlines()]
    table = {row[0]: " ".join(row[1].split()) for row in rows if len(row) == 2}
    assert {key: table[key] for key in STATISTICS[name]} == STATISTICS[name]


# ---------------------------------------------------------------------------- a fuzz of real files


def mutate(rng, raw):
    """A few random edits of bytes, lines and numbers."""
    for _ in range(rng.randint(1, 4)):
        i, lines = rng.randrange(len(raw) + 1), raw.split(b"\n")
        j = rng.randrange(len(lines))
        kind = rng.randrange(8)
        if kind == 0:
            raw = raw[:i] + bytes([rng.randrange(256)]) + raw[i + 1 :]
        elif kind == 1:
            raw = (
                raw[:i]
                + rng.choice(["é".encode(), "😀".encode(), b"\r\n", b"\t", b" ", b";", b"\xef\xbb\xbf", b"&", b"<"])
                + raw[i:]
            )
        elif kind == 2:
            raw = raw[:i] + raw[i + rng.randint(1, 9) :]
        elif kind == 3:
            raw = b"\n".join([*lines[:j], lines[rng.randrange(len(lines))], *lines[j:]])
        elif kind == 4:
            raw = b"\n".join(lines[:j] + lines[j + 1 :])
        elif kind == 5:
            raw = raw[:i]
        elif kind == 6:
            raw = re.sub(rb"\d+", lambda m: str(int(m[0]) + rng.randint(-3, 3)).encode(), raw[:i], count=1) + raw[i:]
        else:
            raw = raw.replace(b"\n", b"\r\n") if rng.random() < 0.5 else raw[:i] + raw[i:].replace(b"\t", b" ", 1)
    return raw


@pytest.fixture(scope="session")
def real_files(corpus):
    """[{name: bytes}] of single real documents: BRAT, PubTator, BioC."""
    cases = []
    for name in ("pharmaconer", "raredis", "nerel-bio", "maccrobat2020"):
        anns = sorted(path for path in corpus(name, CORPORA[name][0]).rglob("*.ann") if path.name[0] != ".")
        for ann in anns[:: len(anns) // 12]:
            cases.append({"a.txt": ann.with_suffix(".txt").read_bytes(), "a.ann": ann.read_bytes()})
    for name, file in (("bc5cdr", "pubtator/CDR_TestSet.PubTator.txt"), ("biored", "pubtator/Dev.crlf.PubTator")):
        blocks = re.split(rb"\r?\n\r?\n", (corpus(name) / file).read_bytes())
        cases += [{"a.PubTator": b"\n\n".join(blocks[i : i + 2])} for i in range(0, 48, 4)]
    documents = re.findall(
        rb"<document>.*?</document>", (corpus("bc5cdr", "bioc.tar.xz") / "CDR_TestSet.BioC.xml").read_bytes(), re.S
    )
    cases += [{"a.xml": b"<collection>" + each + b"</collection>"} for each in documents[:12]]
    return cases


def check_fuzzed(tmp_path, files, capsys):
    folder = write(tmp_path / "c", files)
    code = brat2iob.run(lambda: brat2iob.main(["--input", str(folder), "--output_dir", str(tmp_path / "o"),
                                               "--report", str(tmp_path / "report")]))  # fmt: skip
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith(("error:", "warning:"))]
    assert code in (0, 1) and (code == 0 or any(line.startswith("error:") for line in lines))
    records = [r for path in (tmp_path / "o").glob("*.jsonl") for r in read_records(path)]  # spans are checked there
    if (tmp_path / "report").exists():
        report = json.loads((tmp_path / "report").read_text())
        adds_up(report)
        if "a.ann" in files and not report["counts"].get("left out"):
            lines_of = files["a.ann"].removeprefix(b"\xef\xbb\xbf").split(b"\n")
            assert report["counts"].get("read", 0) == sum(line.startswith(b"T") for line in lines_of)
        assert sum(len(r["entities"]) for r in records) == report["counts"].get("entities", 0)
    return code


@pytest.mark.parametrize("count", [200, pytest.param(2000, marks=pytest.mark.slow)])
def test_fuzzed_files_give_no_traceback_and_no_silent_loss(tmp_path_factory, real_files, capsys, count):
    rng, codes = random.Random(count), Counter()
    for _ in range(count):
        files = dict(rng.choice(real_files))
        for name in files:
            if len(files) == 1 or rng.random() < 0.7:
                files[name] = mutate(rng, files[name])
        codes[check_fuzzed(tmp_path_factory.mktemp("f"), files, capsys)] += 1
    assert min(codes[0], codes[1]) > count / 20  # some are harmless, some are not


# ---------------------------------------------------------------------------- sentences

SENTENCES = [  # | marks each break
    # plain stops
    "The fever rose.| It fell by noon.",
    "Is it lupus?| Not yet known!| We wait…| Then act.",
    "He said \"stop.\"| Then he left.",
    "She asked: “Is it bad?”| He said no.",
    "(It ended.)| A new start.",
    "What?!| No such luck.",
    "Well... maybe.",
    "No space.Here is none.",
    "医生来了。|他走了。",
    # abbreviations
    "He saw Dr. Brown at St. Mary.| Nothing else.",
    "Levels of approx. 3.5 mg were seen in Fig. 2 and in refs. 4 to 6.| No change.",
    "It acts, e.g. on liver, i.e. the organ, cf. Table 3.| Good.",
    "Smith et al. Found nothing new.",
    "She took 5 mg b.i.d. Aspirin helped.",
    "Pt. is a 54 y.o. Male with CHF.| Stable.",
    "Born on Jan. 5, died on Dec. 9.| No cause.",
    "See No. 5.| Done.",
    # initials and species
    "We grew E. coli and S. aureus.| Both died.",
    "J. R. Smith wrote it.| They agree.",
    "We saw John F. Kennedy there.| Sure.",
    "It was described by J. Smith in 1990.| It is rare.",
    "We gave vitamin C.| It helped.",
    "She has hepatitis B.| The virus spreads.",
    "Asked about pain, she said no.| Then she left for bed No. 5.",
    # numbers
    "The pH was 7.| It rose.",
    "The dose was 0.5.| Then 1.5 came.",
    "BP 120/80.| HR 72.| RR 16.",
    # brackets
    "The drug (see ref. 3. Also Table 2) works.| Fine.",
    "It failed [see note. And more] again.| Ok.",
    "An open (bracket. Never closes. Again.".replace(". ", ".| "),
    "A bracket (of " + "more words " * 30 + "than that.| And its end) is none.",
    "Transfer to [**Hospital 1. North Wing**] today.| Fine.",
    "Seen by Dr. [**Last Name (un) 123**] on [**2101-1-2**].| Stable.",
    # Spanish
    "El Dr. Pérez vio a la Sra. Gómez.| Se fue.",
    "Vive en la Avda. Madrid nº 5.| Tiene fiebre.",
    "Toma aprox. 20 mg, p. ej. de noche.| ¿Duele?| ¡Sí!",
    "Reside en EE.UU. desde 2001.| Vuelve.",
    "Fiebre de 38,5 °C.| Se pauta paracetamol 1 g/8 h.| Buena evolución.",
    "La Dra. Mª Luisa lo trata con ac. Fólico.| Mejora.",
    # Russian
    "Родился в 1950 г. в Москве.| Умер в 2001 г.| Похоронен там.",
    "Акад. И. П. Павлов жил здесь.| Он работал.",
    "Врач А. С. Иванов назначил.| Помогло.",
    "Операцию провёл Г. В. Петров.| Всё хорошо.",
    "НИИ им. Н.Н. Бурденко открыт.| Да.",
    "Боль, жар и т.д.| Врач пришёл.",
    "См. рис. 2 и табл. 3.| Итог ясен.",
    "Рост 5 тыс. рублей, т. е. мало.| Спад.",
    "Средство не помогло!!!| Не советую.",
    # lines
    "1. Aspirin daily.\n|2. Rest.\n|3. Return if worse.",
    "Plan:\n|1) CT scan\n|2) MRI",
    "HISTORY OF PRESENT ILLNESS:\n|The patient fell.\n|PHYSICAL EXAM:\n|Well.",
    "Allergies: none\n|Weight: 70 kg\n|- rest\n|* fluids",
    "First paragraph\n\n|second paragraph",
    "Impression:\n\n|1.\n\n|Stable.",
    "one\r\n\r\n|two",
    "One.\r\n|Two.\r\n",
    "One.\u2028|Two.\u2029|Three.\x85|Four.",
    "The patient was admitted to the hospital last night because of fever and\n"
    "a cough that had lasted for more than two weeks without any relief from\n"
    "tablets. |He was seen by the doctor on call, who heard crackles in the left\n"
    "lung and asked for a film of the chest, which showed a small shadow in the\n"
    "lower lobe. |Blood was drawn and the first dose of the drug was given in the\n"
    "emergency room before he was moved to the ward.\n"
    "|1. Pneumonia: the drug goes on for seven days in all, then a film again\n"
    "to see whether the shadow has gone.\n"
    "|Medications: none that he could remember, except for one white tablet in\n"
    "the morning.\n"
    "|- rest",
    # nothing to cut
    "no stop at all",
    "...",
    "   ",
    "",
]  # fmt: skip


@pytest.mark.parametrize("marked", SENTENCES)
def test_sentence_breaks(marked):
    wanted = [part.strip() for part in marked.split("|")]
    text = marked.replace("|", "")
    edges = [0, *sentence_starts(text), len(text)]
    assert [text[a:b].strip() for a, b in itertools.pairwise(edges)] == wanted
    assert not text or all(a < b for a, b in itertools.pairwise(edges))


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_sentence_begins_with_its_first_character_not_with_a_space(end):
    text = f"One came.  {end} Two went!{end}{end}\tThree stayed. "
    assert [text[i:][:3] for i in sentence_starts(text)] == ["Two", "Thr"]


HARD = {
    "words on one line": "a word, ",
    "dots": ".",
    "spaced dots": ". ",
    "spaces": " ",
    "line ends": "\r\n",
    "quotes": '."',
    "open brackets": "(a. B ",
    "open [**": "[** a. B",
    "no break in sight": "ab. ",
    "abbreviations": "Dr. ",
}


@pytest.mark.parametrize("piece", HARD.values(), ids=HARD)
def test_breaks_take_linear_time(piece):
    text = piece * (200_000 // len(piece))
    began = time.process_time()
    sentence_starts(text)
    assert time.process_time() - began < 5


def test_breaks_take_linear_time_in_a_long_sentence():
    began = time.process_time()
    sentence_starts("ab. " * 400_000)
    assert time.process_time() - began < 6

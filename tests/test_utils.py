"""utils.py: records and files (round trips, refusals), tokens, tags in four schemes, the flat view and its policies."""

import gzip
import io
import itertools
import json
import time
import unicodedata
from argparse import Namespace
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import utils
from utils import (
    DataError,
    flat_entities,
    flat_tags,
    flat_view,
    fragments,
    iob_record,
    read_records,
    tag_spans,
    writing,
)

FILES = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
LOGIC = settings(max_examples=200, deadline=None)

# Letters with and without marks, astral, right to left, ideographs, every kind of line end and of space.
ALPHABET = "aZéß19_-.,;:()[]\"'</&#|\\ \t\n\r\u0085\u2028\u2029\u00a0\u200b\u200d\u0301\u0915\u093fअ😀𝛃אבعم١医…\x1c\x0c"
texts = st.text(ALPHABET, max_size=40) | st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=25
)
types = st.sampled_from(["A", "B", "RARE-DISEASE", "I-X", "_", "ТИП"])


def entity(text, start, end, type_="A", spans=None):
    made = {"start": start, "end": end, "type": type_, "text": utils.span_text(text, spans or [[start, end]])}
    return made | ({"fragments": spans} if spans else {})


@st.composite
def entities_of(draw, text, most=6):
    """Nested, crossing, equal and discontinuous entities of `text`."""
    out = []
    for _ in range(draw(st.integers(0, most)) if text else 0):
        edges = draw(st.lists(st.integers(0, len(text)), min_size=2, max_size=6, unique=True).map(sorted))
        spans = [list(pair) for pair in zip(edges[::2], edges[1::2], strict=False)]
        many = spans if len(spans) > 1 else None
        out.append(entity(text, spans[0][0], spans[-1][1], draw(types), many))
    return out


@st.composite
def records(draw, size=4):
    out = []
    for i in range(draw(st.integers(1, size))):
        text = draw(texts)
        record = {"id": f"r{i}", "doc_id": f"d{i // 2}", "start": 0, "text": text, "entities": draw(entities_of(text))}
        out.append(flat_view(record)[0] if draw(st.booleans()) else record)
    return out


# ---------------------------------------------------------------------------- run and writing


@pytest.mark.parametrize(
    "error, code, line",
    [
        (DataError("x.iob:3: no tag"), 1, "error: x.iob:3: no tag\n"),
        (FileNotFoundError(2, "No such file or directory", "x.iob"), 1, "error: x.iob: No such file or directory\n"),
        (KeyboardInterrupt(), 130, "error: interrupted"),
    ],
)
def test_run_turns_an_error_into_one_line_and_a_code(error, code, line, capsys):
    def main():
        raise error

    assert utils.run(main) == code
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(line) and err.count("\n") == 1


def test_run_passes_the_code_of_main_on_and_hides_no_bug():
    assert utils.run(lambda: None) == 0
    assert utils.run(lambda: 1) == 1
    with pytest.raises(ZeroDivisionError):
        utils.run(lambda: 1 / 0)


@pytest.mark.parametrize("name", ["x.jsonl", "x.jsonl.gz", "new/deep/x.iob"])
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_writing_leaves_nothing_after_an_exception(tmp_path, name, error):
    with pytest.raises(error), writing(tmp_path / name) as out:
        out.write("half" * 100_000)
        raise error
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_writing_keeps_the_complete_file_that_was_there(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text("whole")
    with pytest.raises(ValueError), writing(path) as out:
        out.write("half")
        raise ValueError
    assert (path.read_text(), [p.name for p in tmp_path.iterdir()]) == ("whole", ["x.jsonl"])


def test_writing_shows_the_file_only_when_it_is_complete(tmp_path):
    path = tmp_path / "x.txt"
    with writing(path) as out:
        out.write("a\r\nb\u2028\n")
        assert not path.exists() and Path(f"{path}.part").exists()
    assert path.read_bytes() == "a\r\nb\u2028\n".encode() and not Path(f"{path}.part").exists()
    with writing(tmp_path / "x.bin", binary=True) as out:
        out.write(b"\xff\n")
    assert (tmp_path / "x.bin").read_bytes() == b"\xff\n"


def test_writing_gz_gives_the_same_bytes_at_any_time(tmp_path, monkeypatch):
    for name, now in (("a.gz", 1.0), ("b.gz", 2e9)):
        monkeypatch.setattr(time, "time", lambda now=now: now)
        with writing(tmp_path / name) as out:
            out.write("same\n")
    assert (tmp_path / "a.gz").read_bytes() == (tmp_path / "b.gz").read_bytes()
    assert gzip.decompress((tmp_path / "a.gz").read_bytes()) == b"same\n"


def test_sidecar_says_how_the_output_was_made(tmp_path):
    output, source = tmp_path / "x.jsonl", tmp_path / "in.txt"
    source.write_bytes(b"abc")
    utils.write_sidecar(output, Namespace(seed=7, test_file=Path("t")), [source], time.time(), ["pytest", "nope"], n=3)
    info = json.loads((tmp_path / "x.jsonl.run.json").read_text())
    assert info["arguments"] == {"seed": 7, "test_file": "t"} and info["n"] == 3 and info["format"] == utils.VERSION
    assert list(info["inputs"].values()) == ["ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"]
    assert info["versions"]["pytest"] == pytest.__version__ and info["versions"]["nope"] is None
    assert 0 <= info["seconds"] < 5
    utils.write_sidecar(tmp_path, Namespace(), [], time.time())
    assert (tmp_path / "run.json").exists() and not list(tmp_path.glob("*.part"))


def test_sha256_of_several_files_changes_with_a_name_and_with_a_byte(tmp_path):
    digests = set()
    for name, content in (("a", "x"), ("b", "x"), ("b", "y")):
        write = tmp_path / f"{name}{content}" / name
        write.parent.mkdir()
        write.write_text(content)
        digests.add(utils.sha256(write, write))
        assert utils.sha256(write, write) == utils.sha256(str(write), str(write)) != utils.sha256(write)
    assert len(digests) == 3


# ---------------------------------------------------------------------------- round trips


def plain(record):
    """A record as JSON has it, to compare what was written with what was read."""
    return json.loads(json.dumps(record))


@FILES
@given(records(), st.sampled_from(["x.jsonl", "x.jsonl.gz"]))
def test_jsonl_round_trip(tmp_path, made, name):
    assert utils.write_jsonl(tmp_path / name, made) == len(made)
    assert list(read_records(tmp_path / name)) == list(map(plain, made))


@FILES
@given(records(), st.sampled_from(["x.iob", "x.conll.gz", "x.tsv", "x.bio"]))
def test_iob_round_trip(tmp_path, made, name):
    views = [view for view in (flat_view(record)[0] for record in made) if view["tokens"]]
    path = tmp_path / name
    assert utils.write_iob(path, made) == len(made)
    if not views:
        with pytest.raises(DataError):
            list(read_records(path))
        return
    back = list(read_records(path))
    assert [(r["tokens"], r["tags"]) for r in back] == [(v["tokens"], v["tags"]) for v in views]
    documents = [list(group) for _, group in itertools.groupby(made, key=lambda r: r["doc_id"])]
    numbers = [n for n, group in enumerate(documents) for r in group if utils.tokenize(r["text"])]
    assert [r["doc_id"] for r in back] == [f"#{n}" for n in numbers]
    for record in back:
        assert record["pretokenized"] and record["text"] == " ".join(record["tokens"])
        assert all(record["text"][a:b] == t for (a, b), t in zip(record["offsets"], record["tokens"], strict=True))
    assert utils.write_iob(tmp_path / "again.iob", back) == len(back)
    assert [r["tags"] for r in read_records(tmp_path / "again.iob")] == [r["tags"] for r in back]


@FILES
@given(records(), st.booleans(), st.booleans(), st.booleans(), st.booleans())
def test_readers_take_crlf_bom_blanks_gz_and_a_missing_last_newline(tmp_path, made, bom, crlf, packed, cut):
    for suffix, write in ((".jsonl", utils.write_jsonl), (".iob", utils.write_iob)):
        write(tmp_path / f"x{suffix}", [*made, {"id": "z", "doc_id": "z", "text": "end", "entities": []}])
        expected = list(read_records(tmp_path / f"x{suffix}"))
        raw = (tmp_path / f"x{suffix}").read_bytes().replace(b"\n", b" \r\n" if crlf else b" \n")
        raw = b"\xef\xbb\xbf" * bom + (raw.rstrip() if cut else raw + b"\n\n")
        path = tmp_path / f"y{suffix}{'.gz' * packed}"
        path.write_bytes(gzip.compress(raw) if packed else raw)
        assert list(read_records(path)) == expected


def test_limit_stops_reading_before_what_is_broken(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"id": "a", "text": "x"}\n{"id": "b", "text": "y"}\nbroken\n')
    assert [r["id"] for r in read_records(path, limit=2)] == ["a", "b"]
    with pytest.raises(DataError, match=":3: not JSON"):
        list(read_records(path))


def test_user_made_records_are_completed(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"id": "a", "text": "cold feet", "entities": [{"start": 5, "end": 9, "type": "S"}]}')
    (record,) = read_records(path)
    assert record == {"id": "a", "text": "cold feet", "doc_id": "a", "start": 0,
                      "entities": [{"start": 5, "end": 9, "type": "S", "text": "feet"}]}  # fmt: skip
    assert flat_view(record)[0]["tags"] == ["O", "B-S"]


def test_unicode_line_ends_are_text(tmp_path):
    (tmp_path / "x.jsonl").write_text(json.dumps({"id": "a", "text": "a\u2028b\x85c\x0c"}, ensure_ascii=False))
    assert next(read_records(tmp_path / "x.jsonl"))["text"] == "a\u2028b\x85c\x0c"
    (tmp_path / "x.iob").write_bytes("a\u2028b\tO\nc\x85d\tB-X\n".encode())
    assert next(read_records(tmp_path / "x.iob"))["tokens"] == ["a\u2028b", "c\x85d"]


@pytest.mark.parametrize(
    "name, iob",
    [("a.iob", 1), ("a.IOB.gz", 1), ("a.conll", 1), ("a.bio", 1), ("a.tsv.gz", 1), ("a.iob2", 1), ("a.jsonl", 0),
     ("a.jsonl.gz", 0), ("tsv", 0), ("a.iob.bak", 0), (Path("a.iob"), 1)],
)  # fmt: skip
def test_the_name_says_the_format(name, iob):
    assert utils.is_iob(name) == bool(iob)


# ---------------------------------------------------------------------------- refusals


def refused(path):
    """The message of the DataError that reading `path` raises; it is one line that starts with the file."""
    with pytest.raises(DataError) as caught:
        list(read_records(path))
    message = str(caught.value)
    assert message.startswith(str(path)) and "\n" not in message
    return message.removeprefix(str(path))


ENTITY = '{"id": "a", "text": "abc def", "entities": [%s]}'


@pytest.mark.parametrize(
    "line, says",
    [
        ("{broken", "not JSON"),
        ('{"id": "a"} {}', "not JSON"),
        ("[1]", 'no "text"'),
        ("7", 'no "text"'),
        ('{"id": "a"}', 'no "text"'),
        ('{"text": "x"}', '"id"'),
        ('{"id": 3, "text": "x"}', '"id"'),
        ('{"id": "ok", "text": "x"}', "stands twice"),
        ('{"id": "a", "text": "\\ud83d"}', "surrogate"),
        ('{"id": "a", "text": "x", "entities": {}}', '"entities"'),
        ('{"id": "a", "text": "x", "entities": [1]}', "an entity needs"),
        (ENTITY % '{"start": 0, "end": 3}', "an entity needs"),
        (ENTITY % '{"start": 0, "end": 8, "type": "A"}', "not a span"),
        (ENTITY % '{"start": -1, "end": 3, "type": "A"}', "not a span"),
        (ENTITY % '{"start": 3, "end": 3, "type": "A"}', "not a span"),
        (ENTITY % '{"start": 4, "end": 3, "type": "A"}', "not a span"),
        (ENTITY % '{"start": 0.0, "end": 3, "type": "A"}', "whole numbers"),
        (ENTITY % '{"start": false, "end": 3, "type": "A"}', "whole numbers"),
        (ENTITY % '{"start": "0", "end": 3, "type": "A"}', "whole numbers"),
        (ENTITY % '{"start": 0, "end": 3, "type": ""}', "type"),
        (ENTITY % '{"start": 0, "end": 3, "type": ["A"]}', "type"),
        (ENTITY % '{"start": 0, "end": 3, "type": "A", "text": "abd"}', "count offsets in Unicode characters"),
        (ENTITY % '{"start": 0, "end": 6, "type": "A", "fragments": [[0, 2], [4, 7]]}', "hull"),
        (ENTITY % '{"start": 0, "end": 7, "type": "A", "fragments": [[0, 5], [4, 7]]}', "overlap"),
        (ENTITY % '{"start": 0, "end": 7, "type": "A", "fragments": [[0, 3], [5, 6], [4, 7]]}', "order"),
        (ENTITY % '{"start": 0, "end": 7, "type": "A", "fragments": [[0, 3], [7, 7]]}', "hull"),
        (ENTITY % '{"start": 0, "end": 7, "type": "A", "fragments": [0, 7]}', "not of its kind"),
        ('{"id": "a", "text": "x", "tokens": ["x"]}', "offsets"),
        ('{"id": "a", "text": "x", "tags": ["O"]}', "tokens"),
        ('{"id": "a", "text": "x", "pretokenized": true}', "tokens"),
        ('{"id": "a", "text": "x y", "tokens": ["x"], "offsets": [[0, 1]]}', "cover"),
        ('{"id": "a", "text": "x", "tokens": ["y"], "offsets": [[0, 1]]}', "not what stands"),
        ('{"id": "a", "text": "x ", "tokens": ["x"], "offsets": [[0, -1]]}', "not what stands"),
        ('{"id": "a", "text": "xy", "tokens": ["y", "x"], "offsets": [[1, 2], [0, 1]]}', "out of order"),
        ('{"id": "a", "text": "x", "tokens": ["x"], "offsets": [[0, 1]], "tags": []}', "tags"),
        ('{"id": "a", "text": "x", "tokens": ["x"], "offsets": [[0, 1]], "tags": [""]}', "empty tag"),
        ('{"id": "a", "text": "x", "tokens": ["x"], "offsets": [[0, 1]], "tags": ["X-A"]}', "unknown tag"),
        ("[" * 100_000, ""),
    ],
)
def test_a_bad_jsonl_line_is_named(tmp_path, line, says):
    (tmp_path / "x.jsonl").write_text(f'{{"id": "ok", "text": "x"}}\n\n{line}\n')
    message = refused(tmp_path / "x.jsonl")
    assert message.startswith(":3: ") and says in message


@pytest.mark.parametrize(
    "line, says",
    [
        ("b\t", "empty tag"),
        ("b", "too few columns"),
        ("b\tX-D", "unknown tag"),
        ("b\tB-", "unknown tag"),
        ("b\tb-D", "unknown tag"),
        ("b\tNN\tO", "3 columns, but line 1 has 2"),
        ("\tO", "empty token"),
    ],
)
@pytest.mark.parametrize("between", ["", "\n"])
def test_a_bad_iob_line_is_named(tmp_path, line, says, between):
    (tmp_path / "x.iob").write_text(f"a\tO\n{between}{line}\n")
    message = refused(tmp_path / "x.iob")
    assert message.startswith(f":{2 + len(between)}: ") and says in message


@pytest.mark.parametrize("name", ["x.iob", "x.jsonl", "x.iob.gz", "x.jsonl.gz"])
@pytest.mark.parametrize(
    "raw, says",
    [(b"", "no record"), (b"\n \n\r\n", "no record"), (bytes(range(256)), ":1: "), (b"a\tO\n\xe9\tO\n", ":"),
     ("a\tO\n".encode("utf-16"), ":1: ")],
)  # fmt: skip
def test_empty_and_binary_files_are_refused(tmp_path, name, raw, says):
    (tmp_path / name).write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
    assert says in refused(tmp_path / name)


@pytest.mark.parametrize("broken", [b"no gzip at all", gzip.compress(b"a\tO\n" * 9999)[:-20]])
def test_broken_gzip_is_refused(tmp_path, broken):
    (tmp_path / "x.iob.gz").write_bytes(broken)
    assert "gzip" in refused(tmp_path / "x.iob.gz")


def test_latin_1_is_refused_with_its_line(tmp_path):
    (tmp_path / "x.iob").write_bytes(b"a\tO\n\nni\xf1o\tO\n")
    assert refused(tmp_path / "x.iob").startswith(":3: not UTF-8 at byte 2")


def test_white_space_in_a_type_can_not_be_written_as_iob(tmp_path):
    record = {"id": "a", "doc_id": "a", "text": "abc", "entities": [entity("abc", 0, 3, "A B")]}
    with pytest.raises(DataError, match="white space"):
        utils.write_iob(tmp_path / "x.iob", [record])
    assert list(tmp_path.iterdir()) == []


def test_a_nul_in_a_text_can_not_be_written_as_iob(tmp_path):
    with pytest.raises(DataError):
        utils.write_iob(tmp_path / "x.iob", [{"id": "a", "doc_id": "a", "text": "a \0 b", "entities": []}])


# ---------------------------------------------------------------------------- IOB files


def read_text(tmp_path, text):
    (tmp_path / "x.iob").write_text(text)
    return list(read_records(tmp_path / "x.iob"))


@pytest.mark.parametrize(
    "line", ["{}\t{}", "{} {}", "{}   {}", "{}\tNN\t{}", "{}\tNN\tI-NP\t{}", "{} NN I-NP {}", "{}\t{}\t"]
)
def test_columns_token_first_tag_last(tmp_path, line):
    (record,) = read_text(
        tmp_path, "\n".join(line.format(*cell) for cell in [("IL", "B-P"), ("-2", "I-P"), ("up", "O")])
    )
    assert (record["tokens"], record["tags"], record["text"]) == (["IL", "-2", "up"], ["B-P", "I-P", "O"], "IL -2 up")
    assert record["entities"] == [{"start": 0, "end": 5, "type": "P", "text": "IL -2"}]


@pytest.mark.parametrize(
    "heads, ids",
    [
        ((None, None), ["#0:0", "#1:0"]),
        (("-DOCSTART-\tO", None), ["#0:0", "#0:1"]),
        (("-DOCSTART-\tO", "-DOCSTART-\tO"), ["#0:0", "#1:0"]),
        (("-DOCSTART- -X- O O", "-DOCSTART- -X- -X- O"), ["#0:0", "#1:0"]),
        (("-DOCSTART- (12345)", "-DOCSTART- (678)"), ["12345:0", "678:0"]),
        (("-DOCSTART- (1)", "-DOCSTART- (1)"), ["1:0", "1~2:0"]),
        (("###MEDLINE:96001", "###MEDLINE:96002"), ["96001:0", "96002:0"]),
    ],
)
def test_document_starts(tmp_path, heads, ids):
    text = "".join((f"{head}\n\n" if head else "") + f"{token}\tO\n\n" for head, token in zip(heads, "ab", strict=True))
    found = read_text(tmp_path, text)
    assert [r["id"] for r in found] == ids and [r["tokens"] for r in found] == [["a"], ["b"]]
    assert [r["doc_id"] for r in found] == [name.split(":")[0] for name in ids]


def test_tokens_that_look_like_headers_are_tokens(tmp_path):
    (record,) = read_text(tmp_path, "#\tO\n-\tO\n-D\tO\n###\tB-X\n")
    assert record["tokens"] == ["#", "-", "-D", "###"]


def test_iob1_is_read_leniently_and_said(tmp_path, capsys):
    (record,) = read_text(tmp_path, "a\tI-X\nb\tI-X\nc\tB-X\nd\tO\ne\tI-Y\n")
    assert [(e["text"], e["type"]) for e in record["entities"]] == [("a b", "X"), ("c", "X"), ("e", "Y")]
    assert record["tags"] == ["I-X", "I-X", "B-X", "O", "I-Y"]  # scored as they are written
    assert "2 of 5 tags continue nothing" in capsys.readouterr().err


def test_bare_tags_have_the_type_underscore(tmp_path):
    (record,) = read_text(tmp_path, "a\tB\nb\tI\nc\tO\n")
    assert [(e["text"], e["type"]) for e in record["entities"]] == [("a b", "_")]


# ---------------------------------------------------------------------------- tokens


@LOGIC
@given(texts, st.lists(st.integers(-3, 45), max_size=6))
def test_tokens_tile_the_non_space_text_with_and_without_cuts(text, cuts):
    plain_, cut = utils.tokenize(text), utils.tokenize(text, cuts)
    for offsets in (plain_, cut):
        assert all(a < b for a, b in offsets) and all(a[1] <= b[0] for a, b in itertools.pairwise(offsets))
        assert "".join(text[a:b] for a, b in offsets) == "".join(text.split())
        assert not any(char.isspace() for a, b in offsets for char in text[a:b])
    edges = {edge for span in cut for edge in span}
    assert edges == {e for span in plain_ for e in span} | {c for c in cuts if any(a < c < b for a, b in plain_)}


@LOGIC
@given(st.text(st.characters(max_codepoint=127), max_size=60))
def test_the_quick_pattern_for_ascii_finds_the_same_tokens(text):
    assert utils.tokenize(text) == [list(match.span()) for match in utils._token_pattern().finditer(text)]


@pytest.mark.parametrize(
    "text, tokens",
    [
        ("IL-2 (5 mg)", "IL - 2 ( 5 mg )"),
        ("p53/HbA1c 7.5%", "p 53 / HbA 1 c 7 . 5 %"),
        ("e\u0301pilepsie a_b", "e\u0301pilepsie a _ b"),
        ("हिन्दी ١٢ב", "हिन्दी ١٢ ב"),
        ("hemoglobina12 ß-Ü", "hemoglobina 12 ß - Ü"),
        ("😀👍🏽 ≥5", "😀 👍 🏽 ≥ 5"),
        ("soft\u00adhyphen zero\u200bwidth", "soft\u00adhyphen zero\u200bwidth"),
    ],
)
def test_tokens(text, tokens):
    assert [text[a:b] for a, b in utils.tokenize(text)] == tokens.split(" ")


def test_no_token_starts_with_a_mark_that_belongs_to_a_letter_before_it():
    marks = [chr(i) for i in range(0x300, 0x110000) if unicodedata.category(chr(i))[0] == "M"]
    assert all(utils.tokenize(f"a{mark}b") == [[0, 3]] for mark in marks)


# ---------------------------------------------------------------------------- tags


@st.composite
def token_spans(draw, most=9):
    """Non-overlapping, often adjacent (first, last + 1, type), in order, and the number of tokens."""
    spans, at = [], 0
    for gap, length in draw(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 3)), max_size=4)):
        spans.append((at + gap, at + gap + length, draw(st.sampled_from(["A", "B", "X-Y"]))))
        at = spans[-1][1]
    return spans, at + draw(st.integers(0, 2))


def encode(spans, n, scheme):
    """Tags of the spans in a scheme, written from its definition."""
    tags = ["O"] * n
    inside, last, one = {"IOBES": "IES", "BILOU": "ILU"}.get(scheme, "IIB")
    for i, (start, end, type_) in enumerate(spans):
        tags[start:end] = [f"{inside}-{type_}"] * (end - start)
        tags[start], tags[end - 1] = f"B-{type_}", f"{last if end - start > 1 else one}-{type_}"
        touches = i and spans[i - 1][1:] == (start, type_)
        if scheme == "IOB1" and not touches:
            tags[start] = f"I-{type_}"
    return tags


@LOGIC
@given(token_spans(), st.sampled_from(["IOB1", "IOB2", "IOBES", "BILOU"]))
def test_every_scheme_decodes_to_its_spans(made, scheme):
    spans, n = made
    tags = encode(spans, n, scheme)
    assert tag_spans(tags) == spans
    if scheme == "IOB2":
        assert tag_spans(tags, strict=True) == spans and utils.ill_formed(tags) == 0


@LOGIC
@given(token_spans(), st.lists(texts.filter(utils.tokenize), min_size=22, max_size=22))
def test_tags_to_entities_to_tags_is_the_identity(made, words):
    spans, n = made
    tags = encode(spans, n, "IOB2")
    tokens = ["".join(word.split()) for word in words[:n]]
    record = utils.iob_record("x:0", "x", tokens, tags)
    assert flat_view(record)[0]["tags"] == tags and not flat_view(record)[1]
    kept, lost = flat_entities(record["entities"], record["text"])
    assert flat_tags(kept, record["offsets"]) == tags and not lost


@LOGIC
@given(st.data())
def test_entities_to_tags_to_entities_is_the_identity(data):
    text = data.draw(texts)
    kept, _ = flat_entities(data.draw(entities_of(text)), text)
    whole = [entity(text, *span) for span in kept]
    view, lost, cuts = flat_view({"text": text, "entities": whole})
    for strict in (True, False):
        assert utils.spans_to_entities(tag_spans(view["tags"], strict), view["offsets"], text) == whole
    assert not lost and cuts == len(view["tokens"]) - len(utils.tokenize(text))


tags_of_any_kind = st.lists(
    st.sampled_from(["O", "B-A", "I-A", "B-B", "I-B", "E-A", "S-A", "L-B", "U-B", "B", "I"]), max_size=8
)


@LOGIC
@given(tags_of_any_kind)
def test_lenient_spans_cover_every_token_but_o_and_strict_ones_are_well_formed(tags):
    for strict in (True, False):
        spans = tag_spans(tags, strict)
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(spans))
        assert all(utils.split_tag(tag)[1] == type_ for start, end, type_ in spans for tag in tags[start:end])
        covered = {i for start, end, _ in spans for i in range(start, end)}
        if strict:
            assert all(tags[a][0] == "B" and {t[0] for t in tags[a + 1 : b]} <= {"I"} for a, b, _ in spans)
            assert {i for i, tag in enumerate(tags) if tag[0] == "B"} <= covered
        else:
            assert covered == {i for i, tag in enumerate(tags) if tag != "O"}


@pytest.mark.parametrize(
    "tags, lenient, strict, ill",
    [
        ("I-A I-A B-A", [(0, 2, "A"), (2, 3, "A")], [(2, 3, "A")], 1),
        ("B-A I-B", [(0, 1, "A"), (1, 2, "B")], [(0, 1, "A")], 1),
        ("B-A O I-A", [(0, 1, "A"), (2, 3, "A")], [(0, 1, "A")], 1),
        ("B-A I-A I-B I-A", [(0, 2, "A"), (2, 3, "B"), (3, 4, "A")], [(0, 2, "A")], 2),
        ("S-A E-A", [(0, 1, "A"), (1, 2, "A")], [], 0),
        ("B-X-Y I-X-Y", [(0, 2, "X-Y")], [(0, 2, "X-Y")], 0),
        ("", [], [], 0),
    ],
)
def test_lenient_and_strict(tags, lenient, strict, ill):
    tags = tags.split()
    assert (tag_spans(tags), tag_spans(tags, strict=True), utils.ill_formed(tags)) == (lenient, strict, ill)


# ---------------------------------------------------------------------------- the flat view


OVERLAPS, STAND_INS = ("longest", "shortest", "first", "last"), ("drop", "hull", "first", "longest", "split")


def trim(text, start, end):
    """A span without the white space at its edges."""
    while start < end and text[start].isspace():
        start += 1
    while start < end and text[end - 1].isspace():
        end -= 1
    return start, end


def stand_in(item, text, policy):
    """The (start, end) that may stand in the tags for an entity, by the policy's name."""
    spans = fragments(item)
    if len(spans) > 1:
        longest = max(end - start for start, end in spans)
        spans = {"drop": [], "hull": [[item["start"], item["end"]]], "first": spans[:1], "split": spans,
                 "longest": [next(span for span in spans if span[1] - span[0] == longest)]}[policy]  # fmt: skip
    return [span for span in (trim(text, *span) for span in spans) if span[0] < span[1]]


def clash(a, b):
    return a[0] < b[1] and b[0] < a[1]


@LOGIC
@given(st.data(), st.sampled_from(OVERLAPS), st.sampled_from(STAND_INS))
def test_flat_entities_do_what_the_policies_say(data, overlap, discontinuous):
    text = data.draw(texts)
    items = data.draw(entities_of(text))
    kept, lost = flat_entities(items, text, overlap, discontinuous)
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(kept)) and all(a < b for a, b, _ in kept)
    possible = {(*span, item["type"]) for item in items for span in stand_in(item, text, discontinuous)}
    assert set(kept) <= possible
    # What a policy prefers, as its name says: everything it left out clashes with something it liked at least as much.
    better = {
        "longest": lambda a, b: a[1] - a[0] >= b[1] - b[0],
        "shortest": lambda a, b: a[1] - a[0] <= b[1] - b[0],
        "first": lambda a, b: a[0] <= b[0],
        "last": lambda a, b: a[0] >= b[0],
    }[overlap]
    whole = [tuple(stand_in(item, text, "drop")[0]) for item in items if stand_in(item, text, "drop")]
    reasons = {id(item): reason for item, reason in lost}
    for item in items:
        spans = stand_in(item, text, discontinuous)
        continuous = len(fragments(item)) == 1
        for span in spans:
            if (*span, item["type"]) not in kept:
                blank = any(text[a:b].isspace() for a, b in fragments(item))
                assert reasons[id(item)] == "overlap" or (blank and not continuous)
                rivals = [k for k in kept if clash(k, span) and (not continuous or k[:2] in whole)]
                assert any(better(k, span) or (not continuous and k[:2] in whole) for k in rivals)
        if not spans:
            dropped = not continuous and discontinuous == "drop"
            assert reasons[id(item)] == ("discontinuous" if dropped else "white space")
    assert len(lost) == len(reasons)


@LOGIC
@given(st.data(), st.sampled_from(OVERLAPS))
def test_flat_entities_are_the_greedy_choice_in_any_input_order(data, overlap):
    text = "".join(data.draw(texts).split()) + "x"
    items = [item for item in data.draw(entities_of(text)) if "fragments" not in item]
    keys = {"longest": lambda s: (s[0] - s[1], s[0]), "shortest": lambda s: (s[1] - s[0], s[0]),
            "first": lambda s: (s[0], s[0] - s[1]), "last": lambda s: (-s[0], s[0] - s[1])}  # fmt: skip
    chosen = []
    for item in sorted(items, key=lambda e: (*keys[overlap]((e["start"], e["end"])), e["type"])):
        span = item["start"], item["end"], item["type"]
        if not any(clash(span, other) for other in chosen):
            chosen.append(span)
    kept, _ = flat_entities(data.draw(st.permutations(items)), text, overlap)
    assert kept == sorted(chosen)


def test_policies_on_one_example():
    text = "rare skin disease of the hands"
    items = [entity(text, 0, 17, "R"), entity(text, 5, 17, "S"), entity(text, 10, 17, "D"),
             entity(text, 5, 30, "X", [[5, 9], [25, 30]])]  # fmt: skip
    choose = {o: [t for _, _, t in flat_entities(items, text, o)[0]] for o in OVERLAPS}
    assert choose == {"longest": ["R"], "shortest": ["D"], "first": ["R"], "last": ["D"]}
    stands = {d: [s for s in flat_entities(items, text, "longest", d)[0] if s[2] == "X"] for d in STAND_INS}
    assert stands == {"drop": [], "hull": [], "first": [], "longest": [(25, 30, "X")], "split": [(25, 30, "X")]}


def test_many_overlapping_entities_take_no_quadratic_time():
    text = "ab " * 20_000
    items = [entity(text, i, i + 5, "A") for i in range(0, 3 * 19_000, 1)]
    began = time.process_time()
    kept, lost = flat_entities(items, text, "first")
    assert time.process_time() - began < 5 and len(kept) + len(lost) == len(items)


@LOGIC
@given(st.data())
def test_without_cuts_an_entity_takes_every_token_that_it_touches(data):
    text = data.draw(texts)
    items = data.draw(entities_of(text))
    view, _, cuts = flat_view({"text": text, "entities": items}, cut=False)
    kept, _ = flat_entities(items, text)
    assert cuts == 0 and view["offsets"] == utils.tokenize(text)
    for offset, tag in zip(view["offsets"], view["tags"], strict=True):
        assert tag[2:] == next((k[2] for k in kept if clash(k, offset)), "")


def test_own_tokens_of_an_iob_record_are_never_cut():
    record = utils.iob_record("a:0", "a", ["p53-null", "mice"], ["O", "O"]) | {"entities": []}
    record["entities"] = [entity(record["text"], 0, 3, "G")]
    view, _, cuts = flat_view(record)
    assert (view["tokens"], view["tags"], cuts) == (["p53-null", "mice"], ["B-G", "O"], 0)


def test_reading_streams(tmp_path, monkeypatch):
    """The first record comes before the file is read to its end."""
    (tmp_path / "x.jsonl").write_text("".join(f'{{"id": "{i}", "text": "x"}}\n' for i in range(50_000)))
    read = []
    monkeypatch.setattr("builtins.open", lambda *a, _open=io.open: read.append(_open(*a)) or read[-1])
    stream = read_records(tmp_path / "x.jsonl")
    next(stream)
    assert read[0].raw.tell() < 1_000_000
    stream.close()


# ---------------------------------------------------------------------------- prompts and answers


def keys(entities):
    return sorted((e["start"], e["end"], e["type"], str(e.get("fragments"))) for e in entities)


def can_hold(record, format):
    """Whether a format can say a record's entities, and parse_answer must give them back."""
    text, entities = record["text"], record["entities"]
    if not text.strip() or any(len(fragments(e)) > 1 for e in entities):
        return False  # most come back as `scattered` words, but that is no promise
    if format == "spans":
        return True
    spans = [(e["start"], e["end"]) for e in entities]
    if format == "inline":
        crossing = any(a < c < b < d for a, b in spans for c, d in spans)
        return not crossing and all(e["text"] == e["text"].strip() for e in entities)
    if format == "iob":
        offsets = record["offsets"] if record.get("pretokenized") else utils.tokenize(text)
        edges = {start for start, _ in offsets}, {end for _, end in offsets}
        kept, lost = flat_entities(entities, text)
        return not lost and all(a in edges[0] and b in edges[1] for a, b, _ in kept) and sorted(spans) == sorted(
            (a, b) for a, b, _ in kept)  # fmt: skip
    mentions = {(e["start"], e["end"]): " ".join(e["text"].split()) for e in entities}
    return all(utils.occurrences(mention, text) == [span] for span, mention in mentions.items())  # repeats: measured


@st.composite
def labelled(draw):
    """A record of words and odd characters, with continuous entities that begin and end with a letter."""
    pieces = st.sampled_from(["fever", "IL", "2", "-", "<b>", "&", ";", "é", "боль", "𝛃", "joint pain", "\n"])
    words = draw(st.lists(pieces, min_size=1, max_size=12))
    text = " ".join(words)
    tokens = utils.tokenize(text)
    made = []
    for _ in range(draw(st.integers(0, 4))):
        first = draw(st.integers(0, len(tokens) - 1)) if tokens else 0
        last = min(len(tokens) - 1, first + draw(st.integers(0, 2)))
        if tokens and text[tokens[first][0] : tokens[last][1]].strip():
            type_ = draw(st.sampled_from(["A", "RARE-DISEASE", "Б"]))
            made.append(entity(text, tokens[first][0], tokens[last][1], type_))
    unique = {(e["start"], e["end"], e["type"]): e for e in made}
    return {"id": "a", "doc_id": "a", "text": text, "entities": list(unique.values())}


@settings(max_examples=400, deadline=None)
@given(labelled(), st.sampled_from(utils.FORMATS), st.booleans())
def test_what_a_format_can_hold_comes_back(record, format, all_types):
    types = ["A", "RARE-DISEASE", "Б"]
    answer = utils.render_answer(record, types, format, all_types)
    parsed = utils.parse_answer(answer, record, types, format)
    if can_hold(record, format):
        assert parsed == {"entities": parsed["entities"], "status": "ok", "dropped": []}
        assert keys(parsed["entities"]) == keys(record["entities"])
    for found in parsed["entities"]:
        utils.check_entity(found, record["text"])  # a span of the text, whatever came in


@settings(max_examples=400, deadline=None)
@given(st.text(max_size=60) | st.text(st.sampled_from('{}[]",:\'ab \n<>/AO-\tB;&`'), max_size=60),
       st.sampled_from(utils.FORMATS), texts)  # fmt: skip
def test_no_answer_breaks_the_parser(answer, format, text):
    record = {"id": "a", "doc_id": "a", "text": text, "entities": []}
    parsed = utils.parse_answer(answer, record, ["A", "B"], format, "fuzzy")
    assert parsed["status"] in utils.STATUSES and all(item["reason"] in utils.REASONS for item in parsed["dropped"])
    for found in parsed["entities"]:
        utils.check_entity(found, text)


TEXT = "Fever, joint pain and IL-2 in Crohn’s disease; no fever since."


def parsed(answer, format, types=("SIGN", "GENE", "DISEASE"), **options):
    record = {"id": "a", "doc_id": "a", "text": TEXT, "entities": []}
    found = utils.parse_answer(answer, record, list(types), format, **options)
    return found["status"], [(e["text"], e["type"]) for e in found["entities"]], found["dropped"]


WANTED = [("joint pain", "SIGN"), ("IL-2", "GENE"), ("Crohn’s disease", "DISEASE")]


@pytest.mark.parametrize("answer, format, status", [
    ('{"SIGN": ["joint pain"], "GENE": ["IL-2"], "DISEASE": ["Crohn\'s disease"]}', "json", "ok"),
    ('```json\n{"SIGN": ["joint pain"], "GENE": ["IL-2"], "DISEASE": ["Crohn’s disease"]}\n```', "json", "ok"),
    ("<think>{fever?}</think>\n{'sign': ['joint pain',], 'Gene': 'IL-2', 'disease': ['Crohn's disease']}", "json",
     "salvaged"),
    ('Here you are:\n{"SIGN": ["joint  pain"], "GENE": ["IL‑2"], "DISEASE": ["crohn\'s DISEASE"]} Anything else?',
     "json", "salvaged"),
    ('{"entities": [{"text": "joint pain", "type": "SIGN"}, {"text": "IL-2", "type": "GENE"},'
     ' {"text": "Crohn’s disease", "type": "DISEASE"}]}', "json", "ok"),
    ('{"SIGN": ["joint pain"], "GENE": ["IL-2"], "DISEASE": ["Crohn’s disease", "no fe', "json", "salvaged"),
    ('[{"text": "joint pain", "type": "SIGN", "start": 7, "end": 17}, {"text": "IL-2", "type": "GENE", "start": 1, '
     '"end": 5}, {"text": "Crohn’s disease", "type": "DISEASE", "start": 30, "end": 45}]', "spans", "ok"),
    ('[{"text": "joint pain", "type": "SIGN"}, {"text": "IL-2", "type": "GENE"}, {"text": "Crohn’s disease", "type": '
     '"DISEASE"}, {"text": "fev', "spans", "salvaged"),
    ("SIGN: joint pain\nGENE: IL-2\nDISEASE: Crohn’s disease", "lines", "ok"),
    ("- **Sign**: joint pain\n- **Gene**: IL-2; none\n* Disease: Crohn's disease", "lines", "ok"),
    ("I found these:\nsign: joint pain\ngene: IL-2\ndisease: Crohn’s disease", "lines", "salvaged"),
    ("Fever, <SIGN>joint pain</SIGN> and <GENE>IL-2</GENE> in <DISEASE>Crohn’s disease</DISEASE>; no fever since.",
     "inline", "ok"),
    ("Fever, <sign>joint pain</sign> and <GENE>IL-2</GENE> in <DISEASE>Crohn's disease</DISEASE>.", "inline",
     "salvaged"),
    ("Fever\tO\n,\tO\njoint\tB-SIGN\npain\tI-SIGN\nand\tO\nIL\tB-GENE\n-\tI-GENE\n2\tI-GENE\nin\tO\nCrohn\tB-DISEASE\n"
     "’\tI-DISEASE\ns\tI-DISEASE\ndisease\tI-DISEASE\n;\tO\nno\tO\nfever\tO\nsince\tO\n.\tO", "iob", "ok"),
    ("### Output:\nFever : O\njoint : B-SIGN\npain : I-SIGN\n[and : O]\nIL : B-GENE\n- : I-GENE\n2 : I-GENE\n"
     "Crohn : B-DISEASE\n’ : I-DISEASE\ns : I-DISEASE\ndisease : I-DISEASE\n", "iob", "salvaged"),
])  # fmt: skip
def test_answers_as_models_write_them(answer, format, status):
    assert parsed(answer, format) == (status, WANTED, [])


@pytest.mark.parametrize("answer, format, status", [
    ("", "json", "empty"), ("<think>hm", "json", "empty"), (" \n", "iob", "empty"), ("{}", "json", "ok"),
    ("[]", "spans", "ok"),
    ("-", "lines", "ok"), ("none", "lines", "ok"), (TEXT, "inline", "ok"), ("SIGN:\nGENE:", "lines", "ok"),
    ("There is nothing to find.", "json", "unparsable"), ("There is nothing to find.", "inline", "unparsable"),
    ("There is nothing to find.", "iob", "unparsable"), ("Well, let me see", "lines", "unparsable"),
    ("I'm sorry, but I can't help with patient data.", "json", "refused"), ("Lo siento, no puedo.", "lines", "refused"),
    ("К сожалению, я не могу.", "spans", "refused"), ("[1, 2]", "json", "unparsable"),
])  # fmt: skip
def test_nothing_found_is_told_from_nothing_understood(answer, format, status):
    assert parsed(answer, format) == (status, [], [])


def test_what_can_not_be_placed_is_said():
    shot = {"id": "s", "text": "cough", "entities": [{"start": 0, "end": 5, "type": "SIGN", "text": "cough"}]}
    answer = json.dumps({"SIGN": ["fever", "Fever", "fever", "cough", "rash"], "DRUG": ["IL-2"]})
    status, found, dropped = parsed(answer, "json", shots=[shot])
    assert status == "ok" and found == [("Fever", "SIGN"), ("fever", "SIGN")]
    assert dropped == [
        {"text": text, "type": type_, "reason": reason}
        for text, type_, reason in (
            ("IL-2", "DRUG", "unknown_type"),
            ("fever", "SIGN", "surplus"),
            ("cough", "SIGN", "leaked"),
            ("rash", "SIGN", "not_in_text"),
        )
    ]
    assert parsed('{"DISEASE": ["Chron’s diseases"]}', "json")[1] == []
    assert parsed('{"DISEASE": ["Chrohn’s disease"]}', "json", alignment="fuzzy")[1] == [WANTED[2]]
    assert parsed('{"DISEASE": ["Crohn\'s disease"]}', "json", alignment="exact")[1] == []


def test_placement():
    def place(text, *items, **options):
        found, dropped = utils.place_mentions([(*item, None) for item in items], text, **options)
        return [(e["start"], e["end"], e["type"]) for e in found], [item["reason"] for item in dropped]

    assert place("painful pain", ("pain", "A")) == ([(8, 12, "A")], [])  # a whole word first
    assert place("joint pain, pain", ("pain", "A"), ("joint pain", "B")) == ([(0, 10, "B"), (12, 16, "A")], [])
    assert place("joint pain", ("pain", "A"), ("joint pain", "B")) == ([(0, 10, "B"), (6, 10, "A")], [])
    assert place("IL-2 and IL-2", ("IL-2", "A"), ("IL-2", "B")) == ([(0, 4, "A"), (9, 13, "B")], [])
    assert place("IL-2", ("IL-2", "A"), ("IL-2", "B"), ("IL-2", "A")) == ([(0, 4, "A"), (0, 4, "B")], ["surplus"])
    assert place("e\u0301tat ﬁbreux", ("état fibreux", "A")) == ([(0, 12, "A")], [])  # composed or not, ligatures
    assert place("a\u00a0\u200bb", ("a b", "A")) == ([(0, 4, "A")], [])
    record = {"text": "Fever and joint pain in both knees."}
    [found], dropped = utils.place_mentions([("joint pain knees", "A", None)], record["text"])
    assert found["fragments"] == [[10, 20], [29, 34]] and found["text"] == "joint pain knees" and dropped == []
    assert utils.scattered("pain knees", "pain or pain in knees of pain knees a") == [[25, 35]]  # the shortest stretch
    assert utils.scattered("a b", "a x b a y b") == []  # two are as short: no guess
    assert utils.scattered("a b", "a " + "x " * 200 + "b") == []


def test_positions_are_for_one_paper_alone():
    """The n-th tag to the n-th token, as Lu et al. aligned: an echoed heading shifts all, and the rest is cut."""
    record = iob_record("r", "r", ["joint", "pain", "now"], ["O", "O", "O"])
    answer = "### Output:\njoint : B-SIGN\npain : I-SIGN\nnow : O"
    shifted = utils.parse_answer(answer, record, ["SIGN"], "iob", "position")["entities"]
    assert [e["text"] for e in shifted] == ["pain now"]
    assert [e["text"] for e in utils.parse_answer(answer, record, ["SIGN"], "iob")["entities"]] == ["joint pain"]


def test_messages_hold_what_never_changes_first():
    shot = {"id": "s", "text": "No cough <now>.", "entities": [{"start": 3, "end": 8, "type": "SIGN", "text": "cough"}]}
    record = {"id": "a", "doc_id": "a", "text": TEXT, "entities": []}
    types, described = ["SIGN", "GENE"], {"SIGN": "found on examination"}
    for language in utils.INSTRUCTIONS:
        assert utils.INSTRUCTIONS[language].keys() == utils.INSTRUCTIONS["en"].keys()
        for format in utils.FORMATS:
            made = utils.render_messages(record, types, format, [shot], [{"text": "P"}], described, None, language)
            assert [message["role"] for message in made] == ["system", "user", "assistant", "user"]
            assert "- SIGN: found on examination\n- GENE\n" in made[0]["content"] and made[0]["content"].endswith("\nP")
            assert made[2]["content"] == utils.render_answer(shot, types, format)
            assert made[3]["content"] == (TEXT if format != "iob" else "\n".join(
                TEXT[a:b] for a, b in utils.tokenize(TEXT)))  # fmt: skip
    own = utils.render_messages(record, types, "json", instruction="Do it.")[0]["content"]
    assert own.startswith("Do it.\n\nTypes:")
    assert utils.render_answer(shot, ["GENE"], "json", all_types=True) == '{"GENE": []}'


@pytest.mark.parametrize("answer, format, wanted", [
    ('{"SIGN": ["fever"], "SIGN": ["joint pain"]}', "json", [("fever", "SIGN"), ("joint pain", "SIGN")]),
    ('The entities [as JSON]: {"SIGN": ["joint pain"]}', "json", [("joint pain", "SIGN")]),
    ('Of the form {type: [mentions]}:\n{"SIGN": ["joint pain"]}', "json", [("joint pain", "SIGN")]),
    ('{"text": "joint pain", "type": "SIGN"}\n{"text": "IL-2", "label": "GENE"}', "spans",
     [("joint pain", "SIGN"), ("IL-2", "GENE")]),
    ('Fever? {"SIGN": ["rash"]}</think>{"SIGN": ["joint pain"]}', "json", [("joint pain", "SIGN")]),
    ('{"SIGN": ["none"], "GENE": ["No"], "DISEASE": ["n/a"]}', "json", []),
    ("**SIGN**: joint pain", "lines", [("joint pain", "SIGN")]),
])  # fmt: skip
def test_more_answers_as_models_write_them(answer, format, wanted):
    assert sorted(parsed(answer, format)[1]) == sorted(wanted)


def test_types_that_differ_by_a_sign_stay_apart():
    status, found, _ = parsed('{"RH+": ["fever"], "RH-": ["joint pain"]}', "json", types=("RH+", "RH-"))
    assert status == "ok" and sorted(found) == [("fever", "RH+"), ("joint pain", "RH-")]
    assert parsed("Dose: max: fever", "lines", types=("Dose: max",))[1] == [("fever", "Dose: max")]
    assert parsed("I cannot help with {patient data}.", "json")[0] == "refused"


@pytest.mark.parametrize("answer, format", [
    ("\t" * 20_000 + "x", "iob"), ("a" + " " * 20_000 + "b", "iob"), ("[" * 50_000, "json"), ("{" * 50_000, "spans"),
    ('{"SIGN": [' + ", ".join(f'"absent {n} word"' for n in range(3000)) + "]}", "json"), ("<SIGN>" * 9000, "inline"),
    ("SIGN: " + "; ".join(["fever"] * 5000), "lines"), ('"' + "\\\\" * 50_000, "json"),
])  # fmt: skip
def test_no_answer_takes_long(answer, format):
    started, record = time.process_time(), {"id": "a", "text": "fever and joint pain. " * 500, "entities": []}
    utils.parse_answer(answer, record, ["SIGN"], format)
    assert time.process_time() - started < 5


ALIGNED = {  # corpus: its archive, share of gold offsets that come back from the strings of json answers, in sentences
    "bc5cdr": ("pubtator", None, 0.999), "pharmaconer": (None, "PharmaCoNERCorpus.tar.xz", 0.998),
    "biored": (None, None, 0.998), "ncbi-disease": ("pubtator", None, 0.997), "rudrec": (None, None, 0.997),
    "nerel-bio": (None, "nerel-bio-v1.0.tar.xz", 0.997), "jnlpba": (None, "standoff.tar.xz", 0.995),
    "raredis": (None, "train.zip", 0.997),
}  # fmt: skip


def offsets_that_return(records, types):
    """Of gold's continuous mentions, shown as strings: the share whose offsets return, and the strings of the others.

    Nothing that is in the text may be lost, and only a string that stands there more than once, or has white space at
    an edge, may go to another place.
    """
    gold, elsewhere = 0, Counter()
    for record in records:
        whole = [e for e in record["entities"] if len(fragments(e)) == 1]
        items = [(e["text"], type_, None) for type_ in types for e in whole if e["type"] == type_]
        placed, dropped = utils.place_mentions(items, record["text"])
        assert not dropped
        wanted, found = (Counter((e["start"], e["end"]) for e in side) for side in (whole, placed))
        for start, end in wanted - found:
            mention = record["text"][start:end]
            elsewhere[mention] += 1
            assert mention != mention.strip() or len(utils.occurrences(mention, record["text"])) > 1, record["id"]
        gold += len(whole)
    return 1 - elsewhere.total() / gold, elsewhere


@pytest.mark.parametrize("name", ALIGNED)
def test_gold_comes_back_from_the_answers_of_real_corpora(name, corpus, cli, tmp_path, capsys):
    """All formats: what one can hold comes back whole; json: nothing that is in the text is lost, and offsets agree."""
    below, archive, least = ALIGNED[name]
    folder = corpus(name, archive)
    shares = {}
    for unit in ("document", "sentence"):
        out = tmp_path / unit
        done = cli("brat2iob.py", "--input", folder / below if below else folder, "--output_dir", out, "--to", "jsonl",
                   "--unit", unit)  # fmt: skip
        assert done.returncode in (0, 1), done.stderr
        records = [r for path in sorted(out.glob("*.jsonl")) if "crlf" not in path.name for r in read_records(path)]
        types = sorted({e["type"] for r in records for e in r["entities"]})
        shares[unit], repeats = offsets_that_return(records, types)
        with capsys.disabled():
            print(f"\n{name}, {unit} units: offsets of {shares[unit]:.3%} return; put elsewhere: {repeats.total():,} "
                  f"repeats, as {', '.join(repr(mention) for mention, _ in repeats.most_common(5))}")  # fmt: skip
    lost = {}
    for format in utils.FORMATS:
        for record in records[:: 1 + len(records) // 1500]:
            answer = utils.render_answer(record, types, format)
            back = keys(utils.parse_answer(answer, record, types, format)["entities"]) == keys(record["entities"])
            assert back or not can_hold(record, format), (format, record["id"])
            lost[format] = lost.get(format, 0) + (not back)
    with capsys.disabled():
        print(f"{name}: records not the same again, of {len(records[:: 1 + len(records) // 1500]):,}: {lost}")
    assert shares["sentence"] >= least

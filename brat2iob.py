# /// script
# requires-python = ">=3.10"
# dependencies = []
# ///
"""Every corpus in, every corpus out: annotated text to records (JSONL) and IOB files, or back to BRAT.

Each document is read with the offsets as its own annotation tool counted them (the unit that makes the reference texts
agree), cut into sentences, and tokenized by runs of letters, runs of digits and single symbols. `entities` holds every
mention, nested, overlapping and discontinuous ones too; `tags` hold what one column of IOB2 tags can, by --overlap and
--discontinuous, and what they can't is counted. Sentence breaks inside a mention are undone, and counted.

    python brat2iob.py --input data/rare_en --output_dir out/rare_en
    python brat2iob.py --input my_corpus/train my_corpus/test --output_dir out --unit document --to jsonl
    python brat2iob.py --input CDR_TestSet.PubTator.txt --output_dir out/cdr --split 0.8 0.1 0.1
    python brat2iob.py --input out/rare_en/minilm/test.pred.jsonl --output_dir out/look --to brat
    python brat2iob.py --input data/rare_en --stats

Reads   BRAT folders (.txt + .ann, or .a1 .a2; sub-folders are splits), PubTator, BioC (XML, JSON), IOB/CoNLL (2-4
        columns; IOB1 IOB2 IOBES BILOU), CSV of tokens and tags, ChemProt and RuDReC files, JSONL (ours, and Hugging
        Face's `tokens` + `ner_tags`), plain text (--input_format text); each file also .gz
Writes  OUTPUT_DIR/SPLIT.jsonl and SPLIT.iob, or the BRAT folder SPLIT/, each with a sidecar; offsets are code points
Needs   nothing but Python; memory for one document and all document ids (--overlap layers: for the IOB files)
Source  the BRAT standoff format, brat.nlplab.org/standoff.html; replaces brat2iob.py of qiuhaolu/tner (RareDis)
Differs from that script, on RareDis train + dev: 100 % of 11,884 mentions in `entities`, where it keeps 87.3 % and adds
        665 that are not in the gold; fragments all kept, where it keeps the first; sentences by rules that know
        abbreviations, where it cuts at each [.!?] before a space; texts and annotations paired by name, not by position
"""

import argparse
import ast
import csv
import gc
import gzip
import hashlib
import itertools
import json
import os
import random
import re
import shutil
import signal
import sys
import time
import zlib
from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict, deque
from contextlib import ExitStack, contextmanager
from functools import partial
from operator import itemgetter

from utils import (
    DataError,
    flat_entities,
    flat_tags,
    flat_view,
    fragments,
    iob_lines,
    iob_record,
    is_iob,
    is_named,
    log,
    read_iob,
    read_jsonl,
    read_lines,
    read_sidecar,
    read_type_map,
    run,
    sentence_starts,
    sha256,
    span_text,
    tag_spans,
    to_json,
    tokenize,
    write_sidecar,
    writing,
)

NEAR = 20  # a wrong offset is mended within so many characters, as far as real drift goes (PharmaCoNER: 1-2)
SHOWN = 20  # warnings of one kind printed; the rest is in --report
GAP = 1000  # characters of padding between passages at most; a larger gap is a wrong offset, not a gap
OVERLAPS = ("longest", "shortest", "first", "last", "layers")
SIDES = ("train", "dev", "test")  # of --split
BATCH = 16  # documents that go to a worker at a time
GZIP_ERRORS = (gzip.BadGzipFile, EOFError, zlib.error)
BROKEN = (*GZIP_ERRORS, json.JSONDecodeError)
FIELD_ERRORS = (AttributeError, LookupError, TypeError, ValueError, SyntaxError, OverflowError, RecursionError)

# ---------------------------------------------------------------------------- the report


class Report:
    """What was read, mended, left out and written, and what is wrong: of one document, or (`add`) of all.

    The keys of `counts` are names; or, of a type, ("tags", state, type) and ("left out", type); or those of `measure`.
    """

    def __init__(self):
        self.counts, self.kinds, self.messages = Counter(), Counter(), []

    def warn(self, kind, where, what, level="warning", count=None):
        """Note what is wrong at the file and line `where`, and count it; return the report."""
        self.messages.append({"level": level, "kind": kind, "where": where, "what": what})
        self.counts.update([count] if count else ())
        return self

    def add(self, other):
        """Take in another report; print its messages, SHOWN of a kind."""
        self.counts.update(other.counts)
        for message in other.messages:
            level, kind, where, what = message.values()
            self.messages.append(message)
            self.kinds[level, kind] += 1
            if self.kinds[level, kind] <= SHOWN:
                log(f"{level}: {where}: {what}")
            elif self.kinds[level, kind] == SHOWN + 1:
                log(f"{level}: more like the last ({kind}) are counted, not shown; --report FILE lists them all")

    def named(self):
        """The counts that have a name, as sidecars and --report show them."""
        return {name: n for name, n in self.counts.items() if isinstance(name, str)}


def broken(error):
    """The report of a document that can't be read."""
    where, _, what = str(error).partition(": ")
    return Report().warn("broken document", where, f"{what} (document left out)", "error", "left out")


@contextmanager
def fields(where):
    """Around code that takes a file, a row or an object apart: what is broken, missing or of another kind is named."""
    try:
        yield
    except DataError:
        raise
    except BROKEN as error:
        where = where if re.search(r":\d+$", where) else f"{where}:{getattr(error, 'lineno', 1)}"
        raise DataError(f"{where}: broken: {error}; get it anew from its source") from None
    except FIELD_ERRORS as error:  # what it says may be text of a document
        raise DataError(f"{where}: a field is missing or not of its kind ({type(error).__name__}); "
                        "compare it with the format's description") from None  # fmt: skip


# ---------------------------------------------------------------------------- BRAT

# A reader yields functions of (args, report) that return a document, or None where it is left out (workers share the
# reading so); and reports. In a document "other" are the lines of other kinds, "names" the ids that they may point to;
# "edges" and "ids" where its units begin, and their ids; "offsets" are of tokens of its own: one space is between its
# units then; "start" is where a part of a document begins in it.

SPANS = r"\d{1,15}\s+\d{1,15}(?:\s*;\s*\d{1,15}\s+\d{1,15})*"
T_LINE = re.compile(rf"(\S+)\s+({SPANS})\s*", re.ASCII)
ANY_LINE = re.compile(r"[A-Z*#]\w*\t")
ANN = (".ann", ".a1", ".a2")


def opened(path):
    return gzip.open(path) if path.endswith(".gz") else open(path, "rb")


def decode(path, encoding):
    """Return (text without byte order mark, whether it had one) of a file, byte for byte as it stands."""
    with fields(path), opened(path) as file:
        raw = file.read()
    utf16 = raw[:2] in (b"\xff\xfe", b"\xfe\xff")
    try:
        text = raw.decode(encoding or ("utf-16" if utf16 else "utf-8"))
    except UnicodeError as error:
        at = getattr(error, "start", 0)
        raise DataError(f"{path}:{raw.count(10, 0, at) + 1}: not {encoding or 'UTF-8'} at byte {at} of the file; "
                        "say what it is, for example --encoding cp1252") from None  # fmt: skip
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise DataError(f"{path}:{line}: NUL character: not a text file; remove it from the folder")
    return text.removeprefix("\ufeff"), utf16 or text.startswith("\ufeff")


def read_brat(folder, names, args):
    """Yield the documents of a folder; `names` are the relative paths of its .txt, .ann, .a1 and .a2 files."""
    documents = defaultdict(list)
    for name in sorted(names):
        if args.input_format != "text" or parted(name)[1] not in ANN:
            documents[parted(name)[0].replace(os.sep, "/")].append(os.path.join(folder, name))
    if args.input_format != "text" and not any(parted(name)[1] in ANN for name in names):
        raise DataError(f"{folder}: no .ann file beside a .txt; for plain texts use --input_format text")
    for doc_id, paths in sorted(documents.items()):
        yield partial(brat_document, doc_id, paths)


def brat_document(doc_id, paths, args, report):
    """The document of a .txt and its annotations; --input_format text: without."""
    anns = [path for path in paths if parted(path)[1] in ANN]
    txts = [path for path in paths if path not in anns]
    if not txts or len({parted(path)[1] for path in paths}) < len(paths):
        what = "no .txt of the same name beside it" if not txts else "the same name stands there twice"
        raise DataError(f"{paths[0]}: {what}; there must be one")
    if not anns and args.input_format != "text":
        report.warn("no annotations", txts[0], "no .ann beside it; left out (not an empty gold)", count="left out")
        return None
    text, had_bom = decode(txts[0], args.encoding)
    mentions, other = [], []
    for path in anns:
        read_annotations(path, args.encoding, mentions, other, report)
    return resolved(doc_id, [(text, had_bom, mentions)], args, report, other)


def read_annotations(path, encoding, mentions, other, report):
    """Add the mentions of an .ann file to `mentions`, all other lines to `other`."""
    seen, blank = set(), 0
    for number, line in enumerate(decode(path, encoding)[0].split("\n"), 1):
        line, where = line.removesuffix("\r"), f"{path}:{number}"
        if not line.strip():
            blank += 1
            continue
        if line[0] == "T":
            name, cell, reference, *_ = [*line.split("\t", 2), "", ""]
            match = T_LINE.fullmatch(cell)
            if not match or " " in name:
                raise DataError(f"{where}: not `ID<TAB>TYPE START END<TAB>text`; mend or delete the line")
            if name in seen:
                report.warn("duplicate id", where, f"{name} stands twice; both are kept")
            seen.add(name)
            spans = [[int(edge) for edge in span.split()] for span in match[2].split(";")]
            mentions.append((where, name, match[1], spans, reference or None))
        elif seen and not ANY_LINE.match(line) and is_cut(mentions[-1]):  # its text has line ends, raw
            mentions[-1] = (*mentions[-1][:4], mentions[-1][4] + "\n" * (blank + 1) + line)
        else:
            other.append(line)
            kind = line[0] if line[0] in "REAMN*#" else "?"
            report.counts[f"lines {kind}"] += 1
            if kind == "?":
                report.warn("unknown line", where, "not a BRAT line; passed over")
            continue
        blank = 0


def is_cut(mention):
    """Whether a mention has a reference text, but a shorter one than its spans."""
    return mention[4] is not None and len(mention[4]) < sum(end - start for start, end in mention[3])


# ---------------------------------------------------------------------------- other formats

SECTION = re.compile(r"([^|\s]+)\|(\w)\|(.*)")
TITLE = re.compile(r"[^|\s]+\|t\|")
PUBTATOR, CHEMPROT = (1, 2, 3, 4), (3, 4, 5, 2)  # the columns of start, end, text and type of a mention, from 0


def mention(where, name, type_, spans, reference):
    """A mention whose type and text may be anything; an error (for `fields`) where they are no text."""
    if not isinstance(reference, (str, type(None))) or not type_.strip():
        raise ValueError
    return where, str(name), type_.strip(), [[integer(start), integer(end)] for start, end in spans], reference


def integer(value):
    """The int of a whole number, or of one in digits; int() would also take 4.7 for 4, and 1_0 for 10."""
    digits = isinstance(value, str) and re.fullmatch(r"\s*-?[0-9]{1,15}\s*", value)
    if not digits and (type(value) not in (int, float) or value != int(value)):
        raise ValueError
    return int(value)


def read_pubtator(path, args):
    """Yield the documents of a PubTator file: one begins at each `ID|t|title`."""
    lines = []
    for number, line in read_lines(path, args.encoding):
        if lines and "|t|" in line and TITLE.match(line):
            yield partial(rows_document, lines, PUBTATOR)
            lines = []
        if line.strip():
            lines.append((f"{path}:{number}", line))
    if lines:
        yield partial(rows_document, lines, PUBTATOR)


def read_chemprot(path, entities, args):
    """Yield the documents of ChemProt's PREFIX_abstracts.tsv with its PREFIX_entities.tsv, which is held in memory."""
    rows, used = by_document(entities, args, lambda line: line.split("\t", 1)[0]), set()
    for number, line in read_lines(path, args.encoding):
        if line.strip():
            used.add(doc_id := line.split("\t", 1)[0])
            yield partial(rows_document, [(f"{path}:{number}", line), *rows.get(doc_id, [])], CHEMPROT)
    for doc_id in sorted(rows.keys() - used):
        yield broken(f"{rows[doc_id][0][0]}: no abstract of the id {doc_id}")


def by_document(path, args, key):
    """Return {key(line): [(where it stands, line)]} of a file whose lines say to which document they belong."""
    documents = defaultdict(list)
    for number, line in read_lines(path, args.encoding):
        if line.strip():
            with fields(f"{path}:{number}"):
                documents[key(line)].append((f"{path}:{number}", line))
    return documents


def rows_document(lines, columns, args, report):
    """Title and abstract with one character between them, of `ID|t|title` and `ID|a|abstract`, or of a row of three.

    Rows of PubTator of 4 or 5 cells, the second a word, are relations; all others are mentions.
    """
    texts, mentions, doc_id = [], [], None
    for where, line in lines:
        section, cells = SECTION.match(line), line.split("\t")
        first = columns == CHEMPROT and not texts and len(cells) == 3
        name, *text = section.group(1, 3) if section else cells if first else cells[:1]
        doc_id = doc_id or (name if text else None)
        if name != doc_id:
            raise DataError(f"{where}: not of document {doc_id or '?'}; begin each document with its title")
        if text:
            texts += text
        elif columns == PUBTATOR and len(cells) in (4, 5) and cells[1][:1].isalpha():
            report.counts["relations"] += 1
        else:
            with fields(where):
                start, end, reference, type_ = (cells[column] for column in columns)
                mentions.append(mention(where, "mention", type_, [(start, end)], reference))
    return resolved(doc_id, [("\n".join(texts), False, mentions)], args, report)


def read_bioc(path, args):
    """Yield the documents of a BioC file, XML (one at a time in memory) or JSON."""
    with opened(path) as file:
        xml = file.read(1 << 10).replace(b"\0", b"").lstrip(b"\xef\xbb\xbf\xff\xfe \r\n\t")[:1] == b"<"
    with fields(path):
        whole = {"documents": bioc_xml(path)} if xml else json.loads(decode(path, args.encoding)[0])
        for collection in whole if isinstance(whole, list) else [whole]:
            for document in collection.get("documents", [collection]):
                yield partial(bioc_document, path, document)


def bioc_xml(path):
    """Yield each <document> as BioC JSON has it. Expat itself stops entities that explode."""
    from xml.etree import ElementTree

    try:
        with opened(path) as file:
            for _, element in ElementTree.iterparse(file):
                if element.tag == "document":
                    yield bioc_piece(element)
                    element.clear()
    except ElementTree.ParseError as error:
        raise DataError(f"{path}:{error.position[0]}: broken: {error}; get it anew from its source") from None


def bioc_piece(element):
    """An element of XML as BioC JSON has it: attributes and simple children by name, the others in lists."""
    piece = dict(element.items()) | {"infons": {infon.get("key"): infon.text for infon in element.findall("infon")}}
    for each in element:
        if each.tag in ("id", "offset", "text"):
            piece.setdefault(each.tag, "".join(each.itertext()))
        elif each.tag != "infon":
            piece.setdefault(f"{each.tag}s", []).append(bioc_piece(each))
    return piece


def bioc_document(path, document, args, report):
    """Passages, or their sentences, one after the other; each annotation belongs to the passage of its offset."""
    parts, bases = [], []
    with fields(f"{path}: document {document.get('id') if isinstance(document, dict) else '?'}"):
        report.counts["relations"] += len(document.get("relations") or ())
        notes = [(None, each) for each in document.get("annotations") or ()]
        for passage in sorted(document["passages"], key=offset_of):
            base, text, sentences = offset_of(passage), "", sorted(passage.get("sentences") or (), key=offset_of)
            for each in [passage] if passage.get("text") else sentences:
                text += padding(offset_of(each) - base - len(text)) + each["text"]
            notes += [(len(parts), note) for each in (passage, *sentences) for note in each.get("annotations") or ()]
            if parts:  # what is between two passages ends the first
                parts[-1][0] += padding(base - bases[-1] - len(parts[-1][0])) or "\n"
            parts.append([text, False, []])
            bases.append(base)
        for here, each in notes:
            spans = [(offset_of(at), offset_of(at) + integer(at["length"])) for at in each["locations"]]
            start = min(spans)[0]
            if here is None or not 0 <= start - bases[here] < len(parts[here][0].encode()):  # not in its own passage
                here = max(bisect_right(bases, start) - 1, 0)
            spans = [(a - bases[here], b - bases[here]) for a, b in spans]
            where = f"{path}: document {document['id']}, annotation {each.get('id')}"
            parts[here][2].append(mention(where, each.get("id"), each["infons"]["type"], spans, each.get("text")))
        if not str(document["id"] or ""):
            raise ValueError
    return resolved(str(document["id"]), parts, args, report)


def offset_of(piece):
    return integer(piece["offset"])


def padding(gap):
    """Text between two passages: `gap` characters, the last a line end."""
    return "\n".rjust(min(gap, GAP)) if gap > 0 else ""


def read_rudrec(path, args):
    """Yield the reviews of RuDReC's JSON lines, each rebuilt from its sentences; the file is held in memory."""
    reviews = by_document(path, args, lambda line: os.path.splitext(json.loads(line)["file_name"])[0])
    for name, lines in reviews.items():
        yield partial(rudrec_document, name, lines)


def rudrec_document(doc_id, lines, args, report):
    sentences, parts = [], []
    for where, line in lines:
        with fields(where):
            sentence = json.loads(line)
            mentions = [mention(where, each["entity_id"], each["entity_type"], [(each["start"], each["end"])],
                                each["entity_text"]) for each in sentence["entities"]]  # fmt: skip
            sentences.append((integer(sentence["sentence_id"]), sentence["text"].removesuffix("\n") + "\n", mentions))
    parts = [(text, False, mentions) for _, text, mentions in sorted(sentences, key=itemgetter(0))]
    edges = [0, *itertools.accumulate(len(text) for text, *_ in parts)][:-1]
    return resolved(doc_id, parts, args, report) | {"edges": edges}


# ---------------------------------------------------------------------------- formats of tokens, and records


def read_conll(path, args):
    """Yield the documents of an IOB/CoNLL file; their units are the file's own, with its tokens."""
    warnings = []
    for doc_id, group in itertools.groupby(read_iob(path, args.encoding, warnings.append), key=itemgetter("doc_id")):
        yield partial(record_document, doc_id, list(group), " ")
    for what in warnings:
        yield Report().warn("IOB", path, what.removeprefix(f"{path}: ").removeprefix("warning: "))


# Columns of the CSV files met: RareDis (two layouts), MedMentions (lists written as Python does)
COLUMNS = {
    "token": ("Token", "Word", "Full Text"),
    "tag": ("Tag", "Entity Codes"),
    "document": ("File", "File ID"),
    "sentence": ("Sentence_Num", "Sentence #"),
}


def read_csv(path, args):
    """Yield the documents of a CSV file: a token and its tag in each row, or lists of them (each a document)."""
    csv.field_size_limit(1 << 30)
    rows = csv.DictReader(f"{line}\n" for _, line in read_lines(path, args.encoding))
    try:
        header = rows.fieldnames or ()
        columns = {use: next((name for name in names if name in header), None) for use, names in COLUMNS.items()}
        if not columns["token"] or not columns["tag"]:
            raise DataError(f"{path}:1: no column named Token or Word, or none named Tag; name them so")
        lists = not columns["document"] and not columns["sentence"]
        cells = csv_cells(path, rows, columns, lists)
        for number, (doc_id, group) in enumerate(itertools.groupby(cells, itemgetter("line" if lists else "document"))):
            sentences = [list(each) for _, each in itertools.groupby(group, itemgetter("sentence"))]
            first = sentences[0][0]
            units_ = [[[row[use] for row in each] for use in ("token", "tag")] for each in sentences]
            if lists:
                doc_id, units_ = "", [(first["token"], first["tag"])]
            yield partial(token_document, f"{path}:{first['line']}", doc_id or f"#{number}", units_)
    except csv.Error as error:
        raise DataError(f"{path}:{rows.line_num}: broken CSV: {error}") from None


def csv_cells(path, rows, columns, lists):
    """Yield {use: cell} of each row; an error where a quote that is not doubled joined rows, or parted a cell."""
    for row in rows:
        cells, over = {use: row.get(name) or "" for use, name in columns.items() if name}, row.get(None, ())
        if any(over) or (not lists and any("\n" in cell and "," in cell for cell in cells.values())):
            begins = rows.line_num - sum(str(cell).count("\n") for cell in row.values())
            raise DataError(f"{path}:{begins}: more cells than columns, or rows in one cell; quote a cell that holds "
                            "quotes or commas, and double the quotes in it")  # fmt: skip
        yield dict.fromkeys(columns, "") | cells | {"line": rows.line_num}


def token_document(where, doc_id, units_, args, report):
    """The document of units that are (tokens, tags). Tokens of white space are left out; they part two mentions."""
    records = []
    for tokens, tags in units_:
        with fields(where):
            if isinstance(tokens, str):  # as Python writes lists; <START> and <END> are no tokens
                pairs = zip(ast.literal_eval(tokens), ast.literal_eval(tags), strict=True)
                tokens, tags = zip(*(pair for pair in pairs if pair[0] not in ("<START>", "<END>")), strict=True)
            if len(tokens) != len(tags) or not all(isinstance(each, str) for each in (*tokens, *tags)):
                raise DataError(f"{where}: tokens and tags must be strings, and as many; write the tags' names")
            kept = [at for at, token in enumerate(tokens) if token.strip()]
            tags = flat_tags(tag_spans(tags), [[at, at + 1] for at in kept])
        if len(kept) < len(tokens):
            report.warn("empty token", where, f"{len(tokens) - len(kept)} tokens of white space in a unit; left out")
        if kept:
            records.append(iob_record(f"{doc_id}:{len(records)}", doc_id, [tokens[at] for at in kept], tags))
    return record_document(doc_id, records, " ", args, report)


KEYS = {"id", "doc_id", "start", "text", "entities", "tokens", "offsets", "tags", "pretokenized", "source", "other"}


def record_document(doc_id, records, gap, args, report):
    """The document of records that follow each other; `gap` between them is one space where they have own tokens."""
    edges = [0, *itertools.accumulate(len(record["text"] + gap) for record in records)][: len(records)]
    pairs = list(zip(edges, records, strict=True))
    entities = [shifted(entity, -by) for by, record in pairs for entity in record["entities"]]
    report.counts["read"] += len(entities)
    if "jsonl" in args.to and (more := {key for record in records for key in record} - KEYS):
        report.warn("other keys", f"document {doc_id}", f"{', '.join(sorted(more))}: not copied")
    names = {entity["id"] for entity in entities if "id" in entity}
    other = [line for record in records for line in record.get("other", ())]
    document = document_of(doc_id, gap.join(record["text"] for record in records), entities, names, other)
    for record in records[:1]:
        document |= {"start": record["start"], "source": record.get("source")}
    if gap:
        document["offsets"] = [[start + by, end + by] for by, record in pairs for start, end in record["offsets"]]
    if gap or [record["id"] for record in records] != [doc_id]:  # else whole, its sentences still to be found
        document |= {"edges": edges, "ids": [record["id"] for record in records]}
    return document


def read_json(path, args):
    """Yield the documents of a JSONL file: our records, those of a document joined, or `tokens` with `ner_tags`."""
    lines = ((number, line) for number, line in read_lines(path, args.encoding) if line.strip())
    number, line = next(lines, (1, ""))
    if line.lstrip().startswith("["):
        with fields(path):
            rows = enumerate(json.loads(decode(path, args.encoding)[0]), 1)
    elif '"tokens"' in line and "text" not in parsed(line):
        rows = itertools.chain([(number, line)], lines)
    else:
        rows = ()
        for doc_id, group in itertools.groupby(read_jsonl(path), itemgetter("doc_id")):
            yield from parts_of(doc_id, sorted(group, key=itemgetter("start")))
    for number, row in rows:
        yield partial(hugging_face, path, number, row)


def parsed(line):
    """The JSON of a line; {"text"}, as of a record of ours, where it is none: the reader of those says why."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return {"text"}


def parts_of(doc_id, records):
    """Yield the documents of records of one doc_id: units that follow each other without a gap are one."""
    gap, part, end = " " * all(record.get("pretokenized", False) for record in records), [], records[0]["start"]
    for record in records:
        if record["start"] != end and (record["start"] or not gap):  # what comes of IOB files says 0, all of it
            yield partial(record_document, doc_id, part, gap)
            part = []
        part.append(record)
        end = record["start"] + len(record["text"] + gap)
    yield partial(record_document, doc_id, part, gap)


def hugging_face(path, number, row, args, report):
    """The document of an object with `tokens` and `ner_tags`, which are names."""
    where = f"{path}:{number}"
    with fields(where):
        row = json.loads(row) if isinstance(row, str) else row
        if "entities" in row:
            raise DataError(f"{where}: a record of ours in an array; write one record a line (jq -c '.[]')")
        tags = next((row[name] for name in ("ner_tags", "tags", "labels") if name in row), None)
        if tags is None:
            raise DataError(f"{where}: no `ner_tags` beside its `tokens`; is it a file of token labels?")
        doc_id = str(row.get("id", number - 1))
        doc_id = f"#{number - 1}" if doc_id in ("", str(number - 1)) else doc_id  # a row's number names no document
        return token_document(where, doc_id, [(row["tokens"], tags)], args, report)


READERS = {"brat": read_brat, "pubtator": read_pubtator, "bioc": read_bioc, "conll": read_conll, "csv": read_csv,
           "chemprot": read_chemprot, "rudrec": read_rudrec, "jsonl": read_json, "text": read_brat}  # fmt: skip


# ---------------------------------------------------------------------------- what the inputs hold


def find_inputs(args, report):
    """Return [(split, format, folder, names)]: what each path holds, in the order given."""
    found = []
    for path in args.input:
        if os.path.isdir(path):
            found += search_folder(path, args, report)
            continue
        if not os.path.exists(path):
            raise DataError(f"{path}: no such file or folder; check --input")
        kind = detect(path) if args.input_format == "auto" else args.input_format
        if kind is None:
            raise DataError(f"{path}: not a file this script knows; say what it is with --input_format")
        found.append(one_file(path, kind))
    return [item for i, item in enumerate(found) if item not in found[:i]]


def one_file(path, kind):
    """What a file holds, with the files that belong to it."""
    folder, name = os.path.split(path)
    split, names = parted(name)[0], [name]
    if kind == "chemprot":
        split, names = split.removesuffix("_abstracts"), [name, "entities".join(name.rsplit("abstracts", 1))]
    elif kind == "brat":
        names = [other for other in os.listdir(folder or ".") if parted(other)[0] == split and is_brat(other)]
    return split, kind, folder, names


SIDECAR = re.compile(r"(^|\.)run\.json$")
DATA = re.compile(
    r"(?<!_entities)(?<!_relations)(?<!_gold_standard)(?<!\.answers)\.(jsonl|csv|tsv|iob2?|conll|bio|xml)(\.gz)?$", re.I
)


def search_folder(folder, args, report):
    """What one folder holds: its documents make one split with all below; else each sub-folder and file is one."""
    here = unread(folder, args)
    files = {name: path for name, path in here.items() if os.path.isfile(path) and not SIDECAR.search(name)}
    kinds = {name: detect(path) for name, path in files.items()}
    unknown = [name for name, kind in kinds.items() if not kind and DATA.search(name) and not is_brat(name)]
    kinds = {name: kind for name, kind in kinds.items() if kind and args.input_format in ("auto", kind)}
    marks = {"auto": ANN, "brat": ANN, "text": (".txt",)}.get(args.input_format, ())
    if not any(parted(name)[1] in marks for name in files):
        found = [one_file(files[name], kind) for name, kind in kinds.items() if kind != "brat"]
        for name in unknown:
            what = "empty, or of no format this script knows; left out"
            report.add(Report().warn("unknown file", files[name], what))
        for path in filter(os.path.isdir, here.values()):
            found += search_folder(path, args, report)
        if found or not any(map(is_brat, files)) or args.input_format not in ("auto", "brat"):
            return found
    for name in kinds if args.input_format == "auto" else ():
        if not is_brat(name):
            what = "beside .ann files and left out; name it as --input"
            report.add(Report().warn("other file", files[name], what))
    names = []
    for root, below, inside in os.walk(folder, onerror=stop):
        below[:] = filter(is_seen, below)
        names += [os.path.relpath(os.path.join(root, name), folder) for name in inside if is_brat(name)]
    kind = "text" if args.input_format == "text" else "brat"
    return [(os.path.basename(os.path.abspath(folder)), kind, folder, names)]


def unread(folder, args):
    """Return {name: path} of what is in a folder, but for outputs of ours: not read again, nor twice (.iob, BRAT)."""
    here = {name: os.path.join(folder, name) for name in sorted(filter(is_seen, os.listdir(folder)))}
    written = os.path.realpath(folder) == os.path.realpath(args.output_dir or os.devnull)
    for name, path in list(here.items()):
        ours = f"{name}.run.json" in here or os.path.isfile(os.path.join(path, "run.json"))
        records = re.sub(r"((\.layer\d+)?\.iob)?$", ".jsonl", name, count=1)  # it says the same, if it is there
        if ours and (f"{records}.run.json" in here or (written and os.path.isfile(path))):
            del here[name]
    return here


def stop(error):
    """For os.walk, which would pass over a folder that can't be read."""
    raise error


def is_seen(name):
    """Whether a file or folder counts: `._x.ann` and other hidden ones do not."""
    return name[0] != "." and name != "__MACOSX"


def is_brat(name):
    """Whether a file name is one of a document."""
    return is_seen(name) and parted(name)[1] in (".txt", *ANN)


def parted(path):
    """(all before the suffix, suffix in small letters) of a file's path, without .gz."""
    base, suffix = os.path.splitext(path.removesuffix(".gz"))
    return base, suffix.lower()


CONTENTS = {  # formats by the first characters of a file; the first that matches
    "pubtator": TITLE.pattern,
    "bioc": r"<\?xml|<!DOCTYPE|<collection|"
    r'\[?\s*\{.{,4096}"(?:documents"\s*:|passages"\s*:.{,4096}"offset"\s*:)',  # a record's passages have none
    "rudrec": r'\{(?=.*"sentence_id"\s*:).*"file_name"\s*:',
    "jsonl": r'\[?\s*\{.*"(?:text|tokens)"\s*:',
}


def detect(path):
    """The format of a file by its name and its first characters, or None."""
    base, suffix = parted(path)
    if suffix in ANN or (
        suffix == ".txt" and any(os.path.exists(base + end + gz) for end in ANN for gz in ("", ".gz"))
    ):
        return "brat"
    table = re.fullmatch(r"(.*)_(abstracts|entities|relations|gold_standard)(\.tsv(?:\.gz)?)", path, re.S)
    if table and os.path.exists(f"{table[1]}_entities{table[3]}"):
        return "chemprot" if table[2] == "abstracts" else None
    if suffix == ".csv" or is_iob(path):
        return "csv" if suffix == ".csv" else "conll"
    try:
        with opened(path) as file:
            head = file.read(1 << 16).replace(b"\0", b"").decode("utf-8", "replace").lstrip("\ufeff\ufffd \r\n\t")
    except (OSError, *GZIP_ERRORS):
        return "jsonl"  # whatever it is: reading it names the file and the reason
    return next((kind for kind, pattern in CONTENTS.items() if re.match(pattern, head, re.S)), None)


def read_documents(inputs, args):
    """Yield (function that returns a document, path, format, `source` for its records or None) of one split."""
    for _, kind, folder, names in inputs:
        of_folder = kind in ("brat", "text")
        paths = [os.path.normpath(folder)] if of_folder else [os.path.join(folder, name) for name in names]
        for read in READERS[kind](*((folder, names) if of_folder else paths), args):
            yield read, paths[0], kind, paths[0] if len(inputs) > 1 else None


# ---------------------------------------------------------------------------- mentions to entities

# The units in which tools count offsets: how wide a character is in each, given the one before it.
UNITS = {
    "code points": lambda char, before: 1,
    "code points, CRLF as one": lambda char, before: char != "\n" or before != "\r",
    "UTF-16 units": lambda char, before: 1 + (char > "\uffff"),
    "UTF-8 bytes": lambda char, before: len(char.encode("utf-8")),
}
AGREEING = {"same": 2, "spaces": 1, "quotes": 1, "letters": 1, "longer": 0, None: 0}  # worth as evidence
LINE_ENDS = str.maketrans("\t\r\n", "   ")  # as BRAT writes them
QUOTES = str.maketrans("", "", "\"'")
LOOKALIKES = str.maketrans("‘’‚“”„«»–—−‐‑", '\'\'\'"""""-----')


def agreement(reference, text):
    """How a reference text agrees with the slice(s): "same", but for "spaces", "quotes", "letters", "longer", or None.

    "quotes": CSV writers double or drop them; "letters": case, typographic quotes and dashes; "longer": more after it.
    """
    if reference is None or reference == text or reference == text.translate(LINE_ENDS):
        return "same"
    if "".join(reference.split()) == "".join(text.split()):
        return "spaces"
    plain, slice_ = ("".join(side.translate(QUOTES).split()) for side in (reference, text))
    if plain == slice_ and plain:
        return "quotes"
    alike, slice_ = (" ".join(side.translate(LOOKALIKES).casefold().split()) for side in (reference, text))
    return "letters" if alike == slice_ else "longer" if alike.startswith(slice_ + " ") else None


def find_unit(mentions, text, had_bom):
    """Return (name, code point of each offset, shift): how the offsets of this document were counted.

    Code points, unless another unit makes the reference texts agree strictly better.
    """

    def agreeing(points, shift):
        top = len(points) + shift
        inside = (m for m in mentions if all(shift <= edge < top for span in m[3] for edge in span))
        slices = ((m[4], [[points[a - shift], points[b - shift]] for a, b in m[3]]) for m in inside)
        return sum(AGREEING[agreement(reference, span_text(text, spans))] for reference, spans in slices)

    best = "code points", range(len(text) + 1), 0
    score = agreeing(*best[1:])
    for name, width in UNITS.items() if score < AGREEING["same"] * len(mentions) else ():
        points = [i for i, pair in enumerate(zip(text, " " + text, strict=False)) for _ in range(width(*pair))]
        for shift in {0, width("\ufeff", "") * had_bom}:
            if (found := agreeing([*points, len(text)], shift)) > score:
                name_ = name + ", byte order mark counted" * bool(shift)
                score, best = found, (name_, [*points, len(text)], shift)
    return best


def join_fragments(spans, text):
    """Sort fragments; join those that touch or have only white space between them (BRAT splits at line ends)."""
    joined = []
    for start, end in sorted(spans):
        if joined and (start <= joined[-1][1] or text[joined[-1][1] : start].isspace()):
            joined[-1][1] = max(end, joined[-1][1])
        else:
            joined.append([start, end])
    return joined


def nearby(reference, text, start):
    """The one right start of a reference text near a wrong one, or None: the only one, or by far the nearest."""
    low = max(0, start - NEAR)
    window = text[low : start + NEAR + len(reference)]
    found = [low + match.start() for match in re.finditer(f"(?={re.escape(reference)})", window)]
    found.sort(key=lambda at: abs(at - start))
    clear = found and (len(found) == 1 or abs(found[1] - start) >= 3 * abs(found[0] - start))
    return found[0] if clear else None


def make_entity(mention, text, place, policy, report):
    """Return the entity of a mention, or None where it is left out; warn of all that is not as it should be."""
    where, name, type_, spans, reference = mention
    points, shift = place
    here = f"{name} {type_} {spans[0][0]}-{spans[-1][1]}"
    inside = all(shift <= a < b < len(points) + shift and points[a - shift] < points[b - shift] for a, b in spans)
    if not inside:
        raise DataError(f"{where}: {here}: not a span of the text (0-{len(points) - 1 + shift}); mend the line, "
                        "or check that the text is the one annotated")  # fmt: skip
    given = spans = [[points[a - shift], points[b - shift]] for a, b in spans]
    if len(spans) > 1 and any(a[1] > b[0] for a, b in itertools.pairwise(sorted(spans))):
        report.warn("overlapping fragments", where, f"{here}: fragments overlap; their union is taken")
    agreed = agreement(reference, span_text(text, spans)) or agreement(reference, span_text(text, sorted(spans)))
    if agreed is None and agreement(reference, text[min(spans)[0] : max(b for _, b in spans)]) in ("same", "spaces"):
        agreed = "it has the gaps, too"
    spans = join_fragments(spans, text)
    if not span_text(text, spans).strip():
        report.warn("white space", where, f"{here}: only white space; left out", count="dropped")
        return None
    if agreed is None and policy != "keep":
        given = spans = mend(spans, reference, text, policy, where, here, report)
        if spans is None:
            return None
    elif agreed not in ("same", "spaces"):
        report.warn("reference", where, f"{here}: reference text differs ({agreed or 'wholly'}); kept as it is")
    entity = {"start": spans[0][0], "end": spans[-1][1], "type": type_, "text": span_text(text, spans)}
    if len(spans) > 1:
        entity["fragments"] = spans
    if reference is not None and reference.split() != span_text(text, given).split():
        entity["reference"] = reference
    return entity


def mend(spans, reference, text, policy, where, here, report):
    """Return where a mention is whose reference text is not at its offsets, or None where it is left out."""
    wrong = f"{here}: the text there is not its reference text"
    if policy == "error":
        raise DataError(f"{where}: {wrong}; mend the line, or use --mismatch repair")
    fits = policy == "repair" and len(spans) == 1 and spans[0][1] - spans[0][0] == len(reference)
    at = nearby(reference, text, spans[0][0]) if fits else None
    if at is None:
        report.warn("mismatch", where, f"{wrong}; left out", count="dropped")
        return None
    end = at + len(reference)
    report.warn("mismatch", where, f"{wrong}; moved to {at}-{end}, where it is", count="repaired")
    return [[at, end]]


def is_plain(mention, text):
    """Whether a mention is one span of the text, in code points, that is its reference text: the usual case."""
    (start, end), reference = mention[3][0], mention[4]
    return (len(mention[3]) == 1 and reference is not None and len(reference) == end - start and start >= 0
            and text.startswith(reference, start) and bool(reference.strip()))  # fmt: skip


def resolved(doc_id, parts, args, report, other=()):
    """The document of parts, each (text, whether a byte order mark was taken off, mentions): mentions to entities.

    A mention is (where it stands, id, type, spans, reference text or None), its offsets counted from where its part
    begins, in the unit of the tool that wrote them.
    """
    text, entities = "", []
    named = other and (args.unit == "document" or "brat" in args.to)  # the other lines point to ids
    for part, had_bom, mentions in parts:
        plain = [is_plain(mention, part) for mention in mentions]
        unit, *place = ("code points",) if all(plain) else find_unit(mentions, part, had_bom)
        if unit != "code points":
            report.warn("offset unit", mentions[0][0], f"offsets count {unit}; turned into code points")
        report.counts["read"] += len(mentions)
        for mention, quick in zip(mentions, plain, strict=True):
            if quick and unit == "code points":
                [(start, end)] = mention[3]
                entity = {"start": start, "end": end, "type": mention[2], "text": mention[4]}
            else:
                entity = make_entity(mention, part, place, args.mismatch, report)
            if entity and named:
                entity["id"] = mention[1]
            if entity:
                entities.append(shifted(entity, -len(text)) if text else entity)
        text += part
    names = {mention[1] for *_, mentions in parts for mention in mentions} if named else set()
    return document_of(doc_id, text, entities, names, other)


def document_of(doc_id, text, entities, names, other):
    """A document; `names` are the ids that its lines of other kinds may point to."""
    entities = sorted(entities, key=lambda entity: (entity["start"], -entity["end"], entity["type"]))
    return {"doc_id": doc_id, "text": text, "start": 0, "source": None, "entities": entities, "names": names,
            "other": other, "edges": None, "ids": None, "offsets": None}  # fmt: skip


def choose(document, args, report):
    """Rename types by --map_types, keep those of --types, and exact duplicates once; other lines follow."""
    kept, new = {}, dict.fromkeys(document["names"])  # by type and fragments; for each id that of the mention kept
    for entity in document["entities"]:
        type_ = args.type_map.get(entity["type"], entity["type"])
        if not type_ or (args.types and type_ not in args.types):
            report.counts.update(["other types", ("left out", entity["type"])])
            continue
        if type_ != entity["type"]:
            entity = entity | {"type": type_}
        key = type_, *map(tuple, fragments(entity))
        report.counts["duplicates"] += key in kept
        first = kept.setdefault(key, entity)
        if "id" in entity:
            new[entity["id"]] = first.setdefault("id", entity["id"])
    document["entities"], lines = list(kept.values()), document["other"]
    if lines and any(name != to for name, to in new.items()):
        document["other"] = follow(lines, new)
        if gone := len(lines) - len(document["other"]):
            what = f"{gone} lines that point to mentions left out are left out, too"
            report.warn("dangling line", document["where"], what)


# The ids that a line of another kind points to: after a colon (R, E), all words (*), or the word after the name.
TARGETS = {"R": r"(:)(\w+)", "E": r"(:)(\w+)", "*": r"( )(\w+)"}
TARGET = r"^(\S+\t\S+ )(\w+)"


def follow(lines, new):
    """Other lines with the ids that they point to renamed; what points to None is left out, and what points to that."""
    rows = []
    for line in lines:
        pattern = TARGETS.get(line[:1], TARGET)
        rows.append((line, pattern, {name for _, name in re.findall(pattern, line)}))
    gone = {name for name, to in new.items() if to is None}
    while more := {line.split("\t")[0] for line, _, names in rows if names & gone} - gone - {"*"}:
        gone |= more
    return [re.sub(pattern, lambda match: match[1] + new.get(match[2], match[2]), line)
            for line, pattern, names in rows if not names & gone]  # fmt: skip


# ---------------------------------------------------------------------------- units of a document


def grouped(sizes, args):
    """Yield (first, last + 1) of the sentences of each unit: one, all, or as many as have --max_tokens tokens."""
    first, total = 0, 0
    for i, size in enumerate(sizes):
        total += size
        full = total > args.max_tokens if args.max_tokens else args.unit == "sentence"
        if full and i > first:
            yield first, i
            first, total = i, size
    yield first, len(sizes)


def units(document, args, report):
    """Yield the records of a document: units that tile its text, none cutting an entity's hull."""
    text, entities, doc_id = document["text"], document["entities"], document["doc_id"]
    whole = args.unit == "document" and not args.max_tokens
    own = document["offsets"]  # of tokens that it came with; between its units stands one space
    starts = [] if whole else document["edges"][1:] if document["edges"] else sentence_starts(text)
    begins = [entity["start"] for entity in entities]
    reach = [0, *itertools.accumulate((entity["end"] for entity in entities), max)]
    free = [start for start in starts if reach[bisect_left(begins, start)] <= start]
    report.counts["joins"] += len(starts) - len(free)
    edges = [0, *free, len(text) + (own is not None)]
    offsets = tokenize(text) if own is None and args.max_tokens else own or []
    tokens = [bisect_left(offsets, [edge]) for edge in edges]
    ids = document["ids"] if len(free) + 1 == len(document["ids"] or ()) and not args.max_tokens else None
    base = f"{doc_id}@{document['start']}" if document["start"] else doc_id  # of a part that begins later
    first = 0
    for number, (low, high) in enumerate(grouped([b - a for a, b in itertools.pairwise(tokens)], args)):
        start, end = edges[low], edges[high]
        last = bisect_left(begins, end)
        record = {"id": base if whole else ids[number] if ids else f"{base}:{number}", "doc_id": doc_id,
                  "start": start + document["start"], "text": text[start : end - (own is not None)],
                  "entities": [shifted(entity, start) for entity in entities[first:last]] if start else
                  entities[first:last]}  # fmt: skip
        if own is not None:
            spans = [[a - start, b - start] for a, b in own[tokens[low] : tokens[high]]]
            record |= {"tokens": [], "offsets": spans, "pretokenized": True}
        if whole and document["other"]:
            record["other"] = document["other"]
        report.counts["long"] += bool(args.max_tokens and tokens[high] - tokens[low] > args.max_tokens)
        yield record
        first = last


def shifted(entity, by):
    """The entity with offsets counted from character `by` on."""
    moved = entity | {"start": entity["start"] - by, "end": entity["end"] - by}
    if "fragments" in entity:
        moved["fragments"] = [[start - by, end - by] for start, end in entity["fragments"]]
    return moved


def layers(entities, text):
    """Yield the (start, end, type) of layer 1, of layer 2, ...: each the longest that those before it don't hold."""
    while True:
        kept, lost = flat_entities(entities, text)
        yield kept
        entities = [entity for entity, why in lost if why == "overlap"]
        if not entities:
            return


# ---------------------------------------------------------------------------- back to BRAT


def to_brat(document):
    """Return the .txt and the .ann of a document; scores become notes, the other lines stand at the end."""
    text, lines, used = document["text"], [], set()
    numbers = itertools.count(1)
    taken = {entity.get("id") for entity in document["entities"]}
    for entity in document["entities"]:
        name = entity.get("id")
        if not name or name in used or not re.fullmatch(r"T\w+", name):
            name = next(f"T{n}" for n in numbers if f"T{n}" not in taken)
        used.add(name)
        spans = [part for span in fragments(entity) for part in line_parts(text, *span)]
        shown = span_text(text, spans)
        if agreement(entity.get("reference"), shown):
            shown = entity.get("reference", shown)
        where = ";".join(f"{start} {end}" for start, end in spans)
        if re.search(r"\s", entity["type"]):
            raise DataError(f"{document['where']}: the type {entity['type']!r} holds white space, which BRAT can't; "
                            "rename it with --map_types")  # fmt: skip
        lines.append(f"{name}\t{entity['type']} {where}\t{shown.translate(LINE_ENDS)}")
        if "score" in entity:
            lines.append(f"#{name}\tAnnotatorNotes {name}\tscore {entity['score']}")
    mark = "\ufeff" * text.startswith("\ufeff")  # a reader takes one off
    return mark + text, "".join(f"{line}\n" for line in [*lines, *document["other"]])


def line_parts(text, start, end):
    """A span as BRAT writes it: cut at line ends, unless that would lose its edges."""
    parts = [[start + m.start(), start + m.end()] for m in re.finditer(r"[^\r\n]+", text[start:end])]
    whole = not parts or parts[0][0] != start or parts[-1][1] != end
    return [[start, end]] if whole or any(text[a:b].isspace() for a, b in parts) else parts


def short(name):
    """At most 100 characters, in at most 200 bytes: file systems take 255 of them, with all suffixes."""
    return name[:100].encode("utf-8")[:200].decode("utf-8", "ignore")


def safe_name(doc_id, taken):
    """A file name for a document that can't leave its folder, nor meet another; sub-folders are kept."""
    parts = [short(re.sub(r"[^\w.,()+=@~ -]|^\.+|[. ]+$", "_", part)) for part in doc_id.split("/") if part]
    above = r"(?i)\.(txt|ann|part)$"  # no folder is called as a file
    parts[:-1] = [re.sub(above, r"_\1", part) for part in parts[:-1]]
    base = "/".join(parts) if 0 < len(parts) < 6 else short("_".join(parts)) or "_"
    name, number = base, 1
    while name.casefold() in taken:
        number += 1
        name = f"{base}~{number}"
    taken.add(name.casefold())
    return name


# ---------------------------------------------------------------------------- one split


NO_UTF8 = re.compile("[\ud800-\udfff]")  # in a file name, or half of a surrogate pair in an id


def load(item, args):
    """Return (report, document or None) of an item of read_documents."""
    read, path, kind, source = item
    report = read if isinstance(read, Report) else Report()
    try:
        document = None if read is report else read(args, report)
    except DataError as error:
        return broken(error), None
    except OSError as error:
        return broken(f"{error.filename}: {error.strerror}"), None
    except UnicodeEncodeError:
        return broken(f"{path}: half of a surrogate pair; write such characters whole"), None
    if document:
        own, source = (each and NO_UTF8.sub("\ufffd", each) for each in (document["doc_id"], source))
        short_number = kind in ("conll", "csv") and re.fullmatch(r"\d{1,5}", own)  # PMIDs have more digits
        own = f"{source}/{own}" if source and (short_number or not is_named(own)) else own
        if own != document["doc_id"]:
            document["ids"] = None  # a renamed document's records are, too
        document |= {"doc_id": own, "where": f"{path}: document {own}", "source": source or document["source"]}
    return report, document


def convert(item, args, doc_id=None):
    """Return (report, what the outputs get) of an item of read_documents; nothing but the report if it is left out."""
    report, document = load(item, args)
    if document is None:
        return report, None
    path, where, own = item[1], document["where"], document["doc_id"]
    if doc_id:
        document |= {"doc_id": doc_id, "ids": None}
    origin = {"source": document["source"]} if document["source"] else {}
    made = {"doc_id": own, "own": own, "start": document["start"], "ids": [], "jsonl": [], "iob": []}
    try:
        choose(document, args, report)
        content = to_json([document[name] for name in ("text", "entities", "offsets")])
        made["digest"] = hashlib.blake2b(content.encode("utf-8"), digest_size=16).digest()
        for record in units(document, args, report):
            add_record(record | origin, made, args, report)
        made["brat"] = to_brat(document) if "brat" in args.to else ()
        if made["brat"] and document["start"]:
            report.warn("part of a document", where, f"begins at {document['start']}; its offsets in BRAT, at 0")
    except UnicodeEncodeError:
        return broken(f"{where}: half of a surrogate pair; write such characters whole"), None
    except DataError as error:
        return broken(error if str(error).startswith(path) else f"{path}: document {error}"), None
    if not report.counts["tokens"]:
        return report.warn("empty text", where, "no text; left out", count="left out"), None
    report.counts["documents"] += 1
    # The last layer has no entities: it is for the layers that another document has, and this one has not.
    made["iob"] = ["-DOCSTART-\tO\n\n" + "".join(each[min(layer, len(each) - 1)] for each in made["iob"])
                   for layer in range(max(map(len, made["iob"]), default=0))]  # fmt: skip
    return report, made


def add_record(record, made, args, report):
    """Add a record's lines to what its document has made so far; count it."""
    made["ids"].append(record["id"])
    view, lost, cuts = flat_view(record, args.overlap.replace("layers", "longest"), args.discontinuous)
    why = {id(entity): reason for entity, reason in lost}
    for entity in view["entities"]:  # how the flat view holds it: exact, trimmed, changed (a stand-in), or why not
        whole = "trimmed" if entity["text"] != entity["text"].strip() else "exact"
        state = why.get(id(entity)) or ("changed" if "fragments" in entity else whole)
        report.counts["tags", state, entity["type"]] += 1
    for name, n in ("records", 1), ("entities", len(view["entities"])), ("tokens", len(view["tokens"])), ("cuts", cuts):
        report.counts[name] += n
    if args.stats:
        measure(view, report.counts)
    if "jsonl" in args.to:
        made["jsonl"].append(to_json(view) + "\n")
    if "iob" in args.to:
        tags = [view["tags"]]
        if args.overlap == "layers":
            tags = [flat_tags(kept, view["offsets"]) for kept in (*layers(view["entities"], view["text"]), [])]
        made["iob"].append([iob_lines(view, each) for each in tags])


def converted(items, args):
    """Yield (item, *convert(item)), in order; with --workers in so many processes, a few batches ahead."""
    if args.workers == 1:
        yield from ((item, *convert(item, args)) for item in items)
        return
    from concurrent.futures import ProcessPoolExecutor

    waiting, items = deque(), iter(items)
    with ProcessPoolExecutor(args.workers, initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN)) as pool:
        while (batch := list(itertools.islice(items, BATCH))) or waiting:
            if batch:
                waiting.append((batch, pool.map(partial(convert, args=args), batch, chunksize=BATCH)))
            if len(waiting) > 3 * args.workers or not batch:
                first, results = waiting.popleft()
                yield from ((item, *result) for item, result in zip(first, results, strict=True))


def once(results, args):
    """Yield (report, what the outputs get); of a document that was there before, a report; of its id, another id."""
    seen, owner, names, ids = {}, {}, {}, set()  # digests, the path and new name of each document id, record ids
    for item, found, made in results:
        if made:
            doc_id, path = made["doc_id"], item[1]
            before = seen.setdefault((doc_id, made["start"]), [])
            if made["digest"] in before:
                read, what = found.counts["read"], "same id, text and mentions again; kept once"
                found = Report().warn("duplicate document", f"{path}: {doc_id}", what, count="duplicate documents")
                found.counts.update({"duplicates": read, "read": read})
                made = None
            else:
                clash = before or owner.setdefault(doc_id, path) != path
                before.append(made["digest"])
                name = names.get((path, doc_id))
                while clash or not ids.isdisjoint(made["ids"]):
                    name = name or next(name for n in itertools.count(2) if (name := f"{doc_id}~{n}") not in owner)
                    names[path, doc_id] = name
                    found, made = convert(item, args, name)
                    found.warn("renamed document", f"{path}: {doc_id}", f"its id is that of another one: now {name}")
                    owner[name], made["doc_id"], clash, name = path, name, False, None
                ids.update(made["ids"])
        yield found, made


# ---------------------------------------------------------------------------- outputs


class Output:
    """The files of one split, each opened when its first document comes; `stack` completes or removes them."""

    def __init__(self, split, stack, args):
        self.base, self.stack, self.args = os.path.join(args.output_dir, split), stack, args
        self.files, self.layers, self.names, self.taken, self.report = {}, [], {}, set(), Report()

    def file(self, suffix, opened=writing):
        """The open file OUTPUT_DIR/SPLIT.suffix, or folder where there is no suffix."""
        path = self.base + suffix
        if path not in self.files:
            self.files[path] = self.stack.enter_context(opened(path))
        return self.files[path]

    def add(self, made):
        """Write one document as `convert` made it."""
        if "jsonl" in self.args.to:
            self.file(".jsonl").write("".join(made["jsonl"]))
        if "iob" in self.args.to and self.args.overlap == "layers":
            self.layers.append(made["iob"])
        elif "iob" in self.args.to:
            self.file(".iob").write(made["iob"][0])
        if "brat" in self.args.to:
            name = safe_name(made["doc_id"], self.taken)
            self.names |= {name: made["doc_id"]} if name != made["doc_id"] else {}
            for suffix, text in zip((".txt", ".ann"), made["brat"], strict=True):
                with writing(os.path.join(self.file("", writing_folder), name + suffix)) as out:
                    out.write(text)

    def add_layers(self):
        """Write an IOB file for each layer; each has all tokens of all documents."""
        for layer in range(max(map(len, self.layers), default=1) - 1):
            for document in self.layers:
                self.file(f".layer{layer + 1}.iob").write(document[min(layer, len(document) - 1)])


@contextmanager
def writing_folder(path):
    """A folder to fill, by way of `path`.part; what stands at `path` is replaced only if it is ours and untouched."""
    holds = os.path.exists(path) and (os.path.isfile(path) or os.listdir(path))
    if holds and folder_digest(path) != read_sidecar(os.path.join(path, "run.json")).get("digest"):
        raise DataError(f"{path}: holds other files, or annotations that were edited; choose another --output_dir")
    shutil.rmtree(f"{path}.part", ignore_errors=True)
    os.makedirs(f"{path}.part")
    try:
        yield f"{path}.part"
        shutil.rmtree(path, ignore_errors=True)
        os.replace(f"{path}.part", path)
    finally:
        shutil.rmtree(f"{path}.part", ignore_errors=True)


def folder_digest(path):
    """SHA-256 of all files in a folder but its run.json; of their names, too."""
    files = sorted(os.path.join(root, name) for root, _, names in os.walk(path) for name in names)
    lines = (f"{os.path.relpath(file, path)} {sha256(file)}\n" for file in files)
    digests = (line for line in lines if not line.startswith("run.json "))
    return hashlib.sha256("".join(digests).encode("utf-8", "surrogateescape")).hexdigest()


def assign(items, args):
    """Return {document id: "train", "dev" or "test"}; texts of one document, and equal ones, are on one side."""
    group = {}  # the list that a document id or the digest of a text belongs to
    for _, document in (load(item, args) for item in items):
        if document:
            name, text = document["doc_id"], hashlib.sha256(document["text"].encode("utf-8", "surrogatepass")).digest()
            mine, same = group.setdefault(name, [name]), group.setdefault(text, [text])
            for node in mine if mine is not same else ():
                same.append(node)
                group[node] = same
    first = sorted({nodes[0] for nodes in group.values()})
    random.Random(args.seed).shuffle(first)
    edges = [round(len(first) * share) for share in itertools.accumulate(args.split)]
    side = {node: SIDES[bisect_right(edges[:2], i)] for i, node in enumerate(first)}
    return {node: side[nodes[0]] for node, nodes in group.items()}


def check_paths(splits, args):
    """Refuse to write over an input, the report over either, and BRAT folders where they would be read again."""
    inputs = list(itertools.chain.from_iterable(splits.values()))
    files = {os.path.realpath(os.path.join(folder, name)) for _, kind, folder, names in inputs for name in names
             if args.report or kind not in ("brat", "text")}  # fmt: skip
    files |= {os.path.realpath(path.removesuffix(":group")) for path in (args.map_types,) if path}
    bases = [os.path.join(os.path.realpath(args.output_dir), name) for name in (SIDES if args.split else splits)]
    ours = tuple(base + end for base in bases for end in ("/", ".jsonl", ".iob", ".layer"))
    report = os.path.realpath(args.report) if args.report else ""
    if report in {*files, *bases} or report.startswith(ours):
        raise DataError(f"{args.report}: would be written over; choose another --report")
    if both := files & {f"{base}.{suffix}" for base in bases for suffix in args.to}:
        raise DataError(f"{min(both)}: would be written over; choose another --output_dir")
    folders = [folder for _, kind, folder, _ in inputs if kind == "brat"] + list(filter(os.path.isdir, args.input))
    folders = tuple(os.path.realpath(folder) + "/" for folder in folders)
    for base in bases if "brat" in args.to else ():
        if base.startswith(folders):
            raise DataError(f"{base}: lies in an input folder, to be read as part of it; choose another --output_dir")


def check_sides(outputs, args):
    """Refuse a --split that leaves a side without a document: an older file would stay there, of other documents."""
    bare = [name for name, share in zip(SIDES, args.split or (), strict=False) if share and name not in outputs]
    if bare and outputs:
        raise DataError(f"--split: so few documents leave {', '.join(bare)} none; give it a larger share, or 0")


def write_split(split, inputs, args, report, started):
    """Convert one split, or with --split all inputs into three, into its files; return the counts of each."""
    outputs, digests, before = {}, {}, len(report.messages)
    for _, _, folder, names in inputs if args.to else ():
        files = [path for path in (os.path.join(folder, name) for name in sorted(names)) if os.access(path, os.R_OK)]
        digests[files[0] if len(files) == 1 else folder] = sha256(*files)
    sides = assign(read_documents(inputs, args), args) if args.split else {}
    with ExitStack() as stack:
        for found, made in once(converted(read_documents(inputs, args), args), args):
            report.add(found)
            if made:
                name = sides.get(made["own"], split)
                output = outputs[name] if name in outputs else outputs.setdefault(name, Output(name, stack, args))
                output.report.counts.update(found.counts)
                output.add(made)
        check_sides(outputs, args)
        for output in outputs.values():
            output.add_layers()
            if output.base in output.files:  # before it gets its name: a folder without a sidecar is not ours
                folder, counts = output.files[output.base], output.report.named()
                facts = {"counts": counts, "digest": folder_digest(folder), "names": output.names}
                write_sidecar(folder, args, digests, started, **facts)
    if not outputs and all(message["level"] != "error" for message in report.messages[before:]):
        where = os.path.join(inputs[0][2], *inputs[0][3][:1])
        what = "holds no token or document that can be read; check --input"
        report.add(Report().warn("nothing", where, what, "error"))
    for output in outputs.values():
        for path in output.files:
            if path != output.base:
                write_sidecar(path, args, digests, started, counts=output.report.named())
            log(f"  -> {path}")
    return {name: output.report.counts for name, output in outputs.items()}


# ---------------------------------------------------------------------------- statistics


def measure(record, counts):
    """Count what --stats shows of a record: lengths, and how its entities lie to each other and fit into tags."""
    text, entities = record["text"], record["entities"]
    counts.update([("texts, words", len(text.split())), ("texts, characters", len(text))])
    for entity in entities:
        words = len(entity["text"].split())
        counts.update(
            [("type", entity["type"]), ("mentions, words", words), ("mentions, characters", len(entity["text"]))]
        )
    counts["mentions", "discontinuous"] += sum("fragments" in entity for entity in entities)
    spans = {(entity["start"], entity["end"], entity["type"]) for entity in entities}
    for policy in OVERLAPS:
        kept = [flat_entities(entities, text, policy)[0]] if policy != "layers" else layers(entities, text)
        counts["exact", policy] += len(spans.intersection(itertools.chain.from_iterable(kept)))
    counts.update(("mentions", relation) for relation in overlaps(entities))


def overlaps(entities):
    """Return a list of "nested", "crossing" and "same span", for each entity of which it holds beside any other."""
    sets = [(e, frozenset(itertools.chain.from_iterable(range(*span) for span in fragments(e)))) for e in entities]
    sets.sort(key=lambda pair: pair[0]["start"])
    found = set()
    for i, (entity, chars) in enumerate(sets):
        for j in range(i + 1, len(sets)):
            if sets[j][0]["start"] >= entity["end"]:
                break
            other = sets[j][1]
            if chars == other:
                found |= {("same span", i), ("same span", j)}
            elif chars < other:
                found.add(("nested", i))
            elif other < chars:
                found.add(("nested", j))
            elif chars & other:
                found |= {("crossing", i), ("crossing", j)}
    return [relation for relation, _ in found]


def show_stats(stats):
    """Print the corpus table to stdout: sizes, entities by type, overlaps, lengths, by split."""
    columns = list(stats.values())
    types = sorted({key[1] for counts in columns for key, _ in of("type", counts)})
    keys = {name: name for name in ("documents", "records", "tokens", "entities")}
    keys |= {f"  {type_}": ("type", type_) for type_ in types}
    keys |= {name: ("mentions", name) for name in ("nested", "crossing", "same span", "discontinuous")}
    rows = [["", *stats], *([label, *(f"{counts[key]:,}" for counts in columns)] for label, key in keys.items())]
    for policy in OVERLAPS:
        shares = (counts["exact", policy] / max(1, counts["entities"]) for counts in columns)
        rows.append([f"exact in tags, {policy}", *(f"{share:.2%}" for share in shares)])
    for name in ("texts, words", "texts, characters", "mentions, words", "mentions, characters"):
        for share in (0.5, 0.9, 0.99, 1):
            label = f"{name}, {f'p{100 * share:.0f}' if share < 1 else 'longest'}"
            rows.append([label, *(f"{percentile(counts, name, share):,}" for counts in columns)])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip())


def percentile(counts, name, share):
    """The smallest length that at least this share of what was counted under (name, length) does not exceed."""
    lengths = sorted((length, n) for (_, length), n in of(name, counts))
    sums = list(itertools.accumulate(n for _, n in lengths))
    return lengths[bisect_left(sums, share * sums[-1])][0] if lengths else 0


# ---------------------------------------------------------------------------- command line


def of(name, counts):
    """The counts under (name, ...)."""
    return [(key, n) for key, n in counts.items() if key[0] == name]


def summary(report, args):
    """The last line: what was read, written and left out."""
    counts, states = report.counts, Counter()
    for (_, state, _), n in of("tags", counts):
        states[state] += n
    whole = states.pop("exact", 0)
    rest = "".join(f", {n:,} {state}" for state, n in states.most_common())
    kept = "brat" in args.to or ("jsonl" in args.to and args.unit == "document" and not args.max_tokens)
    lost = ("relations",) if kept else ("relations", *(f"lines {kind}" for kind in "REAMN*#?"))
    lost = ", ".join(f"{counts[name]:,} {name}" for name in lost if counts[name] and args.to)
    more = f"; not written: {lost}" if lost else ""
    more += f"; {counts['long']:,} units longer than --max_tokens" if counts["long"] else ""
    return (
        f"{counts['documents']:,} documents ({counts['left out']:,} left out), {counts['records']:,} records, "
        f"{counts['read']:,} mentions read: "
        f"{counts['entities']:,} in entities ({counts['dropped']:,} dropped, {counts['duplicates']:,} duplicates, "
        f"{counts['repaired']:,} repaired, {counts['other types']:,} of types left out); "
        f"{whole:,} exact in tags{rest} (--overlap {args.overlap} --discontinuous {args.discontinuous}); "
        f"{counts['cuts']:,} tokens cut and {counts['joins']:,} sentences joined at mention edges{more}"
    )


def parse_args(argv=None):
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw, allow_abbrev=False)
    add = parser.add_argument_group("data").add_argument
    add("--input", nargs="+", required=True, metavar="PATH", help="files, folders, folders of splits")
    add("--output_dir", metavar="DIR", help="where SPLIT.jsonl, SPLIT.iob and SPLIT/ go")
    add("--input_format", choices=["auto", *READERS], default="auto", help="default: %(default)s")
    add("--to", nargs="+", choices=["jsonl", "iob", "brat"], default=["jsonl", "iob"], help="default: jsonl iob")
    add("--encoding", metavar="NAME", help="of the input (default: UTF-8; of .txt and .ann also UTF-16), but of JSONL")
    add("--split", nargs=3, type=float, metavar="SHARE",
        help="new train, dev and test, by document: --split 0.8 0.1 0.1")  # fmt: skip
    add("--seed", type=int, default=42, help="of --split (default: %(default)s)")
    add("--workers", type=int, default=1, metavar="N", help="processes (default: %(default)s)")
    add = parser.add_argument_group("policies").add_argument
    add("--unit", choices=["sentence", "document"], default="sentence", help="default: %(default)s")
    add("--max_tokens", type=int, metavar="N", help="windows: as many whole sentences as have N tokens together")
    add("--overlap", choices=OVERLAPS, default="longest",
        help="overlapping mentions that go into tags; layers: all (%(default)s)")  # fmt: skip
    stand_ins = ["drop", "hull", "first", "longest", "split"]
    add("--discontinuous", choices=stand_ins, default="drop",
        help="what stands in the tags for a mention in fragments (default: %(default)s)")  # fmt: skip
    add("--mismatch", choices=["repair", "drop", "keep", "error"], default="repair",
        help="where reference text and offsets disagree (default: %(default)s)")  # fmt: skip
    add("--types", nargs="+", metavar="TYPE", help="keep these alone (as renamed by --map_types)")
    add("--map_types", metavar="FILE", help="JSON or TSV, old type to new (none: left out); UMLS SemGroups; FILE:group")
    add = parser.add_argument_group("report").add_argument
    add("--stats", action="store_true", help="print the corpus table; write nothing")
    add("--report", metavar="FILE", help="write every count and warning as JSON")
    add("--strict", action="store_true", help="exit 1 after any warning")
    args = parser.parse_args(argv)
    try:
        "".encode(args.encoding or "utf-8")
    except (LookupError, UnicodeError):
        parser.error(f"--encoding {args.encoding}: Python knows no such text encoding")
    if not args.output_dir and not args.stats:
        parser.error("give --output_dir, or --stats")
    if args.stats:
        args.to, args.output_dir = [], ""
    if args.overlap == "layers" and args.discontinuous != "drop":
        parser.error("--overlap layers holds continuous mentions: use it with --discontinuous drop")
    if args.split and not (min(args.split) >= 0 and abs(sum(args.split) - 1) < 1e-6):
        parser.error("--split takes three shares that add up to 1")
    if args.workers < 1 or (args.max_tokens is not None and args.max_tokens < 1):
        parser.error("--workers and --max_tokens must be at least 1")
    return args


def main(argv=None):
    args, started, report, stats = parse_args(argv), time.time(), Report(), {}
    args.type_map = read_type_map(args.map_types) if args.map_types else {}
    splits = {}
    for found in find_inputs(args, report):
        splits.setdefault(None if args.split else found[0], []).append(found)
    if not splits:
        raise DataError(f"{args.input[0]}: nothing in it that this script reads; check --input and --input_format")
    check_paths(splits, args)
    for split, inputs in splits.items():
        what = (
            f"{kind} from {os.path.join(folder, *names[:1][kind == 'brat' :])}" for _, kind, folder, names in inputs
        )
        log(f"{split or 'all'}: reading {', '.join(what)}")
        before = report.counts.copy()
        try:
            stats |= write_split(split, inputs, args, report, started)
        except (DataError, OSError) as error:  # nothing of this split is written; the others go on
            report.counts = before
            what = error if isinstance(error, DataError) else f"{error.filename or args.output_dir}: {error.strerror}"
            where, _, what = str(what).partition(": ")
            report.add(Report().warn("split", where, what, "error"))
    if args.stats:
        show_stats(stats)
    if left := Counter({type_: n for (_, type_), n in of("left out", report.counts)}):
        names = ", ".join(f"{type_} {n:,}" for type_, n in left.most_common())
        report.add(Report().warn("types left out", "--types, --map_types", names))
    if args.report:
        tags = sorted(of("tags", report.counts))
        tags = [{"state": state, "type": type_, "n": n} for (_, state, type_), n in tags]
        with writing(args.report) as out:
            whole = {"counts": report.named(), "tags": tags, "messages": report.messages}
            out.write(NO_UTF8.sub("\ufffd", json.dumps(whole, ensure_ascii=False, indent=2)) + "\n")
    log(summary(report, args))
    return int(any(level == "error" or args.strict for level, _ in report.kinds))


if __name__ == "__main__":
    gc.disable()  # nothing here makes cycles, and looking for them takes 5 % of the time
    sys.exit(run(main))

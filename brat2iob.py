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
    log,
    read_iob,
    read_jsonl,
    read_lines,
    read_type_map,
    run,
    sentence_starts,
    sha256,
    span_text,
    split_tag,
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
BATCH = 16  # documents that go to a worker at a time

# ---------------------------------------------------------------------------- the report


class Report:
    """What was read, mended, left out and written, and what is wrong: of one document, or (`add`) of all."""

    def __init__(self):
        self.counts, self.flat, self.types, self.kinds, self.messages = Counter(), Counter(), Counter(), Counter(), []

    def warn(self, kind, where, what, level="warning"):
        """Note what is wrong at the file and line `where`."""
        self.messages.append({"level": level, "kind": kind, "where": where, "what": what})

    def add(self, other):
        """Take in another report; print its messages, SHOWN of a kind."""
        self.counts.update(other.counts)
        self.flat.update(other.flat)
        self.types.update(other.types)
        for message in other.messages:
            level, kind, where, what = message.values()
            self.messages.append(message)
            self.kinds[level, kind] += 1
            if self.kinds[level, kind] <= SHOWN:
                log(f"{level}: {where}: {what}")
            elif self.kinds[level, kind] == SHOWN + 1:
                log(f"{level}: more like the last ({kind}) are counted, not shown; --report FILE lists them all")


def note(kind, where, what, level="warning", **counts):
    """A report of one message."""
    report = Report()
    report.warn(kind, where, what, level)
    report.counts.update(counts)
    return report


def broken(error):
    """What is yielded for a document that can't be read: a report, and nothing else."""
    where, _, what = str(error).partition(": ")
    left_out = {"left out": 1}
    return {"report": note("broken document", where, f"{what} (document left out)", "error", **left_out)}


def attempt(read, *args):
    """read(*args), a document; or, where it is broken or unreadable, the report of that."""
    try:
        return read(*args)
    except DataError as error:
        return broken(error)
    except OSError as error:
        return broken(f"{error.filename}: {error.strerror}")


@contextmanager
def fields(where):
    """Around code that takes JSON or XML apart: a field that is missing, or of another kind, breaks the document."""
    try:
        yield
    except DataError:
        raise
    except (AttributeError, LookupError, TypeError, ValueError, SyntaxError, OverflowError, RecursionError) as error:
        raise DataError(f"{where}: a field is missing or not of its kind ({type(error).__name__}); "
                        "compare it with the format's description") from None  # fmt: skip


def mention(where, name, type_, spans, reference):
    """A mention, its fields checked to be of their kinds; ValueError (for `fields`) where one is not."""
    edges = [edge for span in spans for edge in span]
    kinds = all(isinstance(edge, int) and not isinstance(edge, bool) for edge in edges) and isinstance(type_, str)
    if not edges or not kinds or not type_.strip() or not isinstance(reference, (str, type(None))):
        raise ValueError
    return where, str(name), type_.strip(), spans, reference


# ---------------------------------------------------------------------------- BRAT

# A reader yields documents: {"doc_id", "report"?, "other"?} and one of
#   "parts": [(start in the document, text, whether a byte order mark was taken off, mentions)], offsets still to be
#            resolved; a mention is (where it stands, id, type, spans, reference text or None)
#   "text", "entities": resolved; optional: "edges", "ids", where its units begin, and their ids; "offsets" of its own
#            tokens, if it came with them (its units are joined by one space then)
# or {"report"} alone for a document that is left out.

SPANS = r"\d{1,15}\s+\d{1,15}(?:\s*;\s*\d{1,15}\s+\d{1,15})*"
T_LINE = re.compile(rf"(\S+)\s+({SPANS})\s*", re.ASCII)
ANY_LINE = re.compile(r"[A-Z*#]\w*\t")
SECTION = re.compile(r"([^|\s]+)\|(\w)\|(.*)")
TITLE = re.compile(r"[^|\s]+\|t\|")
ANN = (".ann", ".a1", ".a2")
GZIP_ERRORS = (gzip.BadGzipFile, EOFError, zlib.error)


def opened(path):
    return gzip.open(path) if path.endswith(".gz") else open(path, "rb")


def decode(path, encoding):
    """Return (text without byte order mark, whether it had one) of a file, byte for byte as it stands."""
    try:
        with opened(path) as file:
            raw = file.read()
    except GZIP_ERRORS:
        raise DataError(f"{path}:1: broken or cut gzip data; unpack it again from its source") from None
    utf16 = raw[:2] in (b"\xff\xfe", b"\xfe\xff")
    try:
        text = raw.decode(encoding or ("utf-16" if utf16 else "utf-8"))
    except UnicodeError as error:
        at = getattr(error, "start", 0)
        raise DataError(f"{path}:{raw.count(10, 0, at) + 1}: not {encoding or 'UTF-8'} at byte {at} of the file; "
                        "say what it is, for example --encoding cp1252") from None  # fmt: skip
    if "\0" in text:
        raise DataError(f"{path}:{text.count(chr(10), 0, text.find(chr(0))) + 1}: NUL character: not a text file; "
                        "remove it from the folder")  # fmt: skip
    return text.removeprefix("\ufeff"), utf16 or text.startswith("\ufeff")


def read_annotations(path, encoding, report):
    """Return (mentions, all other lines) of an .ann file."""
    mentions, other, seen, blank = [], [], set(), 0
    for number, line in enumerate(decode(path, encoding)[0].split("\n"), 1):
        line, where = line.removesuffix("\r"), f"{path}:{number}"
        if not line.strip():
            blank += 1
        elif line[0] == "T":
            mentions.append(text_bound(line, where, seen, report))
            blank = 0
        elif mentions and not ANY_LINE.match(line) and is_cut(mentions[-1]):  # its text has line ends, raw
            mentions[-1] = (*mentions[-1][:4], mentions[-1][4] + "\n" * (blank + 1) + line)
            blank = 0
        else:
            other.append(line)
            report.counts[f"lines {line[0] if line[0] in 'REAMN*#' else '?'}"] += 1
            if line[0] not in "REAMN*#":
                report.warn("unknown line", where, "not a BRAT line; passed over")
    return mentions, other


def text_bound(line, where, seen, report):
    """The mention of a T line."""
    cells = line.split("\t", 2)
    match = T_LINE.fullmatch(cells[1]) if len(cells) > 1 and " " not in cells[0] else None
    if not match:
        raise DataError(f"{where}: not `ID<TAB>TYPE START END<TAB>text`; mend or delete the line")
    if cells[0] in seen:
        report.warn("duplicate id", where, f"{cells[0]} stands twice; both are kept")
    seen.add(cells[0])
    spans = [[int(edge) for edge in span.split()] for span in match[2].split(";")]
    return where, cells[0], match[1], spans, "".join(cells[2:]) or None


def is_cut(mention):
    """Whether a mention has a reference text, but a shorter one than its spans."""
    return mention[4] is not None and len(mention[4]) < sum(end - start for start, end in mention[3])


def brat_document(doc_id, txt, anns, encoding):
    report, mentions, other = Report(), [], []
    text, had_bom = decode(txt, encoding)
    for ann in anns:
        found, rest = read_annotations(ann, encoding, report)
        mentions += found
        other += rest
    return {"doc_id": doc_id, "parts": [(0, text, had_bom, mentions)], "other": other, "report": report}


def read_brat(folder, names, encoding):
    """Yield the documents of a folder; `names` are the relative paths of its .txt, .ann, .a1 and .a2 files."""
    pairs = {}
    for name in names:
        base, suffix = os.path.splitext(name.removesuffix(".gz"))
        if suffix.lower() in pairs.setdefault(base, {}):
            what = "the same name stands there twice, in capital letters or as .gz"
            yield {"report": note("two files", os.path.join(folder, name), what, "error")}
        pairs[base][suffix.lower()] = os.path.join(folder, name)
    if not any(suffix in pair for pair in pairs.values() for suffix in ANN):
        raise DataError(f"{folder}: no .ann file beside a .txt; for plain texts use --input_format text")
    for name, pair in sorted(pairs.items()):
        anns = [pair[suffix] for suffix in ANN if suffix in pair]
        left_out = {"left out": 1}
        if ".txt" not in pair:
            what = "no .txt of the same name beside it; left out"
            yield {"report": note("no text", anns[0], what, "error", **left_out)}
        elif not anns:
            what = "no .ann beside it; left out (not an empty gold)"
            yield {"report": note("no annotations", pair[".txt"], what, **left_out)}
        else:
            yield partial(attempt, brat_document, name.replace(os.sep, "/"), pair[".txt"], anns, encoding)


# ---------------------------------------------------------------------------- other formats


def is_offset(text):
    """Whether a column is a number that can be an offset."""
    return text.isdecimal() and len(text) < 16


def read_pubtator(path, encoding):
    """Yield the documents of a PubTator file: one begins at each `ID|t|title`."""
    block = []
    for number, line in itertools.chain(read_lines(path, encoding), [(0, None)]):
        if block and (line is None or ("|t|" in line and TITLE.match(line))):
            yield partial(attempt, pubtator_document, path, block)
            block = []
        if line and line.strip():
            block.append((number, line))


def pubtator_document(path, block):
    """Title and abstract with one character between them; rows of 6 or 7 columns are mentions, of 4 or 5 relations."""
    report, texts, mentions, doc_id = Report(), [], [], None
    for number, line in block:
        section, cells, where = SECTION.match(line), line.split("\t"), f"{path}:{number}"
        doc_id = doc_id or (section and section[1])
        if (section[1] if section else cells[0]) != doc_id or not doc_id:
            raise DataError(f"{where}: not a line of document {doc_id}; begin each document with `ID|t|title`")
        if section:
            texts.append(section[3])
        elif len(cells) >= 5 and is_offset(cells[1]) and is_offset(cells[2]) and cells[4].strip():
            mentions.append((where, "mention", cells[4].strip(), [[int(cells[1]), int(cells[2])]], cells[3]))
        elif len(cells) in (4, 5) and cells[1].strip() and not is_offset(cells[1]):
            report.counts["lines R"] += 1
        else:
            raise DataError(f"{where}: neither `ID<TAB>START<TAB>END<TAB>text<TAB>TYPE<TAB>CONCEPT` nor a relation")
    return {"doc_id": doc_id, "parts": [(0, "\n".join(texts), False, mentions)], "report": report}


def read_bioc(path, encoding):
    """Yield the documents of a BioC file, XML or JSON."""
    with opened(path) as file:
        xml = file.read(1 << 10).replace(b"\0", b"").lstrip(b"\xef\xbb\xbf\xff\xfe \r\n\t")[:1] == b"<"
        file.seek(0)
        for document in bioc_xml(path, file) if xml else bioc_json(path, encoding):
            yield partial(attempt, bioc_document, path, document)


def refuse_entities(path, file):
    """Read XML up to its first element; a DataError where it declares entities, which can grow without end."""
    from xml.parsers import expat

    def declared(*_):
        raise DataError(f"{path}:1: declares XML entities, which BioC has no use for; remove them")

    def started(*_):
        raise StopIteration

    parser = expat.ParserCreate()
    parser.EntityDeclHandler, parser.StartElementHandler = declared, started
    try:
        parser.ParseFile(file)
    except (StopIteration, expat.ExpatError, *GZIP_ERRORS):
        file.seek(0)  # what is broken is named when it is read


def bioc_json(path, encoding):
    with fields(path):
        collection = parsed(path, encoding)
        return list(collection.get("documents", [collection]))


def parsed(path, encoding):
    """A JSON file, whole."""
    try:
        return json.loads(decode(path, encoding)[0])
    except (ValueError, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}:{getattr(error, 'lineno', 1)}: not JSON: {getattr(error, 'msg', 'broken')}") from None


def bioc_xml(path, file):
    """Yield each <document> as BioC JSON has it; one at a time in memory."""
    from xml.etree import ElementTree

    def whole(element):
        return None if element is None else "".join(element.itertext())

    def piece(element):
        inner = {f"{name}s": [piece(each) for each in element.findall(name)] for name in ("annotation", "sentence")}
        infons = {infon.get("key"): infon.text for infon in element.findall("infon")}
        spans = [dict(at.items()) for at in element.findall("location")]
        own = {name: whole(element.find(name)) for name in ("text", "offset")} | {"id": element.get("id")}
        return own | inner | {"infons": infons, "locations": spans}

    refuse_entities(path, file)
    try:
        for _, element in ElementTree.iterparse(file):
            if element.tag == "document":
                passages = [piece(each) for each in element.findall("passage")]
                relations = len(list(element.iter("relation"))) * [None]
                yield piece(element) | {"id": whole(element.find("id")), "passages": passages, "relations": relations}
                element.clear()
    except (ElementTree.ParseError, LookupError, ValueError, *GZIP_ERRORS) as error:
        line = getattr(error, "position", (1,))[0]
        raise DataError(f"{path}:{line}: not well-formed XML; get the file anew") from None


def bioc_document(path, document):
    """Passages, or their sentences, one after the other; each annotation belongs to the passage of its offset."""
    parts, bases, report, position = [], [], Report(), 0
    with fields(f"{path}: document {document.get('id') if isinstance(document, dict) else '?'}"):
        report.counts["lines R"] += len(document.get("relations") or ())
        notes = [(None, each) for each in document.get("annotations") or ()]
        for number, passage in enumerate(sorted(document["passages"], key=lambda each: int(each["offset"]))):
            sentences = sorted(passage.get("sentences") or (), key=lambda each: int(each["offset"]))
            base, text = int(passage["offset"]), ""
            for each in [passage] if passage.get("text") else sentences:
                text += padding(int(each["offset"]) - base - len(text)) + each["text"]
            notes += [(number, note) for each in (passage, *sentences) for note in each.get("annotations") or ()]
            if parts:  # what is between two passages ends the first
                pad = padding(base - bases[-1] - len(parts[-1][1])) or "\n"
                position += len(parts[-1][1] + pad)
                parts[-1] = (parts[-1][0], parts[-1][1] + pad, *parts[-1][2:])
            parts.append((position, text, False, []))
            bases.append(base)
        for here, each in notes:
            spans = [[int(at["offset"]), int(at["offset"]) + int(at["length"])] for at in each["locations"]]
            start = min(spans)[0]
            if here is None or not 0 <= start - bases[here] < len(parts[here][1].encode()):  # not in its own passage
                here = max(bisect_right(bases, start) - 1, 0)
            spans = [[a - bases[here], b - bases[here]] for a, b in spans]
            where = f"{path}: document {document['id']}, annotation {each.get('id')}"
            parts[here][3].append(mention(where, each.get("id"), each["infons"]["type"], spans, each.get("text")))
        if not str(document["id"] or ""):
            raise ValueError
    return {"doc_id": str(document["id"]), "parts": parts, "report": report}


def padding(gap):
    """Text between two passages: `gap` characters, the last a line end."""
    return "\n".rjust(min(gap, GAP)) if gap > 0 else ""


def read_chemprot(path, encoding):
    """Yield the documents of ChemProt's PREFIX_abstracts.tsv (ID, title, abstract) with its PREFIX_entities.tsv."""
    rows, used, entities = defaultdict(list), set(), "entities".join(path.rsplit("abstracts", 1))
    for number, line in read_lines(entities, encoding):
        if line.strip():
            rows[line.split("\t", 1)[0]].append((f"{entities}:{number}", line.split("\t")))
    for number, line in read_lines(path, encoding):
        if line.strip():
            used.add(doc_id := line.split("\t", 1)[0])
            yield partial(attempt, chemprot_document, f"{path}:{number}", line, rows[doc_id])
    for doc_id in rows.keys() - used:
        yield broken(f"{rows[doc_id][0][0]}: no abstract of the id {doc_id}")


def chemprot_document(where, line, rows):
    doc_id, *texts = line.split("\t", 2)
    if len(texts) != 2:
        raise DataError(f"{where}: not `ID<TAB>title<TAB>abstract`")
    for row, cells in rows:
        if len(cells) != 6 or not is_offset(cells[3]) or not is_offset(cells[4]) or not cells[2].strip():
            raise DataError(f"{row}: not `ID<TAB>T1<TAB>TYPE<TAB>START<TAB>END<TAB>text`")
    mentions = [(row, cells[1], cells[2], [[int(cells[3]), int(cells[4])]], cells[5]) for row, cells in rows]
    return {"doc_id": doc_id, "parts": [(0, "\n".join(texts), False, mentions)]}


def read_rudrec(path, encoding):
    """Yield the reviews of RuDReC's JSON lines, each rebuilt from its sentences; the file is held in memory."""
    reviews = defaultdict(list)
    for number, line in read_lines(path, encoding):
        if line.strip():
            with fields(f"{path}:{number}"):
                sentence = json.loads(line)
                reviews[sentence["file_name"]].append((int(sentence["sentence_id"]), number, sentence))
    for name, sentences in reviews.items():
        yield partial(attempt, rudrec_document, path, name, sentences)


def rudrec_document(path, name, sentences):
    parts, position = [], 0
    for _, number, sentence in sorted(sentences, key=lambda each: each[:2]):
        with fields(f"{path}:{number}"):
            text = sentence["text"] if sentence["text"].endswith("\n") else sentence["text"] + "\n"
            mentions = [mention(f"{path}:{number}", e["entity_id"], e["entity_type"], [[e["start"], e["end"]]],
                                e["entity_text"]) for e in sentence["entities"]]  # fmt: skip
            parts.append((position, text, False, mentions))
            position += len(text)
    return {"doc_id": os.path.splitext(name)[0], "parts": parts, "edges": [start for start, *_ in parts]}


def read_text(folder, names, encoding):
    """Yield documents without entities, for prediction."""

    for name in sorted(name for name in names if not name.lower().removesuffix(".gz").endswith(ANN)):
        yield partial(attempt, text_document, folder, name, encoding)


def text_document(folder, name, encoding):
    doc_id = os.path.splitext(name.removesuffix(".gz"))[0].replace(os.sep, "/")
    return {"doc_id": doc_id, "text": decode(os.path.join(folder, name), encoding)[0], "entities": []}


def read_conll(path, encoding):
    """Yield the documents of an IOB/CoNLL file; their `units` are the file's own, with its tokens."""
    warnings = []
    for doc_id, group in itertools.groupby(read_iob(path, encoding, warnings.append), key=itemgetter("doc_id")):
        yield one_document(doc_id, list(group))
    for what in warnings:
        yield {"report": note("IOB", path, what.removeprefix(f"{path}: ").removeprefix("warning: "))}


# Columns of the CSV files met: RareDis (two layouts), MedMentions (lists written as Python does)
COLUMNS = {
    "token": ("Token", "Word", "Full Text"),
    "tag": ("Tag", "Entity Codes"),
    "document": ("File", "File ID"),
    "sentence": ("Sentence_Num", "Sentence #"),
}


def read_csv(path, encoding):
    """Yield the documents of a CSV file: a token and its tag in each row, or lists of them."""
    csv.field_size_limit(1 << 30)
    rows = csv.DictReader(f"{line}\n" for _, line in read_lines(path, encoding))
    try:
        found = rows.fieldnames or ()
        known = {use: next((name for name in names if name in found), None) for use, names in COLUMNS.items()}
        if not known["token"] or not known["tag"]:
            raise DataError(f"{path}:1: no column named Token or Word, or none named Tag; name them so")
        yield from csv_documents(path, rows, known)
    except csv.Error as error:
        raise DataError(f"{path}:{rows.line_num}: broken CSV: {error}") from None


def csv_documents(path, rows, known):
    cells = ((rows.line_num, {use: row.get(name) or "" for use, name in known.items()}) for row in rows)
    if not known["document"] and not known["sentence"]:
        for number, (line, row) in enumerate(cells):
            yield partial(attempt, list_document, f"{path}:{line}", f"#{number}", row)
        return
    for number, (doc_id, group) in enumerate(itertools.groupby(cells, key=lambda cell: cell[1]["document"])):
        units_, where = [], None
        for _, sentence in itertools.groupby(group, key=lambda cell: cell[1]["sentence"]):
            lines = list(sentence)
            where = where or f"{path}:{lines[0][0]}"
            units_.append(([row["token"] for _, row in lines], [row["tag"] for _, row in lines]))
        yield partial(attempt, token_document, where, doc_id or f"#{number}", units_)


def list_document(where, doc_id, row):
    """The document of a row that holds Python lists; <START> and <END> are no tokens of it."""
    with fields(where):
        pairs = list(zip(ast.literal_eval(row["token"]), ast.literal_eval(row["tag"]), strict=True))
        pairs = [(token, tag) for token, tag in pairs if token not in ("<START>", "<END>")]
    return token_document(where, doc_id, [([token for token, _ in pairs], [tag for _, tag in pairs])])


def token_document(where, doc_id, units):
    """A document of units that are (tokens, tags)."""
    with fields(where):
        for tokens, tags in units:
            if len(tokens) != len(tags) or not all(isinstance(each, str) for each in (*tokens, *tags)):
                raise DataError(f"{where}: tokens and tags must be strings, and as many; write the tags' names")
            for tag in tags:
                split_tag(tag)
    report, made = Report(), []
    for i, (tokens, tags) in enumerate(units):
        spans = tag_spans(tags)  # before white space is left out: it can part two mentions
        tags = ["O"] * len(tokens)
        for first, last, type_ in spans:
            inside = [at for at in range(first, last) if tokens[at].strip()]
            for at in inside:
                tags[at] = f"{'B' if at == inside[0] else 'I'}-{type_}"
        kept = [at for at, token in enumerate(tokens) if token.strip()]
        if len(kept) < len(tokens):
            report.warn("empty token", where, f"{len(tokens) - len(kept)} tokens of white space in a unit; left out")
        if kept:
            made.append(iob_record(f"{doc_id}:{i}", doc_id, [tokens[at] for at in kept], [tags[at] for at in kept]))
    return one_document(doc_id, made) | {"report": report}


def one_document(doc_id, records):
    """The document of records that follow each other; those that came with their own tokens are joined by one space."""
    gap = " " * any(record.get("pretokenized", False) for record in records)
    edges = [0, *itertools.accumulate(len(record["text"] + gap) for record in records)][: len(records)]
    pairs = list(zip(edges, records, strict=True))
    entities = [shifted(entity, -by) for by, record in pairs for entity in record["entities"]]
    entities.sort(key=lambda entity: (entity["start"], -entity["end"], entity["type"]))
    document = {"doc_id": doc_id, "text": gap.join(record["text"] for record in records), "entities": entities}
    if gap:
        document["offsets"] = [[start + by, end + by] for by, record in pairs for start, end in record["offsets"]]
    return document | {"edges": edges}


def read_json(path, encoding):
    """Yield the documents of a JSONL file: our records, those of a document joined, or `tokens` with `ner_tags`."""
    lines = ((number, line) for number, line in read_lines(path, encoding) if line.strip())
    number, line = next(lines, (1, ""))
    if line.lstrip().startswith("["):
        yield from (partial(attempt, hugging_face, path, i, row) for i, row in enumerate(parsed(path, encoding), 1))
    elif line and re.search(r'"tokens"\s*:', line) and "text" not in keys(line):
        yield from (partial(attempt, hugging_face, path, *row) for row in itertools.chain([(number, line)], lines))
    else:
        for doc_id, group in itertools.groupby(read_jsonl(path), key=itemgetter("doc_id")):
            yield from joined(doc_id, list(group))


def keys(line):
    """The keys of a JSON object; "text" where it is none, so that the reader of records says what is wrong."""
    try:
        return json.loads(line).keys()
    except (ValueError, AttributeError, RecursionError):
        return ("text",)


def hugging_face(path, number, row):
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
        doc_id = f"#{doc_id}" if doc_id == str(number - 1) else doc_id  # the number of a row names no document
        return token_document(where, doc_id, [(row["tokens"], tags)])


def joined(doc_id, records):
    """The documents that records of one doc_id make: units that follow each other without a gap are one."""
    own = all(record.get("pretokenized") for record in records)
    unit, end = [], None
    for record in [*sorted(records, key=itemgetter("start")), None]:
        if unit and (record is None or record["start"] != end):
            document = one_document(doc_id, unit) | {"start": unit[0]["start"], "ids": [each["id"] for each in unit]}
            if document["ids"] == [doc_id] and not own:  # a whole document, whose sentences are still to be found
                document["edges"] = document["ids"] = None
            other = [line for each in unit for line in each.get("other", ())]
            yield document | {"other": other, "source": unit[0].get("source")}
            unit = []
        if record:
            unit.append(record if own else record | {"pretokenized": False})
            end = record["start"] + len(record["text"]) + own


READERS = {"brat": read_brat, "pubtator": read_pubtator, "bioc": read_bioc, "conll": read_conll, "csv": read_csv,
           "chemprot": read_chemprot, "rudrec": read_rudrec, "jsonl": read_json, "text": read_text}  # fmt: skip


# ---------------------------------------------------------------------------- what the inputs hold


def find_inputs(args, report):
    """Return [(split, format, folder, names)]: what each path holds, in the order given."""
    found, input_format = [], args.input_format
    for path in args.input:
        folder, name = os.path.split(path)
        if os.path.isdir(path):
            found += search_folder(path, args, report)
            continue
        if not os.path.exists(path):
            raise DataError(f"{path}: no such file or folder; check --input")
        kind = detect(path) if input_format == "auto" else input_format
        if kind is None:
            raise DataError(f"{path}: not a file this script knows; say what it is with --input_format")
        beside = [other for other in os.listdir(folder or ".") if stem(other) == stem(name) and is_brat(other)]
        found.append((stem(name, kind), kind, folder, beside if kind == "brat" else [name]))
    return [item for i, item in enumerate(found) if item not in found[:i]]


def search_folder(folder, args, report):
    """What one folder holds: its documents make one split with all below; else each sub-folder and file is one."""
    input_format, real = args.input_format, os.path.realpath(folder)
    try:
        here = sorted(name for name in os.listdir(folder) if name[0] != "." and name != "__MACOSX")
    except OSError as error:  # the other folders go on
        report.add(note("unreadable", folder, f"{error.strerror}; left out", "error"))
        return []
    files = {name for name in here if os.path.isfile(os.path.join(folder, name)) and not name.endswith("run.json")}
    ours = {name for name in files if f"{name}.run.json" in here}  # outputs: not read again, nor twice
    if real != os.path.realpath(args.output_dir or os.devnull):
        ours = {
            name for name in ours if name.endswith(".iob") and re.sub(r"(\.layer\d+)?\.iob$", ".jsonl", name) in ours
        }
    here = [name for name in here if os.path.isdir(os.path.join(folder, name))
            and not f"{real}/".startswith(os.path.realpath(os.path.join(folder, name)) + "/")
            and not (f"{name}.jsonl.run.json" in here and written_digest(os.path.join(folder, name)))]  # fmt: skip
    kinds = {name: detect(os.path.join(folder, name)) for name in sorted(files - ours)}
    kinds = {name: kind for name, kind in kinds.items() if kind and input_format in ("auto", kind)}
    mark = ".txt" if input_format == "text" else ANN
    marked = any(name.lower().removesuffix(".gz").endswith(mark) for name in files)
    if input_format not in ("auto", "brat", "text") or not marked:
        found = [(stem(name, kind), kind, folder, [name]) for name, kind in kinds.items() if kind != "brat"]
        for name in here:
            found += search_folder(os.path.join(folder, name), args, report)
        if found or not any(map(is_brat, files)) or input_format not in ("auto", "brat"):
            return found
    for name in kinds if input_format == "auto" else ():
        if not is_brat(name):
            what = "beside .ann files and left out; name it as --input"
            report.add(note("other file", os.path.join(folder, name), what))
    names = []
    for root, below, inside in os.walk(folder, onerror=stop):
        below[:] = [name for name in below if name[0] != "." and name != "__MACOSX"]
        names += [os.path.relpath(os.path.join(root, name), folder) for name in inside if is_brat(name)]
    return [(os.path.basename(os.path.abspath(folder)), input_format.replace("auto", "brat"), folder, names)]


def stop(error):
    """For os.walk, which would pass over a folder that can't be read."""
    raise error


def detect(path):
    """The format of a file by its name and its first characters, or None."""
    name, base = os.path.basename(path).lower().removesuffix(".gz"), os.path.splitext(path.removesuffix(".gz"))[0]
    anns = (base + suffix + packed for suffix in ANN for packed in ("", ".gz"))
    if name.endswith(ANN) or (name.endswith(".txt") and any(map(os.path.exists, anns))):
        return "brat"
    table = re.search(r"_(abstracts|entities|relations|gold_standard)\.tsv$", name)
    if table and os.path.exists(path[: -len(table[0])] + "_entities.tsv"):
        return "chemprot" if table[1] == "abstracts" else None
    if is_iob(name):
        return "conll"
    return "csv" if name.endswith(".csv") else detect_content(path)


def detect_content(path):
    """The format of a file by its first characters, or None."""
    try:
        with opened(path) as file:
            head = file.read(1 << 16).replace(b"\0", b"").decode("utf-8", "replace").lstrip("\ufeff\ufffd \r\n\t")
    except GZIP_ERRORS:
        return None
    except OSError:
        return "jsonl"  # whatever it is: reading it names the file and the reason
    if TITLE.match(head):
        return "pubtator"
    if re.match(r"<\?xml|<!DOCTYPE|<collection", head):
        return "bioc"
    if head.startswith("{") and re.search(r'"(?:passages|documents)"\s*:', head[:4096]):
        return "bioc"
    if head.startswith("{") and re.search(r'"sentence_id"\s*:', head) and re.search(r'"file_name"\s*:', head):
        return "rudrec"
    return "jsonl" if re.match(r"\[?\s*\{", head) and re.search(r'"(?:text|tokens)"\s*:', head) else None


def is_brat(name):
    """Whether a file name is one of a document; `._x.ann` and other hidden files are not."""
    return name.lower().removesuffix(".gz").endswith((".txt", *ANN)) and name[0] != "."


def stem(name, kind=None):
    """The file name without .gz and suffix, and without ChemProt's _abstracts."""
    base = os.path.splitext(name.removesuffix(".gz"))[0]
    return base.removesuffix("_abstracts") if kind == "chemprot" else base


def read_documents(inputs, args):
    """Yield (document or the call that reads it, path, format, `source` for its records or None) of one split."""
    for _, kind, folder, names in inputs:
        for name in names if kind not in ("brat", "text") else [None]:
            path = os.path.normpath(folder) if name is None else os.path.join(folder, name)
            reader = partial(READERS[kind], folder, names) if name is None else partial(READERS[kind], path)
            for document in reader(args.encoding):
                yield document, path, kind, path if len(inputs) > 1 else None


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
    found = sorted(abs(low + m.start() - start) for m in re.finditer(f"(?={re.escape(reference)})", window))
    if not found or (len(found) > 1 and found[1] < 3 * found[0]):
        return None
    at = start - found[0]
    return at if at >= 0 and text.startswith(reference, at) else start + found[0]


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
        report.counts["dropped"] += 1
        return report.warn("white space", where, f"{here}: only white space; left out")
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
    report.counts["dropped" if at is None else "repaired"] += 1
    if at is None:
        return report.warn("mismatch", where, f"{wrong}; left out")
    report.warn("mismatch", where, f"{wrong}; moved to {at}-{at + len(reference)}, where it is")
    return [[at, at + len(reference)]]


def resolve(document, args, report):
    """Give a document of parts its `text` and `entities`: each mention in code points, exact duplicates once.

    Return the ids that other lines may point to.
    """
    entities, alias = {}, {}
    named = document.get("other") and (args.unit == "document" or "brat" in args.to)  # other lines point to ids
    for start, text, had_bom, mentions in document["parts"]:
        plain = [is_plain(mention, text) for mention in mentions]  # the usual case, and quick
        unit, *place = ("code points",) if all(plain) else find_unit(mentions, text, had_bom)
        if unit != "code points":
            report.warn("offset unit", mentions[0][0], f"offsets count {unit}; turned into code points")
        report.counts["read"] += len(mentions)
        for mention, quick in zip(mentions, plain, strict=True):
            if quick and unit == "code points":
                [(low, high)] = mention[3]
                entity = {"start": low + start, "end": high + start, "type": mention[2], "text": mention[4]}
            else:
                entity = make_entity(mention, text, place, args.mismatch, report)
                entity = shifted(entity, -start) if entity and start else entity
            if entity:
                key = same_mention(entity)
                report.counts["duplicates"] += key in entities
                kept = entities.setdefault(key, entity)
                if named:
                    alias[mention[1]] = kept.setdefault("id", mention[1])
    if any(name != kept for name, kept in alias.items()):  # other lines point to the mention that is kept
        document["other"] = [pointing(line, lambda name: alias.get(name, name)) for line in document["other"]]
    document["text"] = "".join(part[1] for part in document["parts"])
    document["entities"] = sorted(entities.values(), key=lambda e: (e["start"], -e["end"], e["type"]))
    ids = {mention[1] for part in document["parts"] for mention in part[3]} if named else set()
    return ids - {name for name, kept in alias.items() if name != kept}


# What a line of another kind points to, in its second column: after a colon (R, E), all words (*), or the first one.
TARGETS = {"R": (r"(?<=:)\w+", 0), "E": (r"(?<=:)\w+", 0), "*": (r"(?<= )\w+", 0)}


def pointing(line, new):
    """A line of another kind with each id that it points to replaced by new(id)."""
    cells, (pattern, count) = line.split("\t", 2), TARGETS.get(line[:1], (r"(?<= )\w+", 1))
    cells[1:2] = [re.sub(pattern, lambda match: new(match[0]), cell, count=count) for cell in cells[1:2]]
    return "\t".join(cells)


def targets(line):
    """The ids that a line of another kind points to."""
    found = set()
    pointing(line, lambda name: found.add(name) or name)
    return found


def leave_dangling(document, names, report):
    """Leave out the other lines that point to a mention which is left out, and those that point to them."""
    gone = names - {entity.get("id") for entity in document["entities"]}
    lines = document["other"]
    while left := [line for line in lines if gone & targets(line)]:
        gone = {line.split("\t")[0] for line in left} - {"*"}
        lines = [line for line in lines if line not in left]
    if len(lines) < len(document["other"]):
        n = len(document["other"]) - len(lines)
        report.warn("dangling line", document["where"], f"{n} lines that point to mentions left out are left out, too")
    document["other"] = lines


def is_plain(mention, text):
    """Whether a mention is one span of the text, in code points, that is its reference text."""
    (start, end), reference = mention[3][0], mention[4]
    return (len(mention[3]) == 1 and reference is not None and len(reference) == end - start
            and text.startswith(reference, start) and bool(reference.strip()))  # fmt: skip


def same_mention(entity):
    """What exact duplicates have in common: the type and all fragments."""
    return entity["type"], *map(tuple, fragments(entity))


def keep_types(entities, args, report):
    """Rename types by --map_types, keep those of --types; exact duplicates that this makes are kept once."""
    kept = {}
    for entity in entities:
        renamed = entity | {"type": args.type_map.get(entity["type"], entity["type"])}
        if renamed["type"] and (not args.types or renamed["type"] in args.types):
            key = same_mention(renamed)
            report.counts["duplicates"] += key in kept
            kept.setdefault(key, renamed)
        else:
            report.counts["other types"] += 1
            report.types[entity["type"]] += 1
    return list(kept.values())


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
    own = document.get("offsets")  # of tokens that it came with; between its units stands one space
    starts = [] if whole else document["edges"][1:] if document.get("edges") else sentence_starts(text)
    begins = [entity["start"] for entity in entities]
    reach = [0, *itertools.accumulate((entity["end"] for entity in entities), max)]
    free = [start for start in starts if reach[bisect_left(begins, start)] <= start]
    report.counts["joins"] += len(starts) - len(free)
    edges = [0, *free, len(text) + (own is not None)]
    offsets = tokenize(text) if own is None and args.max_tokens else own or []
    tokens = [bisect_left(offsets, [edge]) for edge in edges]
    ids = document["ids"] if len(free) + 1 == len(document["ids"] or ()) and not args.max_tokens else None
    base = f"{doc_id}@{document['start']}" if document.get("start") else doc_id  # of a part that begins later
    first = 0
    for number, (low, high) in enumerate(grouped([b - a for a, b in itertools.pairwise(tokens)], args)):
        start, end = edges[low], edges[high]
        last = bisect_left(begins, end)
        record = {"id": base if whole else ids[number] if ids else f"{base}:{number}", "doc_id": doc_id,
                  "start": start + document.get("start", 0), "text": text[start : end - (own is not None)],
                  "entities": [shifted(entity, start) for entity in entities[first:last]] if start else
                  entities[first:last]}  # fmt: skip
        if own is not None:
            spans = [[a - start, b - start] for a, b in own[tokens[low] : tokens[high]]]
            record |= {"tokens": [], "offsets": spans, "pretokenized": True}
        if whole and document.get("other"):
            record["other"] = document["other"]
        yield record
        first = last


def shifted(entity, by):
    """The entity with offsets counted from character `by` on."""
    moved = entity | {"start": entity["start"] - by, "end": entity["end"] - by}
    if "fragments" in entity:
        moved["fragments"] = [[start - by, end - by] for start, end in entity["fragments"]]
    return moved


def flat_share(record, lost, report):
    """Count how the flat view holds each entity: exact, trimmed, changed (a stand-in), or lost and why."""
    why = {id(entity): reason for entity, reason in lost}
    for entity in record["entities"]:
        state = why.get(id(entity)) or ("changed" if "fragments" in entity else "exact")
        if state == "exact" and entity["text"] != entity["text"].strip():
            state = "trimmed"
        report.flat[state, entity["type"]] += 1


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
            raise DataError(f"{document['doc_id']}: the type {entity['type']!r} holds white space, which BRAT can't; "
                            "rename it with --map_types")  # fmt: skip
        lines.append(f"{name}\t{entity['type']} {where}\t{shown.translate(LINE_ENDS)}")
        if "score" in entity:
            lines.append(f"#{name}\tAnnotatorNotes {name}\tscore {entity['score']}")
    mark = "\ufeff" * text.startswith("\ufeff")  # a reader takes one off
    return mark + text, "".join(f"{line}\n" for line in [*lines, *document.get("other", ())])


def line_parts(text, start, end):
    """A span as BRAT writes it: cut at line ends, unless that would lose its edges."""
    parts = [[start + m.start(), start + m.end()] for m in re.finditer(r"[^\r\n]+", text[start:end])]
    whole = not parts or parts[0][0] != start or parts[-1][1] != end
    return [[start, end]] if whole or any(text[a:b].isspace() for a, b in parts) else parts


def safe_name(doc_id, taken):
    """A file name for a document that can't leave its folder, nor meet another; sub-folders are kept."""
    parts = [re.sub(r"[^\w.,()+=@~ -]|^\.+|[. ]+$", "_", part)[:100] for part in doc_id.split("/") if part]
    parts[:-1] = [re.sub(r"\.(txt|ann)$", r"_\1", part, flags=re.I) for part in parts[:-1]]  # no folder like a file
    base = name = "/".join(parts) if 0 < len(parts) < 6 else "_".join(parts)[:100] or "_"
    copies = 1
    while name.casefold() in taken:
        copies += 1
        name = f"{base}~{copies}"
    taken.add(name.casefold())
    return name


# ---------------------------------------------------------------------------- one split


def prepare(document, args, report):
    """Give a document its `entities` in code points, of the types that were asked for."""
    if "parts" in document:
        names = resolve(document, args, report)
    else:
        names = {entity["id"] for entity in document["entities"] if "id" in entity}
        report.counts["read"] += len(document["entities"])
    if args.types or args.type_map:
        document["entities"] = keep_types(document["entities"], args, report)
    if names and document.get("other"):
        leave_dangling(document, names, report)


def convert(item, args, doc_id=None):
    """Return (report, what the outputs get) of an item of read_documents; nothing but the report if it is left out."""
    document, path, kind, source = item
    document = dict(document() if callable(document) else document)
    report = document.get("report") or Report()
    if "doc_id" not in document:
        return report, None
    own = os.fsencode(document["doc_id"]).decode("utf-8", "replace")  # a file name may be no UTF-8
    if source and kind in ("conll", "csv"):  # their ids are running numbers
        own = f"{source}/{own}"
    document["doc_id"] = doc_id or own
    document["ids"] = document.get("ids") if not doc_id else None  # a renamed document's records are, too
    document["where"] = where = f"{path}: document {own}"
    origin = {"source": source or document["source"]} if source or document.get("source") else {}
    made = {"doc_id": own, "start": document.get("start", 0), "ids": [], "jsonl": [], "iob": [], "stats": Counter()}
    try:
        made["side"] = text_digest(document) if args.split else None
        prepare(document, args, report)
        content = to_json([document.get(name) for name in ("text", "entities", "offsets")])
        made["digest"] = hashlib.blake2b(content.encode("utf-8"), digest_size=16).digest()
        for record in units(document, args, report):
            add_record(record | origin, made, args, report)
        if "brat" in args.to:
            made["brat"] = to_brat(document)
    except UnicodeEncodeError:
        return broken(f"{where}: half of a surrogate pair; write such characters whole")["report"], None
    except DataError as error:
        return broken(error if str(error).startswith(path) else f"{path}: document {error}")["report"], None
    if not made["stats"]["tokens"]:
        report.warn("empty text", where, "no text; left out")
        report.counts["left out"] += 1
        return report, None
    report.counts["documents"] += 1
    made["stats"]["documents"] += 1
    return report, made | {"iob": layered(made["iob"])}


def add_record(record, made, args, report):
    """Add a record's lines to what its document has made so far; count it."""
    made["ids"].append(record["id"])
    view, lost, cuts = flat_view(record, args.overlap.replace("layers", "longest"), args.discontinuous)
    flat_share(view, lost, report)
    for name, n in ("records", 1), ("entities", len(view["entities"])), ("tokens", len(view["tokens"])), ("cuts", cuts):
        report.counts[name] += n
    made["stats"]["tokens"] += len(view["tokens"])
    if args.stats:
        measure(view, made["stats"])
    if "jsonl" in args.to:
        made["jsonl"].append(to_json(view) + "\n")
    if "iob" in args.to:
        tags = [view["tags"]]
        if args.overlap == "layers":
            kept = [*layers(view["entities"], view["text"]), []]
            tags = [flat_tags(each, view["offsets"]) for each in kept]
        made["iob"].append([iob_lines(view, each) for each in tags])


def layered(records):
    """The IOB text of a document by layer, and last, one without entities for the layers that it has not."""
    depth = max(map(len, records), default=0)
    return [
        "-DOCSTART-\tO\n\n" + "".join(each[min(layer, len(each) - 1)] for each in records) for layer in range(depth)
    ]


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
                waiting.append((batch, pool.submit(convert_batch, batch, args)))
            if len(waiting) > 3 * args.workers or not batch:
                first, results = waiting.popleft()
                yield from ((item, *result) for item, result in zip(first, results.result(), strict=True))


def convert_batch(batch, args):
    return [convert(item, args) for item in batch]


def once(results, args):
    """Yield (report, what the outputs get); of a document that was there before, a report; of its id, another id."""
    seen, owner, names, ids = {}, {}, {}, set()  # digests, the path and new name of each document id, record ids
    for item, found, made in results:
        if made:
            doc_id, path = made["doc_id"], item[1]
            copies = seen.setdefault((doc_id, made["start"]), [])
            if made["digest"] in copies and item[2] != "conll":
                counts = {"duplicate documents": 1, "duplicates": found.counts["read"], "read": found.counts["read"]}
                what = "same id, text and mentions again; kept once"
                found, made = note("duplicate document", f"{path}: {doc_id}", what, **counts), None
            else:
                clash = copies or owner.setdefault(doc_id, path) != path
                copies.append(made["digest"])
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
        self.files, self.layers, self.names, self.taken, self.counts = {}, [], {}, set(), Counter()

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
    if os.path.exists(path) and folder_digest(path) != written_digest(path):
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
    files = sorted(
        os.path.relpath(os.path.join(root, name), path) for root, _, names in os.walk(path) for name in names
    )
    digests = (f"{name} {sha256(os.path.join(path, name))}\n" for name in files if name != "run.json")
    return hashlib.sha256("".join(digests).encode("utf-8", "surrogateescape")).hexdigest()


def written_digest(path):
    """The digest that the sidecar of a folder of ours has, or None."""
    sidecar = os.path.join(path, "run.json")
    try:
        return json.loads(decode(sidecar, None)[0])["digest"] if os.path.isfile(sidecar) else None
    except (LookupError, TypeError, ValueError):
        return None


def assign(items, shares, seed):
    """Return {digest of a text: "train", "dev" or "test"}; texts of one document, and equal ones, are on one side."""
    leader = {}

    def find(node):
        while leader.setdefault(node, node) != node:
            leader[node] = node = leader[leader[node]]
        return node

    for document, _, kind, source in items:
        document = document() if callable(document) else document
        if "doc_id" in document:
            name = (source if kind in ("conll", "csv") else None, document["doc_id"])
            leader[find(name)] = find(text_digest(document))
    texts = [node for node in leader if isinstance(node, bytes)]
    groups = sorted({find(text) for text in texts})
    random.Random(seed).shuffle(groups)
    edges = [round(len(groups) * share) for share in itertools.accumulate(shares)]
    side = {group: ("train", "dev", "test")[sum(i >= edge for edge in edges[:2])] for i, group in enumerate(groups)}
    return {text: side[find(text)] for text in texts}


def text_digest(document):
    text = document["text"] if "text" in document else "".join(part[1] for part in document["parts"])
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def input_digests(inputs):
    """Return {file or folder: SHA-256 of what can be read of it}."""
    digests = {}
    for _, _, folder, names in inputs:
        files = [path for path in (os.path.join(folder, name) for name in sorted(names)) if os.access(path, os.R_OK)]
        digests[files[0] if len(files) == 1 else folder] = sha256(*files)
    return digests


def check_paths(splits, args):
    """Refuse to write over an input, the report over either, and BRAT folders where they would be read again."""
    files = {os.path.realpath(os.path.join(folder, name)) for found in splits.values() for _, _, folder, names in found
             for name in names if len(names) == 1 or args.report}  # fmt: skip
    files |= {path.replace("_abstracts", "_entities") for path in files}
    files |= {os.path.realpath(path.removesuffix(":group")) for path in (args.map_types,) if path}
    names = ("train", "dev", "test") if args.split else splits
    bases = [os.path.join(os.path.realpath(args.output_dir), name) for name in names]
    report = os.path.realpath(args.report) if args.report else None
    ours = r"(/.*|(\.layer\d+)?\.(jsonl|iob)(\.run\.json|\.part)*)?"
    if report and (report in files or any(re.fullmatch(re.escape(base) + ours, report, re.S) for base in bases)):
        raise DataError(f"{args.report}: would be written over; choose another --report")
    if both := files & {f"{base}.{suffix}" for base in bases for suffix in args.to}:
        raise DataError(f"{min(both)}: would be written over; choose another --output_dir")
    for base in bases if "brat" in args.to else ():
        folders = {folder for found in splits.values() for _, kind, folder, _ in found if kind == "brat"}
        folders |= {path for path in args.input if os.path.isdir(path)}
        if any(f"{base}/".startswith(os.path.realpath(folder) + "/") for folder in folders):
            raise DataError(f"{base}: lies in an input folder, to be read as part of it; choose another --output_dir")


def write_split(split, inputs, args, report, started):
    """Convert one split, or with --split all inputs into three, into its files; return its statistics by split."""
    stats, outputs, errors = {}, {}, sum(message["level"] == "error" for message in report.messages)
    digests = {} if args.stats else input_digests(inputs)
    sides = assign(read_documents(inputs, args), args.split, args.seed) if args.split else {}
    with ExitStack() as stack:
        for found, made in once(converted(read_documents(inputs, args), args), args):
            report.add(found)
            if made:
                name = sides.get(made["side"], split)
                output = outputs[name] if name in outputs else outputs.setdefault(name, Output(name, stack, args))
                stats.setdefault(name, Counter()).update(made["stats"])
                output.counts.update(found.counts)
                output.add(made)
        for output in outputs.values():
            output.add_layers()
            if output.base in output.files:  # before it gets its name: a folder without a sidecar is not ours
                folder, names = output.files[output.base], output.names
                write_sidecar(
                    folder, args, digests, started, counts=output.counts, digest=folder_digest(folder), names=names
                )
    if not outputs and errors == sum(message["level"] == "error" for message in report.messages):
        where = os.path.join(inputs[0][2], *inputs[0][3][:1])
        report.add(note("nothing", where, "holds no token or document that can be read; check --input", "error"))
    for output in outputs.values():
        for path in output.files:
            if path != output.base:
                write_sidecar(path, args, digests, started, counts=output.counts)
            log(f"  -> {path}")
    return stats


# ---------------------------------------------------------------------------- statistics


def measure(record, stats):
    """Count what --stats shows of a record: lengths, and how its entities lie to each other and fit into tags."""
    text, entities = record["text"], record["entities"]
    stats.update({"records": 1, ("texts, words", len(text.split())): 1, ("texts, characters", len(text)): 1})
    for entity in entities:
        stats["type", entity["type"]] += 1
        stats["mentions, words", len(entity["text"].split())] += 1
        stats["mentions, characters", len(entity["text"])] += 1
        stats["discontinuous"] += "fragments" in entity
    spans = {(entity["start"], entity["end"], entity["type"]) for entity in entities}
    for policy in OVERLAPS:
        kept = [flat_entities(entities, text, policy)[0]] if policy != "layers" else layers(entities, text)
        stats["exact", policy] += len(spans.intersection(itertools.chain.from_iterable(kept)))
    for relation in overlaps(entities):
        stats[relation] += 1


def overlaps(entities):
    """Yield "nested", "crossing" and "same span" for each entity of which it holds, beside any other."""
    sets = [(e, frozenset(itertools.chain.from_iterable(range(*span) for span in fragments(e)))) for e in entities]
    sets.sort(key=lambda pair: pair[0]["start"])
    found = defaultdict(set)
    for i, (entity, chars) in enumerate(sets):
        for j in range(i + 1, len(sets)):
            if sets[j][0]["start"] >= entity["end"]:
                break
            other = sets[j][1]
            if chars == other:
                found[i].add("same span")
                found[j].add("same span")
            elif chars < other:
                found[i].add("nested")
            elif other < chars:
                found[j].add("nested")
            elif chars & other:
                found[i].add("crossing")
                found[j].add("crossing")
    return itertools.chain.from_iterable(found.values())


def show_stats(stats):
    """Print the corpus table to stdout: sizes, entities by type, overlaps, lengths, by split."""
    types = sorted({key[1] for counts in stats.values() for key in counts if key[0] == "type"})
    rows = [["", *stats]]
    total = {split: sum(counts["type", type_] for type_ in types) for split, counts in stats.items()}
    for name in ("documents", "records", "tokens"):
        rows.append([name, *(f"{counts[name]:,}" for counts in stats.values())])
    rows.append(["entities", *(f"{total[split]:,}" for split in stats)])
    rows += [[f"  {type_}", *(f"{counts['type', type_]:,}" for counts in stats.values())] for type_ in types]
    for name in ("nested", "crossing", "same span", "discontinuous"):
        rows.append([name, *(f"{counts[name]:,}" for counts in stats.values())])
    for policy in OVERLAPS:
        shares = (f"{counts['exact', policy] / max(1, total[split]):.2%}" for split, counts in stats.items())
        rows.append([f"exact in tags, {policy}", *shares])
    for name in ("texts, words", "texts, characters", "mentions, words", "mentions, characters"):
        for share in (0.5, 0.9, 0.99, 1):
            label = f"{name}, {f'p{100 * share:.0f}' if share < 1 else 'longest'}"
            rows.append([label, *(f"{percentile(counts, name, share):,}" for counts in stats.values())])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip())


def percentile(counts, name, share):
    """The smallest length that at least this share of what was counted under (name, length) does not exceed."""
    lengths = sorted((key[1], n) for key, n in counts.items() if key[0] == name)
    wanted = share * sum(n for _, n in lengths)
    sums = itertools.accumulate(n for _, n in lengths)
    return next((length for (length, _), reached in zip(lengths, sums, strict=True) if reached >= wanted), 0)


# ---------------------------------------------------------------------------- command line


def summary(report, args):
    """The last line: what was read, written and left out."""
    counts, states = report.counts, Counter()
    for (state, _), n in report.flat.items():
        states[state] += n
    whole = states.pop("exact", 0)
    rest = "".join(f", {n:,} {state}" for state, n in states.most_common())
    return (
        f"{counts['documents']:,} documents ({counts['left out']:,} left out), {counts['records']:,} records, "
        f"{counts['read']:,} mentions read: "
        f"{counts['entities']:,} in entities ({counts['dropped']:,} dropped, {counts['duplicates']:,} duplicates, "
        f"{counts['repaired']:,} repaired, {counts['other types']:,} of types left out); "
        f"{whole:,} exact in tags{rest} (--overlap {args.overlap} --discontinuous {args.discontinuous}); "
        f"{counts['cuts']:,} tokens cut and {counts['joins']:,} sentences joined at mention edges"
    )


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    data = parser.add_argument_group("data")
    data.add_argument("--input", nargs="+", required=True, metavar="PATH", help="files, folders, folders of splits")
    data.add_argument("--output_dir", metavar="DIR", help="where SPLIT.jsonl, SPLIT.iob and SPLIT/ go")
    data.add_argument("--input_format", choices=["auto", *READERS], default="auto", help="default: %(default)s")
    data.add_argument("--to", nargs="+", choices=["jsonl", "iob", "brat"], default=["jsonl", "iob"],
                      help="default: jsonl iob")  # fmt: skip
    data.add_argument("--encoding", metavar="NAME", help="of the input (default: UTF-8; of .txt and .ann also UTF-16)")
    data.add_argument("--split", nargs=3, type=float, metavar="SHARE",
                      help="new train, dev and test, by document: --split 0.8 0.1 0.1")  # fmt: skip
    data.add_argument("--seed", type=int, default=42, help="of --split (default: %(default)s)")
    data.add_argument("--workers", type=int, default=1, metavar="N", help="processes (default: %(default)s)")
    policy = parser.add_argument_group("policies")
    policy.add_argument("--unit", choices=["sentence", "document"], default="sentence", help="default: %(default)s")
    policy.add_argument("--max_tokens", type=int, metavar="N",
                        help="windows: as many whole sentences as have N tokens together")  # fmt: skip
    policy.add_argument("--overlap", choices=OVERLAPS, default="longest",
                        help="overlapping mentions that go into tags; layers: all (%(default)s)")  # fmt: skip
    stand_ins = ["drop", "hull", "first", "longest", "split"]
    policy.add_argument("--discontinuous", choices=stand_ins, default="drop",
                        help="what stands in the tags for a mention in fragments (default: %(default)s)")  # fmt: skip
    policy.add_argument("--mismatch", choices=["repair", "drop", "keep", "error"], default="repair",
                        help="where reference text and offsets disagree (default: %(default)s)")  # fmt: skip
    policy.add_argument("--types", nargs="+", metavar="TYPE", help="keep these alone (as renamed by --map_types)")
    policy.add_argument("--map_types", metavar="FILE",
                        help="JSON or TSV, old type to new (none: left out); UMLS SemGroups; FILE:group")  # fmt: skip
    report = parser.add_argument_group("report")
    report.add_argument("--stats", action="store_true", help="print the corpus table; write nothing")
    report.add_argument("--report", metavar="FILE", help="write every count and warning as JSON")
    report.add_argument("--strict", action="store_true", help="exit 1 after any warning")
    args = parser.parse_args(argv)
    check_args(args, parser)
    return args


def check_args(args, parser):
    """Refuse, as usage errors, flags that don't go together."""
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


def main(argv=None):
    args, started, report = parse_args(argv), time.time(), Report()
    args.type_map = read_type_map(args.map_types) if args.map_types else {}
    splits, stats = {}, {}
    for found in find_inputs(args, report):
        splits.setdefault(None if args.split else found[0], []).append(found)
    if not splits:
        raise DataError(f"{args.input[0]}: nothing in it that this script reads; check --input and --input_format")
    check_paths(splits, args)
    for split, inputs in splits.items():
        what = ", ".join(
            f"{kind} from {os.path.join(folder, *names[:1][kind == 'brat' :])}" for _, kind, folder, names in inputs
        )
        log(f"{split or 'all'}: reading {what}")
        before = report.counts.copy(), report.flat.copy(), report.types.copy()
        try:
            stats |= write_split(split, inputs, args, report, started)
        except (DataError, OSError) as error:  # nothing of this split is written; the others go on
            report.counts, report.flat, report.types = before
            what = error if isinstance(error, DataError) else f"{error.filename or args.output_dir}: {error.strerror}"
            where, _, what = str(what).partition(": ")
            report.add(note("split", where, what, "error"))
    if args.stats:
        show_stats(stats)
    if report.types:
        names = ", ".join(f"{type_} {n:,}" for type_, n in report.types.most_common())
        report.add(note("types left out", "--types, --map_types", names))
    if args.report:
        tags = [{"state": state, "type": type_, "n": n} for (state, type_), n in sorted(report.flat.items())]
        with writing(args.report) as out:
            whole = {"counts": report.counts, "tags": tags, "messages": report.messages}
            out.write(json.dumps(whole, ensure_ascii=False, indent=2) + "\n")
    log(summary(report, args))
    return int(any(level == "error" or args.strict for level, _ in report.kinds))


if __name__ == "__main__":
    gc.disable()  # nothing here makes cycles, and looking for them takes 5 % of the time
    sys.exit(run(main))

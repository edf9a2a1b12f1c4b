# /// script
# requires-python = ">=3.10"
# dependencies = []
# ///
"""Every corpus in: turn annotated text into records (JSONL) and IOB files, and lose no mention in silence.

Each document is read with the offsets as its own annotation tool counted them (the unit that makes the reference texts
agree), cut into sentences, and tokenized by runs of letters, runs of digits and single symbols. `entities` holds every
mention, nested, overlapping and discontinuous ones too; `tags` hold what one column of IOB2 tags can, by --overlap and
--discontinuous, and what they can't is counted. Sentence breaks inside a mention are undone, and counted.

    python brat2iob.py --input data/rare_en --output_dir out/rare_en
    python brat2iob.py --input my_corpus/train my_corpus/test --output_dir out --unit document --to jsonl
    python brat2iob.py --input ncbi/train.tsv ncbi/devel.tsv --output_dir out/ncbi

Reads   BRAT folders (.txt + .ann; sub-folders are splits), IOB/CoNLL files (.iob .conll .bio .tsv, .gz; 2-4 columns;
        IOB1 IOB2 IOBES BILOU), plain text (--input_format text)
Writes  OUTPUT_DIR/SPLIT.jsonl and SPLIT.iob, each with a sidecar .run.json. Offsets: code points, end exclusive
Needs   nothing but Python
Source  the BRAT standoff format, brat.nlplab.org/standoff.html; replaces brat2iob.py of qiuhaolu/tner (RareDis)
Differs from that script, on RareDis train + dev: 100 % of 11,884 mentions in `entities`, where it keeps 87.3 % and adds
        665 that are not in the gold; fragments all kept, where it keeps the first; sentences by rules that know
        abbreviations, where it cuts at each [.!?] before a space; texts and annotations paired by name, not by position
"""

import argparse
import gzip
import itertools
import json
import os
import re
import sys
import time
from bisect import bisect_left
from collections import Counter

from utils import (
    DataError,
    flat_entities,
    flat_tags,
    flat_view,
    fragments,
    is_iob,
    log,
    read_iob,
    run,
    sha256,
    span_text,
    write_iob,
    write_iob_through,
    write_jsonl,
    write_sidecar,
    writing,
)

NEAR = 20  # a wrong offset is mended within so many characters, as far as real drift goes (PharmaCoNER: 1-2)
SHOWN = 20  # warnings of one kind printed; the rest is in --report
BRACKET = 250  # no sentence break in a bracket that closes within so many characters; keeps the search linear

# ---------------------------------------------------------------------------- the report


class Report:
    """Counts what was read, mended, left out and written; prints each warning once, SHOWN of a kind."""

    def __init__(self):
        self.counts, self.flat, self.kinds, self.messages = Counter(), Counter(), Counter(), []

    def warn(self, kind, where, what, level="warning"):
        """Note what is wrong at the file and line `where`."""
        self.kinds[level, kind] += 1
        self.messages.append({"level": level, "kind": kind, "where": where, "what": what})
        if level == "error" or self.kinds[level, kind] <= SHOWN:
            log(f"{level}: {where}: {what}")
        elif self.kinds[level, kind] == SHOWN + 1:
            log(f"warning: more like the last ({kind}) are counted, not shown; --report FILE lists them all")

    def error(self, kind, where, what):
        self.warn(kind, where, what, "error")


# ---------------------------------------------------------------------------- BRAT

# The units in which tools count offsets: how wide a character is in each, given the one before it.
UNITS = {
    "code points": lambda char, before: 1,
    "code points, CRLF as one": lambda char, before: char != "\n" or before != "\r",
    "UTF-16 units": lambda char, before: 1 + (char > "\uffff"),
    "UTF-8 bytes": lambda char, before: len(char.encode("utf-8")),
}
T_LINE = re.compile(r"(\S+)\s+(\d{1,15}\s+\d{1,15}(?:\s*;\s*\d{1,15}\s+\d{1,15})*)\s*", re.ASCII)
AGREEING = {"same": 2, "spaces": 1, "quotes": 1, "letters": 1, "longer": 0, None: 0}  # worth as evidence
QUOTES = str.maketrans("", "", "\"'")
LOOKALIKES = str.maketrans("‘’‚“”„«»–—−‐‑", '\'\'\'"""""-----')


def decode(path, encoding):
    """Return (text without byte order mark, whether it had one) of a file, byte for byte as it stands."""
    with gzip.open(path) if path.endswith(".gz") else open(path, "rb") as file:
        raw = file.read()
    utf16 = raw[:2] in (b"\xff\xfe", b"\xfe\xff")
    try:
        text = raw.decode(encoding or ("utf-16" if utf16 else "utf-8"))
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}:{line}: not {encoding or 'UTF-8'} at byte {error.start} of the file; "
                        "say what it is, for example --encoding cp1252") from None  # fmt: skip
    if "\0" in text:
        raise DataError(f"{path}:{text.count(chr(10), 0, text.find(chr(0))) + 1}: NUL character: not a text file; "
                        "remove it from the folder")  # fmt: skip
    return text.removeprefix("\ufeff"), utf16 or text.startswith("\ufeff")


def read_annotations(path, encoding, report):
    """Return (T lines as (line number, id, type, spans, reference or None), all other lines) of an .ann file."""
    mentions, other, seen = [], [], set()
    for number, line in enumerate(decode(path, encoding)[0].split("\n"), 1):
        line = line.removesuffix("\r")
        if not line.startswith("T"):
            if line.strip():
                other.append(line)
                report.counts[f"lines {line[0] if line[0] in 'REAMN*#' else '?'}"] += 1
                if line[0] not in "REAMN*#":
                    report.warn("unknown line", f"{path}:{number}", "not a BRAT line; passed over")
            continue
        cells = line.split("\t", 2)
        match = T_LINE.fullmatch(cells[1]) if len(cells) > 1 and " " not in cells[0] else None
        if not match:
            raise DataError(f"{path}:{number}: not `ID<TAB>TYPE START END<TAB>text`; mend or delete the line")
        if cells[0] in seen:
            report.warn("duplicate id", f"{path}:{number}", f"{cells[0]} stands twice; both are kept")
        seen.add(cells[0])
        spans = [[int(edge) for edge in span.split()] for span in match[2].split(";")]
        mentions.append((number, cells[0], match[1], spans, "".join(cells[2:]) or None))
    return mentions, other


def agreement(reference, text):
    """How a reference text agrees with the slice(s): "same", but for "spaces", "quotes", "letters", "longer", or None.

    "quotes": CSV writers double or drop them; "letters": case, typographic quotes and dashes; "longer": more after it.
    """
    if reference is None or reference == text:
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


def make_entity(mention, where, text, place, args, report):
    """Return the entity of a T line, or None where it is left out; warn of all that is not as it should be."""
    _, name, type_, spans, reference = mention
    points, shift = place
    here = f"{name} {type_} {spans[0][0]}-{spans[-1][1]}"
    inside = all(shift <= a < b < len(points) + shift and points[a - shift] < points[b - shift] for a, b in spans)
    if not inside:
        raise DataError(f"{where}: {here}: not a span of the text (0-{len(points) - 1 + shift}); mend the line, "
                        "or check that the .txt is the one annotated")  # fmt: skip
    spans = [[points[a - shift], points[b - shift]] for a, b in spans]
    if any(a[1] > b[0] for a, b in itertools.pairwise(sorted(spans))):
        report.warn("overlapping fragments", where, f"{here}: fragments overlap; their union is taken")
    agreed = agreement(reference, span_text(text, spans)) or agreement(reference, span_text(text, sorted(spans)))
    if agreed is None and agreement(reference, text[min(spans)[0] : max(b for _, b in spans)]) in ("same", "spaces"):
        agreed = "it has the gaps, too"
    spans = join_fragments(spans, text)
    if not span_text(text, spans).strip():
        report.counts["dropped"] += 1
        return report.warn("white space", where, f"{here}: only white space; left out")
    if agreed is None and args.mismatch != "keep":
        spans = mend(spans, reference, text, args.mismatch, where, here, report)
        if spans is None:
            return None
    elif agreed not in ("same", "spaces"):
        what = f"{here}: reference text differs ({agreed or 'wholly'}); kept as it is"
        report.warn("reference", where, what)
    entity = {"start": spans[0][0], "end": spans[-1][1], "type": type_, "text": span_text(text, spans)}
    if len(spans) > 1:
        entity["fragments"] = spans
    if reference is not None and reference != entity["text"]:
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


def brat_document(doc_id, txt, ann, args, report):
    """Read one .txt with its .ann into a document: {"doc_id", "text", "entities", "other"}."""
    text, had_bom = decode(txt, args.encoding)
    mentions, other = read_annotations(ann, args.encoding, report)
    name, *place = find_unit(mentions, text, had_bom)
    if name != "code points":
        report.warn("offset unit", ann, f"offsets count {name}; turned into code points")
    entities = {}
    for mention in mentions:
        entity = make_entity(mention, f"{ann}:{mention[0]}", text, place, args, report)
        if entity:
            key = entity["type"], *map(tuple, fragments(entity))
            report.counts["duplicates"] += key in entities
            entities.setdefault(key, entity)
    report.counts["read"] += len(mentions)
    ordered = sorted(entities.values(), key=lambda e: (e["start"], -e["end"], e["type"]))
    return {"doc_id": doc_id, "text": text, "entities": ordered, "other": other}


def read_brat(folder, names, args, report):
    """Yield the documents of a folder; `names` are the relative paths of its .txt and .ann files."""
    pairs = {}
    for name in names:
        base, suffix = os.path.splitext(name)
        if suffix.lower() in pairs.setdefault(base, {}):
            report.error("two files", os.path.join(folder, name), "the same name stands in small and capital letters")
        pairs[base][suffix.lower()] = os.path.join(folder, name)
    if not any(".ann" in pair for pair in pairs.values()):
        raise DataError(f"{folder}: no .ann file beside a .txt; for plain texts use --input_format text")
    for name, pair in sorted(pairs.items()):
        if ".txt" not in pair:
            report.counts["left out"] += 1
            report.error("no text", pair[".ann"], "no .txt of the same name beside it; left out")
        elif ".ann" not in pair:
            report.counts["left out"] += 1
            report.warn("no annotations", pair[".txt"], "no .ann beside it; left out (not an empty gold)")
        else:
            doc_id = name.replace(os.sep, "/")
            yield from guarded(report, brat_document, doc_id, pair[".txt"], pair[".ann"], args, report)


def guarded(report, read, *args):
    """Yield read(*args); a DataError names this one document and leaves it out, of the counts too."""
    before = report.counts.copy()
    try:
        yield read(*args)
    except DataError as error:
        report.counts.clear()
        report.counts.update(before + Counter({"left out": 1}))
        where, _, what = str(error).partition(": ")
        report.error("broken document", where, f"{what} (document left out)")
    except OSError as error:
        report.counts["left out"] += 1
        report.error("unreadable", error.filename, f"{error.strerror} (document left out)")


# ---------------------------------------------------------------------------- other formats


def read_text(folder, names, args, report):
    """Yield documents without entities, for prediction."""

    def document(name):
        return {"doc_id": os.path.splitext(name)[0].replace(os.sep, "/"), "entities": [],
                "text": decode(os.path.join(folder, name), args.encoding)[0]}  # fmt: skip

    for name in sorted(name for name in names if not name.lower().endswith(".ann")):
        yield from guarded(report, document, name)


def read_conll(folder, names, args, report):
    """Yield documents of IOB/CoNLL files; their `units` are the file's own, with its tokens and tags as IOB2."""
    for name in names:
        records = read_iob(os.path.join(folder, name))
        for doc_id, group in itertools.groupby(records, key=lambda record: record["doc_id"]):
            units = list(group)
            report.counts["read"] += sum(len(unit["entities"]) for unit in units)
            yield {"doc_id": doc_id, "text": " ".join(unit["text"] for unit in units), "units": units}


READERS = {"brat": read_brat, "conll": read_conll, "text": read_text}


def find_inputs(paths, input_format):
    """Return [(split, format, folder, names)]: what each path holds, in the order given."""
    found = []
    for path in paths:
        folder, name = os.path.split(path)
        if os.path.isdir(path):
            found += search_folder(path, input_format)
        elif not os.path.exists(path):
            raise DataError(f"{path}: no such file or folder; check --input")
        elif input_format in ("conll", "text") or (is_iob(path) and input_format == "auto"):
            found.append((stem(name), input_format.replace("auto", "conll"), folder, [name]))
        elif is_brat(name):
            names = [other for other in os.listdir(folder or ".") if stem(other) == stem(name) and is_brat(other)]
            found.append((stem(name), "brat", folder, names))
        else:
            raise DataError(f"{path}: not a file this script knows; say what it is with --input_format")
    return [item for i, item in enumerate(found) if item not in found[:i]]


def search_folder(folder, input_format):
    """What one folder holds: its documents make one split with all below; else each sub-folder and IOB file is one."""
    here = sorted(name for name in os.listdir(folder) if name[0] != "." and name != "__MACOSX")
    files = [name for name in here if os.path.isfile(os.path.join(folder, name))]
    iob = [name for name in files if is_iob(name) and input_format in ("auto", "conll")]
    iob = [name for name in iob if f"{name}.run.json" not in files]  # an output of ours is not part of the corpus
    mark = ".txt" if input_format == "text" else ".ann"
    if input_format == "conll" or not any(name.lower().endswith(mark) for name in files):
        inner = [search_folder(os.path.join(folder, name), input_format) for name in here if name not in files]
        found = [(stem(name), "conll", folder, [name]) for name in iob] + list(itertools.chain(*inner))
        if found or not any(map(is_brat, files)) or input_format == "conll":
            return found
    names = []
    for name in iob if input_format == "auto" else ():
        log(f"warning: {os.path.join(folder, name)}: an IOB file beside .ann files is left out; name it as --input")
    for root, below, inside in os.walk(folder):
        below[:] = [name for name in below if name[0] != "." and name != "__MACOSX"]
        names += [os.path.relpath(os.path.join(root, name), folder) for name in inside if is_brat(name)]
    return [(os.path.basename(os.path.abspath(folder)), input_format.replace("auto", "brat"), folder, names)]


def is_brat(name):
    """Whether a file name is one of a document; `._x.ann` and other hidden files are not."""
    return name.lower().endswith((".txt", ".ann")) and name[0] != "." and name != "__MACOSX"


def stem(name):
    """The file name without .gz and suffix."""
    return os.path.splitext(name.removesuffix(".gz"))[0]


# ---------------------------------------------------------------------------- sentences and records

# Abbreviations that broke mentions in real corpora; a full stop after them ends nothing.
ABBREVIATIONS = set(
    """
    dr dra drs sr sra mr mrs ms prof st vs cf e.g i.e eg ie al approx nos nr fig figs eq ca sp spp var subsp vol pp
    ref refs sec ch b.i.d t.i.d q.i.d q.d p.o i.v i.m s.c p.r.n y.o yr yrs wk wks mo hr hrs min max temp dept univ hosp
    inc ltd jan feb mar apr jun jul aug sep sept oct nov dec a.m p.m u.s u.k ph.d m.d h.o c.o pt pts dx hx tx rx resp
    av avda avd ctra crta cra gral km sta sto esc apto urb cdad col pso nº mª ac ee.uu ee uu p.ej ej aprox dcha izq tto
    им акад проф тыс млн млрд долл т.е т.к т.ч т см рис табл мин мг мл ст ул обл доп напр гл н.э
    """.split()  # noqa: SIM905
)
# These may end a sentence as well: they do where a capital follows that is not an initial.
MAYBE_LAST = {"г", "гг", "с", "др", "т.д", "т.п", "в", "вв", "etc", "no", "No"}
# A capital after one of these is no initial of a name: "hepatitis B. Patients".
LETTERED = {"vitamin", "hepatitis", "type", "group", "class", "stage", "grade", "factor", "vitamina", "tipo", "grupo"}
LETTERED |= {"clase", "fase", "витамин", "гепатит", "тип", "типа", "группа", "группы", "класс", "фактор"}
STOP = re.compile(
    r"""(?<![.!?…])(?P<stop>[.!?…]+["'»”’)\]]*)\s+|(?P<wide>[。！？]+[」』”]*)\s*|[\n\r\u2028\u2029\x85\x0b\x0c]\s*"""
)
NOT_SPACE = re.compile(r"\S")
LIST_NUMBER = re.compile(r"\s*[(\[]?(?:\d{1,3}|[A-Za-zА-Яа-я]|[IVXivx]{1,4})[.)\]]*\s*")
HEAD = re.compile(r"[-•*·–—]\s|\(?\d{1,3}[.)]\s|[^\W\d_][^.!?:\n]{0,40}:(?:\s|$)")


def breaks(text):
    """Return the character at which each sentence but the first starts. Linear in the text's length."""
    lines = [len(line.rstrip()) for line in text.split("\n")]
    ends = [line.rstrip()[-1:] not in ".!?:;" for line in text.split("\n") if len(line.rstrip()) >= 60]
    # Hard-wrapped text: half of the lines are long, and most of these stop in mid-sentence.
    wrapped = len(lines) >= 6 and 2 * len(ends) >= len(lines) and 2 * sum(ends) > len(ends)
    starts, last = [], 0
    for match in STOP.finditer(text):
        empty = match.end() == len(text) or not NOT_SPACE.search(text, last, match.start())
        if not empty and is_break(text, last, match, wrapped):
            last = match.end()
            starts.append(last)
    return starts


def is_break(text, last, match, wrapped):
    """Whether a sentence that began at `last` ends at a candidate of STOP."""
    gap, following = match.group(), text[match.end()]
    newlines = gap.count("\n") + gap.count("\u2029")
    if newlines > 1 or match["wide"]:
        return True
    if LIST_NUMBER.fullmatch(text, last, match.start()):
        return False
    new_line = newlines or not match["stop"]
    if new_line and (not wrapped or HEAD.match(text, match.end())):
        return True
    return bool(match["stop"]) and is_full_stop(text, last, match, following)


def is_full_stop(text, last, match, following):
    """Whether the . ! ? of a candidate ends a sentence, by what stands before and after it."""
    at = match.start()
    if following.islower() or following in ",;:)]}%/":
        return False
    low = max(last, at - BRACKET)
    for left, right in ("()", "[]"):
        inside = text.rfind(left, low, at) > text.rfind(right, low, at)
        if inside and text.find(right, match.end(), at + BRACKET) >= 0:
            return False
    if match["stop"][0] != "." or match["stop"].startswith(".."):
        return True
    word = re.split(r"[\s(\[/«\"]", text[max(last, at - 24) : at])[-1]
    if word in MAYBE_LAST:
        return following.isupper() and text[match.end() + 1 : match.end() + 2] != "."
    if re.fullmatch(r"[^\W\d_](?:\.-?[^\W\d_])*", word) and word.isupper():  # initials: J. Smith, Н.Н. Бурденко
        before = text[max(last, at - 40) : at - len(word)].split()
        return not following.isupper() or (bool(before) and before[-1].lower() in LETTERED)
    return word.lower() not in ABBREVIATIONS


def units(document, unit, report):
    """Yield the records of a document: units that tile its text, none cutting an entity's hull."""
    if "units" in document:
        yield from iob_units(document, unit)
        return
    text, entities = document["text"], document["entities"]
    starts = breaks(text) if unit == "sentence" else []
    begins = [entity["start"] for entity in entities]
    reach = [0, *itertools.accumulate((entity["end"] for entity in entities), max)]
    free = [start for start in starts if reach[bisect_left(begins, start)] <= start]
    report.counts["joins"] += len(starts) - len(free)
    edges = [0, *free, len(text)]
    first = 0
    for number, (start, end) in enumerate(itertools.pairwise(edges)):
        last = bisect_left(begins, end)
        record = {"id": document["doc_id"] if unit == "document" else f"{document['doc_id']}:{number}",
                  "doc_id": document["doc_id"], "start": start, "text": text[start:end],
                  "entities": [shifted(entity, start) for entity in entities[first:last]]}  # fmt: skip
        if unit == "document" and document.get("other"):
            record["other"] = document["other"]
        if "source" in document:
            record["source"] = document["source"]
        yield record
        first = last


def shifted(entity, by):
    """The entity with offsets counted from character `by` on."""
    moved = entity | {"start": entity["start"] - by, "end": entity["end"] - by}
    if "fragments" in entity:
        moved["fragments"] = [[start - by, end - by] for start, end in entity["fragments"]]
    return moved


def iob_units(document, unit):
    """Yield the records of an IOB document: its units as the file has them, or all joined by one space."""
    whole = {"id": document["doc_id"], "doc_id": document["doc_id"], "start": 0, "text": document["text"]}
    whole |= {"entities": [], "tokens": [], "offsets": [], "pretokenized": True}
    by = 0
    for number, record in enumerate(document["units"]):
        if unit == "sentence":
            yield record | {"id": f"{document['doc_id']}:{number}", "doc_id": document["doc_id"], "start": by}
        whole["entities"] += [shifted(entity, -by) for entity in record["entities"]]
        whole["offsets"] += [[start + by, end + by] for start, end in record["offsets"]]
        by += len(record["text"]) + 1
    if unit == "document":
        yield whole


# ---------------------------------------------------------------------------- one split


def read_documents(inputs, args, report):
    """Yield the documents of one split's inputs; the same document again is counted and left out."""
    seen = {}
    for _, kind, folder, names in inputs:
        source = os.path.join(folder, names[0]) if kind == "conll" else os.path.normpath(folder)
        for document in READERS[kind](folder, names, args, report):
            doc_id = os.fsencode(document["doc_id"]).decode("utf-8", "replace")  # a file name may be no UTF-8
            text = hash(json.dumps([document["text"], document.get("entities")]))
            if kind == "conll" and len(inputs) > 1:  # their ids are running numbers
                doc_id = f"{source}/{doc_id}"
            texts = seen.setdefault(doc_id, [])
            if text in texts and kind != "conll":
                report.counts["duplicate documents"] += 1
                report.counts["duplicates"] += sum(len(unit["entities"]) for unit in document.get("units", [document]))
                report.warn("duplicate document", f"{folder}/{doc_id}", "same id, text and mentions again; kept once")
                continue
            texts.append(text)
            name = doc_id if len(texts) == 1 else f"{doc_id}~{len(texts)}"
            if name != doc_id:
                report.warn(
                    "renamed document", f"{folder}/{doc_id}", f"same id, another text or other mentions: now {name}"
                )
            yield document | {"doc_id": name} | ({"source": source} if len(inputs) > 1 else {})


def convert(inputs, args, report):
    """Yield the records of one split with their flat view; count everything on the way."""
    for document in read_documents(inputs, args, report):
        if not document["text"].strip():
            report.warn("empty text", document["doc_id"], "no text; left out")
            continue
        report.counts["documents"] += 1
        for record in units(document, args.unit, report):
            view, lost, cuts = flat_view(record, args.overlap.replace("layers", "longest"), args.discontinuous)
            count_flat(view, lost, report)
            report.counts.update(records=1, entities=len(view["entities"]), tokens=len(view["tokens"]), cuts=cuts)
            yield view


def count_flat(record, lost, report):
    """Count how the flat view holds each entity: exact, trimmed, changed (a stand-in), or lost and why."""
    why = {id(entity): reason for entity, reason in lost}
    for entity in record["entities"]:
        state = why.get(id(entity)) or ("changed" if "fragments" in entity else "exact")
        if state == "exact" and entity["text"] != entity["text"].strip():
            state = "trimmed"
        report.flat[state, entity["type"]] += 1


def layers(records):
    """Yield the records of layer 1, of layer 2, ...: each the longest entities that those before it don't hold."""
    rest, first = [record["entities"] for record in records], True
    while first or any(rest):
        chosen = [flat_entities(entities, record["text"]) for record, entities in zip(records, rest, strict=True)]
        yield [record | {"tags": flat_tags(kept, record["offsets"])}
               for record, (kept, _) in zip(records, chosen, strict=True)]  # fmt: skip
        rest, first = [[entity for entity, why in lost if why == "overlap"] for _, lost in chosen], False


def input_digests(split, inputs, args):
    """Return {file or folder: SHA-256 of what is read of it}; refuse to write over an input."""
    digests, outputs = {}, {os.path.realpath(os.path.join(args.output_dir, f"{split}.{suffix}")) for suffix in args.to}
    for _, _, folder, names in inputs:
        files = [path for path in (os.path.join(folder, name) for name in sorted(names)) if os.path.isfile(path)]
        digests[files[0] if len(files) == 1 else folder] = sha256(*files)
        if outputs & set(map(os.path.realpath, files)):
            raise DataError(f"{files[0]}: its own output would replace it; choose another --output_dir")
    return digests


def write_split(split, inputs, args, report, started):
    """Convert one split into its files; return their paths."""
    before, paths = report.counts.copy(), []
    records = convert(inputs, args, report)
    first = next(records, None)
    if first is None:
        if not any(level == "error" for level, _ in report.kinds):
            where = os.path.join(inputs[0][2], *inputs[0][3][:1])
            report.error("nothing", where, "holds no token or document that can be read; check --input")
        return []
    digests = input_digests(split, inputs, args)
    records = itertools.chain([first], records)
    base = os.path.join(args.output_dir, split)
    if "iob" in args.to and args.overlap == "layers":
        records = list(records)
        for number, layer in enumerate(layers(records), 1):
            paths.append(f"{base}.layer{number}.iob")
            write_iob(paths[-1], layer)
    elif "iob" in args.to:
        paths.append(f"{base}.iob")
        records = write_iob_through(paths[-1], records)
    if "jsonl" in args.to:
        paths.append(f"{base}.jsonl")
        write_jsonl(paths[-1], records)
    else:
        for _ in records:
            pass
    for path in paths:
        write_sidecar(path, args, digests, started, counts=report.counts - before)
    return paths


# ---------------------------------------------------------------------------- command line


def summary(report):
    """The last line: what was read, written and left out."""
    counts, states = report.counts, Counter()
    for (state, _), n in report.flat.items():
        states[state] += n
    whole = states.pop("exact", 0)
    rest = ", ".join(f"{n:,} {state}" for state, n in states.most_common())
    return (
        f"{counts['documents']:,} documents ({counts['left out']:,} left out), {counts['records']:,} records, "
        f"{counts['read']:,} mentions read: "
        f"{counts['entities']:,} in entities ({counts['dropped']:,} dropped, {counts['duplicates']:,} duplicates, "
        f"{counts['repaired']:,} repaired); {whole:,} exact in tags{' (' + rest + ')' if rest else ''}; "
        f"{counts['cuts']:,} tokens cut and {counts['joins']:,} sentences joined at mention edges"
    )


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    data = parser.add_argument_group("data")
    data.add_argument("--input", nargs="+", required=True, metavar="PATH", help="files, folders, folders of splits")
    data.add_argument("--output_dir", required=True, metavar="DIR", help="where SPLIT.jsonl and SPLIT.iob go")
    data.add_argument("--input_format", choices=["auto", *READERS], default="auto", help="default: %(default)s")
    data.add_argument("--to", nargs="+", choices=["jsonl", "iob"], default=["jsonl", "iob"], help="default: both")
    data.add_argument("--encoding", metavar="NAME", help="of .txt and .ann (default: UTF-8 or UTF-16)")
    policy = parser.add_argument_group("policies")
    policy.add_argument("--unit", choices=["sentence", "document"], default="sentence", help="default: %(default)s")
    overlaps = ["longest", "shortest", "first", "last", "layers"]
    policy.add_argument("--overlap", choices=overlaps, default="longest",
                        help="overlapping mentions that go into tags; layers: all (%(default)s)")  # fmt: skip
    stand_ins = ["drop", "hull", "first", "longest", "split"]
    policy.add_argument("--discontinuous", choices=stand_ins, default="drop",
                        help="what stands in the tags for a mention in fragments (default: %(default)s)")  # fmt: skip
    policy.add_argument("--mismatch", choices=["repair", "drop", "keep", "error"], default="repair",
                        help="where reference text and offsets disagree (default: %(default)s)")  # fmt: skip
    report = parser.add_argument_group("report")
    report.add_argument("--report", metavar="FILE", help="write every count and warning as JSON")
    report.add_argument("--strict", action="store_true", help="exit 1 after any warning")
    args = parser.parse_args(argv)
    try:
        "".encode(args.encoding or "utf-8")
    except LookupError:
        parser.error(f"--encoding {args.encoding}: Python knows no such text encoding")
    if args.overlap == "layers" and args.discontinuous != "drop":
        parser.error("--overlap layers holds continuous mentions: use it with --discontinuous drop")
    return args


def main(argv=None):
    args, started, report = parse_args(argv), time.time(), Report()
    splits = {}
    for found in find_inputs(args.input, args.input_format):
        splits.setdefault(found[0], []).append(found)
    if not splits:
        raise DataError(f"{args.input[0]}: no .txt/.ann and no IOB file in it; check --input and --input_format")
    for split, inputs in splits.items():
        log(f"{split}: reading {', '.join(f'{kind} from {folder or chr(46)}' for _, kind, folder, _ in inputs)}")
        try:
            for path in write_split(split, inputs, args, report, started):
                log(f"  -> {path}")
        except DataError as error:  # the other splits go on
            where, _, what = str(error).partition(": ")
            report.error("split", where, what)
    if args.report:
        tags = [{"state": state, "type": type_, "n": n} for (state, type_), n in sorted(report.flat.items())]
        with writing(args.report) as out:
            whole = {"counts": report.counts, "tags": tags, "messages": report.messages}
            out.write(json.dumps(whole, ensure_ascii=False, indent=2) + "\n")
    log(summary(report))
    return int(any(level == "error" or args.strict for level, _ in report.kinds))


if __name__ == "__main__":
    sys.exit(run(main))

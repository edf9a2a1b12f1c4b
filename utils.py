"""What the data is about: records, files, tokens, tags, prompts, answers. Standard library only; goes with any script.

A record is a dict, one per line of a JSONL file (README.md, "The record", has every field):

    {"id": "case_07:0", "doc_id": "case_07", "start": 0, "text": "Fever and joint pain.",
     "entities": [{"start": 0, "end": 5, "type": "SIGN", "text": "Fever"}],
     "tokens": ["Fever", ...], "offsets": [[0, 5], ...], "tags": ["B-SIGN", ...]}

Offsets are Unicode code points, end exclusive, everywhere. Readers stream, and cope with CRLF, a byte order mark,
trailing blanks and a missing last newline; what they can't read is a DataError that names file and line.
"""

import argparse
import gzip
import hashlib
import io
import json
import os
import re
import shutil
import sys
import time
import unicodedata
import zlib
from bisect import bisect_left
from collections import Counter
from contextlib import contextmanager, nullcontext, suppress
from difflib import SequenceMatcher
from functools import cache, lru_cache
from itertools import chain, pairwise
from pathlib import Path

VERSION = "1.0"  # of the record format and of the metrics; stands in every sidecar and in every signature

# ---------------------------------------------------------------------------- errors and run


class DataError(ValueError):
    """Bad input. The message is `FILE:LINE: what is wrong; what to do` and never holds text of a document."""


def log(*parts):
    """Print one fact to stderr."""
    print(*parts, file=sys.stderr, flush=True)


def run(main):
    """Call main() and return the exit code: 0 done, 1 bad data or I/O (one line, no traceback), 130 interrupted."""
    for stream in (sys.stdout, sys.stderr):  # a Windows console that lacks a letter must not end the run
        stream.reconfigure(errors="backslashreplace")
    try:
        code = main() or 0
        sys.stdout.flush()
        return code
    except DataError as error:
        log(f"error: {error}")
    except BrokenPipeError:  # `| head`: nobody reads on, which is no error to speak of
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        log(f"error: {error.filename or 'I/O'}: {error.strerror or error}")
    except KeyboardInterrupt:
        log("error: interrupted")
        return 130
    return 1


# ---------------------------------------------------------------------------- records and files


def read_lines(path, encoding=None):
    """Yield (line number from 1, line without its line end) of a text file, plain or .gz, one line at a time.

    Lines end at LF alone (a CR before it belongs to the line end): U+2028, U+0085 and form feeds are text.
    """
    number = 0
    try:
        with gzip.open(path, "rb") if str(path).endswith(".gz") else open(path, "rb") as file:
            for number, raw in enumerate(file, 1):
                if number == 1 and raw.startswith(b"\xef\xbb\xbf"):
                    raw = raw[3:]
                if b"\0" in raw:
                    raise DataError(f"{path}:{number}: NUL byte: this is a binary or UTF-16 file; convert it to UTF-8")
                yield number, raw.decode(encoding or "utf-8").rstrip("\n").removesuffix("\r")
    except UnicodeError as error:
        at = getattr(error, "start", 0)
        raise DataError(f"{path}:{number}: not {encoding or 'UTF-8'} at byte {at} of the line; "
                        "convert the file") from None  # fmt: skip
    except (gzip.BadGzipFile, EOFError, zlib.error):
        raise DataError(f"{path}:{number + 1}: broken or cut gzip data; unpack it again from its source") from None


@contextmanager
def writing(path, binary=False):
    """Open `path` for writing by way of `path`.part, renamed at the end: a file that exists is complete.

    After an exception neither file is left behind. A `path` that ends in .gz is compressed (no time stamp: same bytes).
    """
    path, part = str(path), f"{path}.part"
    if os.path.exists(path) and not os.path.isfile(path):  # /dev/stdout: nothing to rename
        part = path
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    try:
        with (
            open(part, "wb") as raw,
            gzip.GzipFile("", "wb", 6, raw, mtime=0) if path.endswith(".gz") else nullcontext(raw) as packed,
            nullcontext(packed) if binary else io.TextIOWrapper(packed, "utf-8", newline="\n") as out,
        ):
            yield out
        if part != path:
            os.replace(part, path)
    except BaseException as error:
        if part != path and os.path.exists(part):
            os.unlink(part)
        if isinstance(error, OSError):
            error.filename = error.filename or path
        raise


def lock(file, path):
    """Let no second run write to a file; the lock ends with the process. Where there is no flock, there is none."""
    with suppress(ImportError):
        import fcntl

        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise DataError(
                f"{path}: another run is writing to it; wait for it, or choose another --output_file"
            ) from None


LOOPBACK = ("localhost", "127.0.0.1", "::1")


def check_host(host):
    """Say where texts go; refuse to send them off this machine unless NER_SEND_TEXT=1 says that they may leave."""
    if host not in LOOPBACK and os.environ.get("NER_SEND_TEXT") != "1":
        raise DataError(f"{host}: not this machine, and texts would go there; if they may leave, set NER_SEND_TEXT=1")
    log(f"texts are sent to {host}")


def key_value(text):
    """Parse key=value, a type of argparse; the value as JSON where it is (numbers, true, false), else as it stands."""
    key, equals, value = text.partition("=")
    if not equals or not key.isidentifier():
        raise argparse.ArgumentTypeError(f"{text!r} is not key=value")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


def prediction_path(args, test_file):
    """Where a trainer's predictions for a test file go."""
    stem = os.path.splitext(os.path.basename(test_file).removesuffix(".gz"))[0]
    return args.output_file or os.path.join(args.output_dir, f"{stem}.pred.jsonl")


def check_predictions(args, inputs, parser):
    """Refuse, as a usage error, predictions that would replace a file that is read, or each other."""
    outputs = [os.path.realpath(prediction_path(args, path)) for path in args.test_file]
    inputs = {os.path.realpath(path) for path in (*inputs, *args.test_file) if path}
    if len({*outputs, *inputs}) < len(outputs) + len(inputs):
        parser.error("an output would replace an input, or the output of a test file of the same name; rename one")


def last_checkpoint(folder, stamp):
    """Return the newest whole checkpoint-N of a killed training with the same stamp, or None.

    Half-written ones, and all of another stamp, are removed; the folder is there afterwards, with this stamp.
    """
    folder, whole = Path(folder), {}
    mark = folder / "stamp"
    if folder.is_dir() and (not mark.exists() or mark.read_text() != stamp):
        if any(folder.glob("checkpoint-*")):
            log(f"{folder}: checkpoints of another command; removed")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    mark.write_text(stamp)
    for path in folder.glob("checkpoint-*"):
        try:
            json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))  # written last
            whole[int(path.name.partition("-")[2])] = path
        except (OSError, ValueError):
            shutil.rmtree(path)
    if whole:
        log(f"going on from {whole[max(whole)]}")
    return str(whole[max(whole)]) if whole else None


def model_state(folder):
    """What a model is, to tell two apart: the names, sizes and times of its files."""
    files = sorted(Path(folder).glob("*")) if folder and os.path.isdir(folder) else []
    state = [f"{p.name} {p.stat().st_size} {p.stat().st_mtime_ns}" for p in files if p.suffix == ".safetensors"]
    return [str(folder), *state]


def read_sidecar(path):
    """What a run.json says; nothing where there is none, or another's."""
    with suppress(OSError, ValueError):
        stored = json.loads(Path(path).read_text(encoding="utf-8"))
        return stored if isinstance(stored, dict) else {}
    return {}


def clear_model(folder):
    """Remove the model that an earlier training left in a folder: parts of it would be taken for the next one's."""
    if (Path(folder) / "run.json").exists():  # it goes last: killed here, the next run cleans, too
        for pattern in ("adapter_*", "config.json", "generation_config.json", "model*.safetensors*", "tokenizer*",
                        "special_tokens_map.json", "vocab*", "merges.txt", "chat_template*", "run.json"):  # fmt: skip
            for path in Path(folder).glob(pattern):
                path.unlink()


def warn_unseen(path, records, known, say):
    """Pass records on; at the end, warn of gold types that a model does not know, with their count."""
    unseen = Counter()
    for record in records:
        unseen.update(entity["type"] for entity in record["entities"] if entity["type"] not in known)
        yield record
    if unseen:
        names = ", ".join(sorted(unseen))
        say(f"warning: {path}: {unseen.total():,} entities of types that the model does not predict: {names}")


def is_iob(path):
    """Whether a file name says IOB (.iob .conll .bio .iob2 .tsv, also .gz). Anything else is read as JSONL."""
    return str(path).removesuffix(".gz").lower().endswith((".iob", ".iob2", ".conll", ".bio", ".tsv"))


def read_records(path, limit=None):
    """Yield the records of a JSONL or IOB file (by its name), checked; reading none at all is an error.

    Memory: one record, and the ids seen (to refuse an id that stands twice).
    """
    count = 0
    for record in read_iob(path) if is_iob(path) else read_jsonl(path):
        yield record
        count += 1
        if count == limit:
            return
    if not count:
        raise DataError(f"{path}: holds no record; is it the right file?")


def read_jsonl(path):
    """Yield the records of a JSONL file. `entities` and each entity's `text` are filled in where absent."""
    seen = set()
    for number, line in read_lines(path):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            if "\\u" in line:  # only an escape can make half of a surrogate pair, which no file can hold
                json.dumps(record, ensure_ascii=False).encode("utf-8")
            check_record(record)
            if record["id"] in seen:
                raise ValueError(f"id {record['id']!r} stands twice; give each record its own id")
        except json.JSONDecodeError as error:
            raise DataError(f"{path}:{number}: not JSON: {error.msg} at column {error.colno}; "
                            "one JSON object a line is expected") from None  # fmt: skip
        except (TypeError, RecursionError):
            raise DataError(f"{path}:{number}: a field is not of its kind; entities, fragments, tokens, offsets and "
                            "tags are lists, spans are [start, end]") from None  # fmt: skip
        except UnicodeEncodeError:
            raise DataError(f"{path}:{number}: half of a surrogate pair; write such characters whole") from None
        except ValueError as error:
            raise DataError(f"{path}:{number}: {error}") from None
        seen.add(record["id"])
        yield record


def check_record(record):
    """Complete a record in place; raise ValueError where a field is not what it must be."""
    if not isinstance(record, dict) or not isinstance(record.get("text"), str):
        raise ValueError('no "text"; a record needs at least "id" and "text"')
    if not isinstance(record.get("id"), str) or not record["id"]:
        raise ValueError('"id" must be a non-empty string')
    record.setdefault("doc_id", record["id"])
    record.setdefault("start", 0)
    if not isinstance(record["doc_id"], str) or not isinstance(record.get("entities", []), list):
        raise ValueError('"doc_id" must be a string and "entities" a list')
    if type(record["start"]) is not int or record["start"] < 0:
        raise ValueError('"start" must be a whole number, the character at which the text begins in its document')
    other = record.get("other", [])
    if not isinstance(other, list) or any(not isinstance(line, str) or "\n" in line for line in other):
        raise ValueError('"other" must hold lines of a BRAT file')
    if {"tokens", "offsets", "tags", "pretokenized"} & record.keys():
        check_tokens(record)
    if "entities" not in record:
        spans = tag_spans(record.get("tags") or ())
        record["entities"] = spans_to_entities(spans, record.get("offsets"), record["text"])
    for entity in record["entities"]:
        check_entity(entity, record["text"])
    if {"shots", "passages", "answer", "status", "dropped"} & record.keys():
        check_answer(record)


# of an LLM's answer, the worst last
STATUSES = ("ok", "salvaged", "truncated", "empty", "unparsable", "refused", "failed")
REASONS = ("not_in_text", "leaked", "unknown_type", "surplus")  # why a mention of it could not be placed


def check_answer(record):
    """Raise ValueError where what an LLM is shown, what it said, or what became of it, is not as it must be."""
    shots, passages = record.get("shots", []), record.get("passages", [])
    if not isinstance(shots, list) or not isinstance(passages, list):
        raise ValueError('"shots" and "passages" must be lists, or absent')
    try:
        for shot in shots:
            whole = {"id": "shot"} | shot
            check_record(whole)
            shot["entities"] = whole["entities"]
    except (TypeError, ValueError) as error:
        raise ValueError(f'"shots" must hold records: {error}') from None
    if not all(isinstance(passage, dict) and isinstance(passage.get("text"), str) for passage in passages):
        raise ValueError('"passages" must hold objects with a "text"')
    answer, dropped = record.get("answer") or "", record.get("dropped", [])
    if record.get("status", "ok") not in STATUSES:
        raise ValueError(f'"status" must be one of {", ".join(STATUSES)}')
    if not isinstance(answer, str) and not (isinstance(answer, list) and all(isinstance(each, str) for each in answer)):
        raise ValueError('"answer" must be a string, or a list of them')
    for item in dropped if isinstance(dropped, list) else [None]:
        if not isinstance(item, dict) or not isinstance(item.get("type"), str) or item.get("reason") not in REASONS:
            raise ValueError(
                f'"dropped" must hold {{"text", "type", "reason"}}, the reason one of {", ".join(REASONS)}'
            )


def check_entity(entity, text):
    """Complete an entity in place (`text`); raise ValueError where it does not fit `text`."""
    if not isinstance(entity, dict) or not {"start", "end", "type"} <= entity.keys():
        raise ValueError('an entity needs "start", "end" and "type"')
    start, end, type_ = entity["start"], entity["end"], entity["type"]
    if type(start) is not int or type(end) is not int:
        raise ValueError("an entity's offsets must be whole numbers")
    if not 0 <= start < end <= len(text):
        raise ValueError(f"entity {start}-{end}: not a span of the text ({len(text)} characters)")
    if not isinstance(type_, str) or not type_:
        raise ValueError(f"entity {start}-{end}: the type must be a non-empty string")
    plain = len(entity) == 3 + ("text" in entity)
    stands = text[start:end] if plain else check_more(entity, text)
    if entity.setdefault("text", stands) != stands:
        raise ValueError(f'entity {start}-{end}: its "text" is not what stands there; count offsets in Unicode '
                         "characters")  # fmt: skip


def check_more(entity, text):
    """Return what stands at an entity; raise ValueError where its fragments, score, id or reference are wrong."""
    if not entity.get("fragments", True):
        del entity["fragments"]
    spans, score, where = fragments(entity), entity.get("score", 0), f"entity {entity['start']}-{entity['end']}"
    if not isinstance(spans, list) or not all(isinstance(span, list) and len(span) == 2 for span in spans):
        raise TypeError
    if not all(type(edge) is int for start, end in spans for edge in (start, end)):
        raise ValueError("an entity's offsets must be whole numbers")
    hull = spans[0][0] == entity["start"] and spans[-1][1] == entity["end"]
    if not hull or any(start >= end for start, end in spans):
        raise ValueError(f"{where}: not the hull of its fragments")
    if any(a[1] > b[0] for a, b in pairwise(spans)):
        raise ValueError(f"{where}: fragments overlap or are not in text order")
    if not isinstance(score, (int, float)) or not 0 <= score <= 1:
        raise ValueError(f"{where}: the score must be a number from 0 to 1")
    if not isinstance(entity.get("id", ""), str) or not isinstance(entity.get("reference", ""), str):
        raise ValueError(f"{where}: the id and the reference must be strings")
    return span_text(text, spans)


def check_tokens(record):
    """Raise ValueError where tokens, offsets and tags do not agree with each other and with the text."""
    tokens, offsets, tags = record.get("tokens"), record.get("offsets"), record.get("tags")
    if not isinstance(tokens, list) or not isinstance(offsets, list) or len(tokens) != len(offsets):
        raise ValueError('"tokens" and "offsets" must be lists of one length; leave both out to have them made')
    text, last = record["text"], 0
    try:
        same = [text[start:end] for start, end in offsets] == tokens
    except ValueError:  # not pairs
        raise TypeError from None
    if not same or "" in tokens or min(chain.from_iterable(offsets), default=0) < 0:
        raise ValueError('"tokens" are not what stands in "text" at "offsets"')
    for start, end in (*offsets, (len(text), None)):
        if start != last and not text[last:start].isspace():  # empty where this token begins before the last one ends
            raise ValueError(f'"tokens" are out of order or do not cover the text, at character {last}; every '
                             "character but white space belongs to one")  # fmt: skip
        last = end
    if tags is not None and (len(tags) != len(tokens) or not all(isinstance(tag, str) for tag in set(tags))):
        raise ValueError('"tags" must hold one string for each token')
    for tag in set(tags or ()):
        split_tag(tag)


def write_jsonl(path, records):
    """Write records as JSONL; return how many."""
    count = 0
    with writing(path) as out:
        for record in records:
            out.write(to_json(record) + "\n")
            count += 1
    return count


def read_iob(path, encoding=None, warn=log, column=-1):
    """Yield the records of an IOB/CoNLL file: token first, tag last, 2 to 4 columns, blank line after each unit.

    Tags are those of `column`, kept as written; entities derive from them leniently. `-DOCSTART-` (or GENIA's
    `###MEDLINE:ID`) opens a document; without any, each unit is a document, "#0" the first. Raises DataError where a
    line has another number of columns.
    """
    names, doc_id, units, number, opened, total = set(), None, 0, 0, 0, 0
    for head, tokens, tags in _iob_units(path, encoding, column):
        if head is not None:
            doc_id, number = _document_id(head, names, warn), 0
        if tokens:
            name = f"#{units}" if doc_id is None else doc_id
            names.add(name)
            yield iob_record(f"{name}:{number}", name, tokens, tags)
            number += doc_id is not None
            units, total, opened = units + 1, total + len(tags), opened + ill_formed(tags)
    if opened:
        warn(f"{path}: {opened:,} of {total:,} tags continue nothing (IOB1, or ill-formed IOB2)")


def _iob_units(path, encoding, column):
    """Yield (None, tokens, tags) for each unit and (what follows -DOCSTART-, [], []) for each document start."""
    tokens, tags, columns = [], [], None
    for number, line in read_lines(path, encoding):
        cells = _cells(line)
        head = re.match(r"(?:-DOCSTART-|###MEDLINE:)(.*)", line) if line[:1] in "-#" else None
        if head or not line.strip():
            if tokens:
                yield None, tokens, tags
                tokens, tags = [], []
            if head:
                yield head[1], [], []
            continue
        columns = columns or (len(cells), number)
        if len(cells) < 1 - column:
            wanted = "token and tag" if column == -1 else "token, gold tag and predicted tag"
            raise DataError(f"{path}:{number}: too few columns where {wanted} are expected; put tabs between them")
        if len(cells) != columns[0]:
            raise DataError(f"{path}:{number}: {len(cells)} columns, but line {columns[1]} has {columns[0]}; "
                            "give every line the same columns")  # fmt: skip
        if not cells[0].strip():
            raise DataError(f"{path}:{number}: empty token; put the token in the first column")
        try:
            split_tag(cells[column])
        except ValueError as error:
            raise DataError(f"{path}:{number}: {error}") from None
        tokens.append(cells[0])
        tags.append(cells[column])
    if tokens:
        yield None, tokens, tags


def _cells(line):
    """The columns of a line: tab-separated where it holds a tab, else by spaces (other white space may be a token)."""
    cells = [cell.strip(" ") for cell in line.split("\t")] if "\t" in line else re.split(" +", line.strip(" "))
    while len(cells) > 2 and not cells[-1]:
        cells.pop()
    return cells


def _document_id(rest, seen, warn):
    """The id after -DOCSTART-, without parentheses and tag columns; where there is none the running number, as "#7"."""
    words = [word.strip("()") for word in rest.split() if word not in ("O", "-X-", "-DOCSTART-")]
    doc_id = name = " ".join(words) or f"#{len(seen)}"
    copies = 1
    while name in seen:
        copies += 1
        name = f"{doc_id}~{copies}"
    if copies > 1:
        warn(f"warning: document id {doc_id!r} stands again; read as {name!r}")
    seen.add(name)
    return name


def is_named(doc_id):
    """Whether a document has a name; "#7" is the 8th of an IOB file that names none, and another one in each file."""
    return not re.fullmatch(r"#\d+", doc_id)


def iob_record(record_id, doc_id, tokens, tags):
    """A record from tokens and tags alone: its text is the tokens joined by one space."""
    offsets, position = [], 0
    for token in tokens:
        offsets.append([position, position + len(token)])
        position += len(token) + 1
    text = " ".join(tokens)
    record = {"id": record_id, "doc_id": doc_id, "start": 0, "text": text}
    record["entities"] = spans_to_entities(tag_spans(tags), offsets, text)
    return record | {"tokens": tokens, "offsets": offsets, "tags": tags, "pretokenized": True}


def write_iob(path, records):
    """Write the flat view of records as `token<TAB>tag`, a blank line after each unit; return how many."""
    document, count = None, 0
    with writing(path) as out:
        for record in records:
            if record["doc_id"] != document:
                out.write("-DOCSTART-\tO\n\n")
                document = record["doc_id"]
            flat = record if "tags" in record else flat_view(record)[0]
            out.write(iob_lines(flat, flat["tags"]))
            count += 1
    return count


# One encoder for all lines, where json.dumps makes one for each; what came from lines of JSON holds no circle.
to_json = json.JSONEncoder(ensure_ascii=False, check_circular=False).encode


def iob_lines(record, tags):
    """The lines of one unit in an IOB file, a blank one after them; none where it has no token."""
    text = "".join([f"{token}\t{tag}\n" for token, tag in zip(record["tokens"], tags, strict=True)])
    if len(text.split()) != 2 * len(tags) or "\0" in text:
        raise DataError(f"{record['id']}: a token or type holds white space or NUL, which IOB can't; "
                        "rename the type (--map_types), or write JSONL alone")  # fmt: skip
    return text + "\n" * bool(tags)


def read_type_map(path):
    """Return {old type: new type}: JSON, TSV, or UMLS SemGroups (TUI and name to name; PATH:group: to the group).

    A new type that is empty (null) stands for: left out.
    """
    to_group, types = str(path).endswith(":group"), {}
    path = str(path).removesuffix(":group")
    lines = [(number, line) for number, line in read_lines(path) if line.strip()]
    if lines and lines[0][1].lstrip().startswith("{"):
        try:
            types = json.loads("\n".join(line for _, line in lines))
        except (ValueError, RecursionError):
            raise DataError(f"{path}: not JSON; one object is expected, old type to new type") from None
        if not all(new is None or (isinstance(new, str) and new.isprintable()) for new in types.values()):
            raise DataError(f"{path}: the new types must be printable strings, or null")
        return types
    for number, line in lines:
        cells = [cell.strip() for cell in line.split("|" if "|" in line else "\t")]
        if len(cells) != (4 if "|" in line else 2):
            raise DataError(f"{path}:{number}: not `old<TAB>new` nor `GROUP|group|TUI|type`")
        old = cells[2:] if len(cells) == 4 else cells[:1]
        new = cells[0] if to_group else cells[-1].replace(" ", "_") if len(cells) == 4 else cells[-1]
        types |= dict.fromkeys([*old, *(name.replace(" ", "_") for name in old)], new)
    return types


def write_sidecar(output, args, inputs, started, packages=(), **facts):
    """Write how `output` was made: to output.run.json, or to run.json in it where it is a folder.

    `args` is the parsed command line (keys never stand on it); `inputs` are paths, or {name: digest}; `started` is
    time.time() at the start.
    """
    info = {
        "script": os.path.basename(sys.argv[0]),
        "format": VERSION,
        "arguments": vars(args),
        "versions": {"python": sys.version.split()[0]} | {name: _version(name) for name in packages},
        "inputs": inputs if isinstance(inputs, dict) else {str(path): sha256(path) for path in inputs},
        "seconds": round(time.time() - started, 3),
    }
    path = os.path.join(output, "run.json") if os.path.isdir(output) else f"{output}.run.json"
    with writing(path) as out:
        text = json.dumps(info | facts, ensure_ascii=False, indent=2, default=str)
        out.write(text.encode("utf-8", "backslashreplace").decode("utf-8") + "\n")  # a file's name may be no UTF-8


def _version(package):
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def sha256(*paths):
    """Hex SHA-256 of a file's bytes; of several files, over their names and digests in this order."""
    digest = hashlib.sha256()
    if len(paths) != 1:
        for path in paths:
            digest.update(f"{os.path.basename(path)} {sha256(path)}\n".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()
    with open(paths[0], "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


# ---------------------------------------------------------------------------- tokens and tags


ASCII_TOKEN = re.compile(r"[a-zA-Z]+|[0-9]+|[^\sa-zA-Z0-9]")  # what _token_pattern finds in ASCII, and quicker


@cache
def _token_pattern():
    """A run of letters (with the marks on them), a run of digits, or one symbol (with its marks).

    The finest simple rule, and language-neutral: it cuts 0.003-0.53 % of the mentions of eight corpora, white space
    30-65 %. `\\w` does not match combining marks, so their ranges are collected from the Unicode database (10 ms).
    """
    planes = (*range(0x300, 0x1F000), *range(0xE0100, 0xE01F0))  # no marks elsewhere
    marks, ranges = [i for i in planes if unicodedata.category(chr(i))[0] == "M"], []
    for mark in [*marks, 0xAD, 0x200B, 0x200C, 0x200D]:  # and soft hyphen, zero-width space and joiners
        if ranges and ranges[-1][1] == mark - 1:
            ranges[-1][1] = mark
        else:
            ranges.append([mark, mark])
    mark = "".join(f"{chr(a)}-{chr(b)}" for a, b in ranges)
    far = "\x80-\U0010ffff"  # ASCII with nothing of these behind it needs no look at the marks: twice the speed
    ascii_ = rf"[a-zA-Z]+(?![a-zA-Z{far}])|[0-9]+(?![0-9{far}])|[!-/:-@\[-`{{-~](?![{far}])"
    return re.compile(rf"{ascii_}|[^\W\d_]+(?:[{mark}]+[^\W\d_]*)*|\d+|\S[{mark}]*")


def tokenize(text, cuts=()):
    """Return the [start, end] of each token; tokens tile the non-space text. `cuts` are edges that split a token.

    Example: "IL-2 (5 mg)" -> IL | - | 2 | ( | 5 | mg | )
    """
    pattern = ASCII_TOKEN if text.isascii() else _token_pattern()
    return cut_tokens([list(match.span()) for match in pattern.finditer(text)], cuts)


def cut_tokens(offsets, cuts):
    """The offsets with each token split at the cuts inside it."""
    offsets = offsets.copy() if cuts else offsets
    for cut in sorted(set(cuts), reverse=True):
        i = bisect_left(offsets, [cut]) - 1
        if i >= 0 and cut < offsets[i][1]:
            offsets[i : i + 1] = [[offsets[i][0], cut], [cut, offsets[i][1]]]
    return offsets


def fragments(entity):
    """The [start, end] pairs of an entity in text order; one pair where it is continuous."""
    return entity.get("fragments") or [[entity["start"], entity["end"]]]


def span_text(text, spans):
    """The slices of `text`, joined by one space, as BRAT does."""
    return " ".join(text[start:end] for start, end in spans)


@cache
def split_tag(tag):
    """Return (prefix, type): "B-X-Y" -> ("B", "X-Y"), bare "B" -> ("B", "_"), "O" -> ("O", None); else ValueError."""
    if tag == "O":
        return "O", None
    if not tag:
        raise ValueError("empty tag; every token needs one, O where there is no entity")
    prefix, hyphen, type_ = tag.partition("-")
    if prefix not in ("B", "I", "E", "S", "L", "U") or (hyphen and not type_):
        raise ValueError("unknown tag; the last column is O, or B- I- (E- S- L- U-) and a type")
    return prefix, type_ or "_"


def tag_spans(tags, strict=False):
    """Return the (first token, last token + 1, type) of each entity of IOB1, IOB2, IOBES or BILOU tags.

    Lenient (conlleval, seqeval's default): a token that is not O always belongs to an entity; a new one begins after
    O, at B S U, after E L S U, or where the type changes. Strict: IOB2 alone, B-X (I-X)*, any other tag is no entity.
    Example: ["I-A", "I-A", "B-A"] -> lenient (0, 2, A) (2, 3, A); strict (2, 3, A)
    """
    opens, goes_on = ("B", "I") if strict else ("BIESLU", "IEL")
    spans, start, type_, closed = [], None, None, False
    for i, tag in enumerate(tags):
        prefix, new = split_tag(tag)
        if start is not None and (closed or prefix not in goes_on or new != type_):
            spans.append((start, i, type_))
            start = None
        if start is None and prefix in opens:
            start, type_ = i, new
        closed = prefix in "ELSU"
    if start is not None:
        spans.append((start, len(tags), type_))
    return spans


def ill_formed(tags):
    """Count the I- (E-, L-) tags that continue nothing: the first tag, after O, or after another type."""
    count, last = 0, None
    for tag in tags:
        prefix, type_ = split_tag(tag)
        count += prefix in "IEL" and type_ != last
        last = type_
    return count


def spans_to_entities(spans, offsets, text):
    """Entities (characters) from the (first, last + 1, type) token spans of `tag_spans`."""
    entities = []
    for first, last, type_ in spans:
        start, end = offsets[first][0], offsets[last - 1][1]
        entities.append({"start": start, "end": end, "type": type_, "text": text[start:end]})
    return entities


def flat_entities(entities, text, overlap="longest", discontinuous="drop"):
    """Choose the entities that one column of tags can hold; return (kept, lost).

    kept: non-overlapping (start, end, type) in text order, white space at edges trimmed. lost: [(entity, reason)].
    Continuous entities come before what stands in for discontinuous ones.
    Example: RAREDISEASE 0-15 with DISEASE 8-15 inside -> the longest is kept, the other lost to "overlap".
    """
    plain = [(entity["start"], entity["end"], entity["type"]) for entity in entities]
    if not any("fragments" in entity or entity["text"] != entity["text"].strip() for entity in entities) and all(
        a[1] <= b[0] for a, b in pairwise(plain)
    ):
        return plain, []  # the usual case, and quick
    candidates, lost = [], []
    for entity in entities:
        spans, last = fragments(entity), len(fragments(entity)) > 1
        if last and discontinuous == "drop":
            lost.append((entity, "discontinuous"))
            continue
        if last and discontinuous != "split":
            longest = max(spans, key=lambda span: (span[1] - span[0], -span[0]))
            spans = [{"hull": [entity["start"], entity["end"]], "first": spans[0], "longest": longest}[discontinuous]]
        for start, end in spans:
            inner = text[start:end].strip()
            start += text[start:end].find(inner)
            candidates.append((last, start, start + len(inner), entity))
    order = {"longest": lambda s, e: (s - e, s), "shortest": lambda s, e: (e - s, s),
             "first": lambda s, e: (s, s - e), "last": lambda s, e: (-s, s - e)}[overlap]  # fmt: skip
    kept, starts, missed = [], [], {}
    for _, start, end, entity in sorted(candidates, key=lambda c: (c[0], *order(c[1], c[2]), c[3]["type"])):
        i = bisect_left(starts, end)
        if start == end:
            missed[id(entity)] = entity, "white space"
        elif i and kept[i - 1][1] > start:
            missed[id(entity)] = entity, "overlap"
        else:
            starts.insert(i, start)
            kept.insert(i, (start, end, entity["type"]))
    return kept, lost + list(missed.values())


def flat_tags(kept, offsets):
    """IOB2 tags, one per token, of non-overlapping (start, end, type) in text order; linear.

    A token gets the first entity that it touches; with tokens cut at the entities' edges, tags say just the entities.
    """
    tags, i = ["O"] * len(offsets), 0
    for start, end, type_ in kept:
        while i < len(offsets) and offsets[i][1] <= start:
            i += 1
        prefix = "B-"
        while i < len(offsets) and offsets[i][0] < end:
            tags[i] = prefix + type_
            prefix = "I-"
            i += 1
    return tags


def flat_view(record, overlap="longest", discontinuous="drop", cut=True):
    """Return (record with `tokens`, `offsets` and `tags`, lost entities, number of cuts that gold made).

    With `cut`, tokens are cut at every gold edge that falls inside one; without, or for a record that came with its
    own tokens, an entity takes every token that it touches.
    """
    text, entities = record["text"], record["entities"]
    kept, lost = flat_entities(entities, text, overlap, discontinuous)
    offsets, cuts = record.get("offsets"), 0
    if offsets is None or not record.get("pretokenized"):
        plain = offsets = tokenize(text)
        if cut:
            offsets = cut_tokens(plain, [edge for entity in entities for span in fragments(entity) for edge in span])
            cuts = len(offsets) - len(plain)
    view = {"tokens": [text[start:end] for start, end in offsets], "offsets": offsets}
    return record | view | {"tags": flat_tags(kept, offsets)}, lost, cuts


# ---------------------------------------------------------------------------- sentences

BRACKET = 250  # no sentence break in a bracket that closes within so many characters; keeps the search linear
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
WORD_START = re.compile(r"[\s(\[/«\"]")
INITIALS = re.compile(r"[^\W\d_](?:\.-?[^\W\d_])*")
LIST_NUMBER = re.compile(r"\s*[(\[]?(?:\d{1,3}|[A-Za-zА-Яа-я]|[IVXivx]{1,4})[.)\]]*\s*")
HEAD = re.compile(r"[-•*·–—]\s|\(?\d{1,3}[.)]\s|[^\W\d_][^.!?:\n]{0,40}:(?:\s|$)")


def sentence_starts(text):
    """Return the character at which each sentence but the first starts. Linear in the text's length."""
    lines = [len(line.rstrip()) for line in text.split("\n")]
    ends = [line.rstrip()[-1:] not in ".!?:;" for line in text.split("\n") if len(line.rstrip()) >= 60]
    # Hard-wrapped text: half of the lines are long, and most of these stop in mid-sentence.
    wrapped = len(lines) >= 6 and 2 * len(ends) >= len(lines) and 2 * sum(ends) > len(ends)
    starts, last = [], 0
    for match in STOP.finditer(text):
        empty = match.end() == len(text) or not NOT_SPACE.search(text, last, match.start())
        if not empty and _is_break(text, last, match, wrapped):
            last = match.end()
            starts.append(last)
    return starts


def _is_break(text, last, match, wrapped):
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
    return bool(match["stop"]) and _is_full_stop(text, last, match, following)


def _is_full_stop(text, last, match, following):
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
    word = WORD_START.split(text[max(last, at - 24) : at])[-1]
    if word in MAYBE_LAST:
        return following.isupper() and text[match.end() + 1 : match.end() + 2] != "."
    if INITIALS.fullmatch(word) and word.isupper():  # J. Smith, Н.Н. Бурденко
        before = text[max(last, at - 40) : at - len(word)].split()
        return not following.isupper() or (bool(before) and before[-1].lower() in LETTERED)
    return word.lower() not in ABBREVIATIONS


# ---------------------------------------------------------------------------- prompts and answers

FORMATS = ("json", "spans", "lines", "inline", "iob")
DEPTH = 8  # of entities in entities, at most, in an answer_graph; NEREL-BIO has 7
NOTHING = ("", "-", "none", "no", "n/a", "ninguno", "ninguna", "нет")  # what `lines` may say where there is nothing
REFUSAL = re.compile(
    r"\b(?:I(?:'m| am) (?:sorry|unable|not able)|I (?:can't|cannot|can not|won't)|as an AI|lo siento|no puedo|извините"
    r"|не могу|к сожалению)\b",
    re.I,
)
BULLET = re.compile(r"^\s*(?:[-*•]\s+|\d+[.)]\s+)?[*_`]*")
GAP = 150  # characters that may lie between the words of a discontinuous mention, at most, together
LOOKALIKES = str.maketrans("‘’‚‛“”„‟«»‹›‐‑‒–—―−", "''''\"\"\"\"\"\"''-------")
TAG = re.compile(r"O|[BIESLU](?:-[^\s\]]+)?")


INSTRUCTIONS = {  # language -> the task, what each format is, how types without a mention are named, two headings
    "en": {
        "task": "Find every mention of the types below in the text that the user sends. Copy each mention exactly as "
        "it stands there, character for character; correct, translate and explain nothing.",
        "json": "Answer with one JSON object and nothing else: each key is a type, each value the list of its mentions "
        "in the order of the text, one that occurs twice listed twice. {types}",
        "spans": 'Answer with a JSON array and nothing else, for each mention {{"text", "type", "start", "end"}} in '
        "the order of the text; start and end count characters from 0, end is the first one after the mention.",
        "lines": "Answer with one line for each type: the type, a colon, its mentions in the order of the text with "
        "semicolons between them. {types} Where nothing is mentioned at all, answer -",
        "inline": "Answer with the text itself, unchanged, each mention between <TYPE> and </TYPE>; a mention may "
        "stand inside another. Write & as &amp; and < as &lt;",
        "iob": "The user sends one token a line. Answer with one line for each: the token, a tab, and B-TYPE where a "
        "mention begins, I-TYPE where it goes on, O elsewhere.",
        "found": "Leave out types without a mention.",
        "all": "Name every type; one without a mention has none behind it.",
        "types": "Types:",
        "passages": "Background, which is no text to label:",
    },
    "es": {
        "task": "Busca todas las menciones de los tipos indicados abajo en el texto que envía el usuario. Copia cada "
        "mención exactamente como está, carácter por carácter; no corrijas, traduzcas ni expliques nada.",
        "json": "Responde con un solo objeto JSON y nada más: cada clave es un tipo y cada valor la lista de sus "
        "menciones en el orden del texto; la que aparece dos veces se pone dos veces. {types}",
        "spans": 'Responde con una lista JSON y nada más, con {{"text", "type", "start", "end"}} por cada mención, en '
        "el orden del texto; start y end cuentan caracteres desde 0, end es el primero después de la mención.",
        "lines": "Responde con una línea por tipo: el tipo, dos puntos y sus menciones en el orden del texto, "
        "separadas por punto y coma. {types} Si no se menciona nada, responde -",
        "inline": "Responde con el propio texto, sin cambios, cada mención entre <TIPO> y </TIPO>; una mención puede "
        "estar dentro de otra. Escribe & como &amp; y < como &lt;",
        "iob": "El usuario envía un token por línea. Responde con una línea por token: el token, un tabulador y B-TIPO "
        "donde empieza una mención, I-TIPO donde continúa, O en lo demás.",
        "found": "Omite los tipos sin menciones.",
        "all": "Nombra todos los tipos; el que no tiene menciones queda vacío.",
        "types": "Tipos:",
        "passages": "Contexto, que no es texto para etiquetar:",
    },
    "ru": {
        "task": "Найди в тексте пользователя все упоминания перечисленных ниже типов. Копируй каждое упоминание точно "
        "так, как оно стоит в тексте, символ в символ; ничего не исправляй, не переводи и не поясняй.",
        "json": "Ответь одним объектом JSON и ничем больше: ключ - тип, значение - список его упоминаний в порядке "
        "текста; что встречается дважды, указывается дважды. {types}",
        "spans": 'Ответь списком JSON и ничем больше: для каждого упоминания {{"text", "type", "start", "end"}} в '
        "порядке текста; start и end считают символы с 0, end - первый символ после упоминания.",
        "lines": "Ответь строкой на каждый тип: тип, двоеточие и его упоминания в порядке текста через точку с "
        "запятой. {types} Если ничего не упомянуто, ответь -",
        "inline": "Ответь самим текстом без изменений, каждое упоминание между <ТИП> и </ТИП>; упоминание может "
        "стоять внутри другого. Пиши & как &amp;, а < как &lt;",
        "iob": "Пользователь присылает по одному токену в строке. Ответь строкой на каждый: токен, табуляция и B-ТИП, "
        "где упоминание начинается, I-ТИП, где оно продолжается, иначе O.",
        "found": "Типы без упоминаний пропусти.",
        "all": "Назови все типы; у типа без упоминаний ничего не стоит.",
        "types": "Типы:",
        "passages": "Справка, которую размечать не нужно:",
    },
}


def read_labels(path):
    """Return {type: description} of a JSON file."""
    try:
        labels = json.loads("\n".join(line for _, line in read_lines(path)))
        if not isinstance(labels, dict) or not all(isinstance(each, str) for each in labels.values()) or not labels:
            raise ValueError
    except (ValueError, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: not a JSON object of type and description; write one") from None
    return labels


def types_of(records):
    """The types of the records' entities, in order."""
    return sorted({entity["type"] for record in records for entity in record["entities"]})


def labels_of(args, train_files, test_files, stored=None, limit=None):
    """Return {type: description or ""} of what is asked for; DataError where there is no type, or one fits no tag.

    From --labels_file, else what a trained model has `stored`, the types of training, of the shots in test files, or,
    with a warning, of their gold.
    """
    labels = read_labels(args.labels_file) if args.labels_file else stored
    if not labels:
        paths, types = train_files or test_files, []
        if not train_files:
            types = types_of(shot for record in _all(paths, limit) for shot in record.get("shots", ()))
        if not types:
            types = types_of(_all(paths, limit))
            if types and not train_files:
                log(f"warning: the types come from the gold of {paths[0]}; give --labels_file or --train_file")
        if not types:
            raise DataError(f"{paths[0]}: no entity in it; nothing to learn, or to ask for without --labels_file")
        labels = dict.fromkeys(types, "")
    wrong = {"iob": r"\s", "inline": "[<>]"}.get(args.format)
    if odd := [type_ for type_ in labels if wrong and re.search(wrong, type_)]:
        raise DataError(f"type {odd[0]!r}: --format {args.format} can't hold it; rename it (brat2iob.py --map_types)")
    return labels


def _all(paths, limit):
    return chain.from_iterable(read_records(path, limit) for path in paths)


def render_messages(record, types, format, shots=(), passages=(), descriptions=None, instruction=None, language="en",
                    all_types=False):  # fmt: skip
    """Return the chat messages that ask for the entities of a record, what never changes first.

    The system message holds the task (or `instruction` in its place), the types with their `descriptions` and the
    passages; each shot, a record with its entities, is a turn of its own; the text comes last.
    """
    words = INSTRUCTIONS[language]
    system = instruction or f"{words['task']}\n{words[format].format(types=words['all' if all_types else 'found'])}"
    named = [
        f"- {type_}: {descriptions[type_]}" if (descriptions or {}).get(type_) else f"- {type_}" for type_ in types
    ]
    system += "\n\n" + "\n".join([words["types"], *named])
    if passages:
        system += "\n\n" + "\n\n".join([words["passages"], *(passage["text"] for passage in passages)])
    messages = [{"role": "system", "content": system}]
    for shot in shots:
        messages.append({"role": "user", "content": _asked(shot, format)})
        messages.append({"role": "assistant", "content": render_answer(shot, types, format, all_types)})
    return [*messages, {"role": "user", "content": _asked(record, format)}]


def _asked(record, format):
    """What a message shows of a text: itself, or for iob its tokens, which never know gold's cuts."""
    if format != "iob":
        return record["text"]
    offsets = record["offsets"] if record.get("pretokenized") else tokenize(record["text"])
    return "\n".join(record["text"][start:end] for start, end in offsets)


def render_answer(record, types, format, all_types=False):
    """Return what a model should answer for a record, in one of FORMATS.

    json    {"SIGN": ["joint pain", ...]}, mentions in text order, repeats repeated
    spans   [{"text": "joint pain", "type": "SIGN", "start": 10, "end": 20}], end exclusive
    lines   SIGN: joint pain; fever (a `;` of a mention as `\\;`, nothing at all as `-`)
    inline  the text, mentions in <SIGN>...</SIGN>; its own & and < as &amp; and &lt;
    iob     one `token<TAB>TAG` a line, the text's own tokens

    Of `types` alone; with `all_types`, json and lines name those without a mention, too. What a format can't hold
    (inline: crossing and discontinuous mentions; iob: nested and discontinuous ones) is left out.
    """
    text = record["text"]
    entities = [entity for entity in record["entities"] if entity["type"] in types]
    entities.sort(key=lambda e: (e["start"], -e["end"], e["type"]))
    if format == "iob":
        view = flat_view(record | {"entities": entities}, cut=False)[0]
        return "\n".join(f"{token}\t{tag}" for token, tag in zip(view["tokens"], view["tags"], strict=True))
    if format == "inline":
        return _with_tags(text, entities)
    if format == "spans":
        return to_json([{name: entity[name] for name in ("text", "type", "start", "end")} for entity in entities])
    known = types if all_types else [type_ for type_ in types if any(e["type"] == type_ for e in entities)]
    mentions = {type_: [" ".join(e["text"].split()) for e in entities if e["type"] == type_] for type_ in known}
    if format == "json":
        return to_json(mentions)
    escaped = {type_: [mention.replace(";", "\\;") for mention in found] for type_, found in mentions.items()}
    return "\n".join(f"{type_}: {'; '.join(found)}".rstrip() for type_, found in escaped.items()) or "-"


def _with_tags(text, entities):
    """The text with tags around all entities that can be nested into each other, the longest first."""
    kept = []
    for entity in sorted(entities, key=lambda e: (e["start"] - e["end"], e["start"])):
        start, end = entity["start"], entity["end"]
        crossing = any(start < a < end < b or a < start < b < end for a, b, _ in kept)
        if "fragments" not in entity and not crossing:
            kept.append((start, end, entity["type"]))
    # At one place the inner ends come before the outer, ends before starts, outer starts before the inner.
    marks = [(end, 0, -i, f"</{type_}>") for i, (start, end, type_) in enumerate(kept)]
    marks += [(start, 1, i, f"<{type_}>") for i, (start, end, type_) in enumerate(kept)]
    pieces, at = [], 0
    for place, _, _, mark in sorted(marks):
        pieces += [_escape(text[at:place]), mark]
        at = place
    return "".join([*pieces, _escape(text[at:])])


def _escape(text):
    return text.replace("&", "&amp;").replace("<", "&lt;")


def answer_graph(record, types, format):
    """Return arcs(node, opening) of all answers in inline or iob that copy the text and mark `types`.

    arcs(None, True) is the beginning; it gives ([(bytes that may follow, the node behind them)], whether the answer
    may end here). Without `opening` no mention begins any more. For decoding that can write nothing else.
    """
    return _inline_graph(record["text"], types) if format == "inline" else _iob_graph(record, types)


def _inline_graph(text, types):
    """A node is (characters copied, open tags as (type, where)); tags open where a token begins, close at an end."""
    offsets, letters = tokenize(text), [_escape(letter).encode("utf-8") for letter in text]
    starts, ends = {start for start, _ in offsets}, {end for _, end in offsets}

    def arcs(node, opening):
        at, opened = node or (0, ())
        pairs = [(letters[at], (at + 1, opened))] if at < len(text) else []
        if opening and at in starts and len(opened) < DEPTH:
            pairs += [(f"<{t}>".encode(), (at, (*opened, (t, at)))) for t in types if (t, at) not in opened]
        if opened and at in ends and opened[-1][1] < at:
            close = (f"</{opened[-1][0]}>".encode(), (at, opened[:-1]))
            pairs = [*pairs, close] if text[at:].strip() else [close]  # before the blanks at the end
        return pairs, not opened and not text[at:].strip()

    return arcs


def _iob_graph(record, types):
    """A node is (tokens written, the type that may go on)."""
    tokens = list(filter(None, _asked(record, "iob").split("\n")))

    def arcs(node, opening):
        at, before = node or (0, None)
        if at == len(tokens):
            return [], True
        tags = [("O", None), *((f"B-{t}", t) for t in types if opening), *((f"I-{t}", t) for t in types if t == before)]
        behind = "\n" if at + 1 < len(tokens) else ""
        return [(f"{tokens[at]}\t{tag}{behind}".encode(), (at + 1, type_)) for tag, type_ in tags], False

    return arcs


PREDICTED = ("id", "doc_id", "start", "text", "source", "pretokenized", "tokens", "offsets")  # of a prediction, too


def without_gold(record, *more):
    """What a predictor may know of a record: neither its entities nor the cuts that they make in its tokens."""
    names = PREDICTED if record.get("pretokenized") else PREDICTED[:-2]
    return {name: record[name] for name in (*names, *more) if name in record}


def answered(record, entities, status, dropped, lines):
    """The prediction record of an LLM's answers, from `lines` of their log: {"answer", "usage", "seconds"}."""
    said, used = [line.get("answer", "") for line in lines], Counter()
    for line in lines:
        used.update(line.get("usage") or {})
    entities = sorted(entities, key=lambda e: (e["start"], -e["end"], e["type"]))
    return flat_view(without_gold(record) | {"entities": entities}, cut=False)[0] | {
        "answer": said[0] if len(said) == 1 else said, "status": status, "dropped": dropped, "usage": dict(used),
        "seconds": round(sum(line.get("seconds", 0) for line in lines), 4)}  # fmt: skip


def parse_answer(answer, record, types, format, alignment="normalized", shots=()):
    """Return {"entities", "status", "dropped"}: what an answer says about a record's text, placed in it, and what not.

    Status: "ok"; "salvaged", where prose, quotes, commas or a cut end had to be got over, with all that is complete;
    "unparsable"; "empty"; "refused". Nothing is guessed: a mention that is not in the text is in `dropped`, and
    "leaked" if a shot has it. `alignment`: "exact", "normalized" (case, dashes, quotes, white space, Unicode forms),
    "fuzzy" (and the one place that is nearly the same), or "position" (iob: the n-th tag to the n-th token).
    """
    plain = re.sub(r"<think>.*", "", re.sub(r"(?s)^.*</think>", "", answer), flags=re.S).replace("\r\n", "\n").strip()
    if not plain:
        return {"entities": [], "status": "empty", "dropped": []}
    fence = re.fullmatch(r"```[^\n]*\n(.*?)\n?```", plain, re.S)
    reader = {"json": _read_json, "spans": _read_json, "lines": _read_lines, "inline": _read_inline, "iob": _read_iob}
    items, whole = reader[format](fence[1] if fence else plain, record, types, alignment == "position")
    if items is None:
        return {"entities": [], "status": "refused" if REFUSAL.search(plain) else "unparsable", "dropped": []}
    names = {_type_key(type_): type_ for type_ in types} | {type_: type_ for type_ in types}
    found, dropped = [], []
    for mention, type_, span in items:
        mention, type_ = (each.encode("utf-8", "replace").decode("utf-8") for each in (mention, type_))
        if known := names.get(type_) or names.get(_type_key(type_)):
            found.append((mention, known, span))
        else:
            dropped.append({"text": mention, "type": type_, "reason": "unknown_type"})
    entities, lost = place_mentions(found, record["text"], alignment)
    shown = {_fold(entity["text"])[0] for shot in shots for entity in shot["entities"]}
    for item in lost:
        leaked = item["reason"] == "not_in_text" and _fold(item["text"])[0] in shown
        dropped.append(item | {"reason": "leaked"} if leaked else item)
    return {"entities": entities, "status": "ok" if whole else "salvaged", "dropped": dropped}


def _type_key(type_):
    return re.sub(r"[\W_]+", " ", type_).strip().casefold()


# Readers of answers: return ([(mention, type, its [start, end] in the text or None)], whether nothing had to be got
# over), or (None, False) where nothing is understood.


def _says_nothing(mention, record):
    """Whether a mention is a word for none; "NO" may be nitric oxide, where the text has it so."""
    return not mention.strip() or (mention.strip().casefold() in NOTHING and mention.strip() not in record["text"])


def _read_json(answer, record, types, by_position):
    value, whole = loose_json(answer)
    try:
        items = [item for item in _json_items(value) if not _says_nothing(item[0], record)]
    except RecursionError:
        return None, False
    blank = ([], {}, None, "") if whole else ([], {})
    empty = value in ([], {}) or (isinstance(value, dict) and all(each in blank for each in value.values()))
    return (items, whole) if items or empty else (None, False)


def _json_items(value, type_=None):
    """Yield the items of an object type -> mentions, of a list of {"text", "type", ...}, or of either inside others."""
    if isinstance(value, list):
        for each in value:
            yield from _json_items(each, type_)
    elif isinstance(value, dict):
        text = next((value[name] for name in ("text", "mention", "entity") if isinstance(value.get(name), str)), None)
        named = next((value[name] for name in ("type", "label") if isinstance(value.get(name), str)), type_)
        if text is not None and named is not None:
            span = [value.get("start"), value.get("end")]
            yield text, named, span if all(type(edge) is int for edge in span) else None
        else:
            for key, each in value.items():
                yield from _json_items(each, key)
    elif isinstance(value, str) and type_ is not None:
        yield value, type_, None


JSON_TOKEN = re.compile(
    r"""\s*(?:(?P<mark>[{}\[\]:,])|"(?P<double>(?:[^"\\]|\\.)*)"|'(?P<single>(?:[^\\]|\\.)*?)'(?=\s*[,:\]}]|\s*\Z)"""
    r"""|(?P<word>[^\s{}\[\]:,"']+))""",
    re.S,
)


def loose_json(text):
    """Return (the JSON of a text, whether that is the whole text and valid); (None, False) if there is no { or [.

    Prose around it, single quotes, trailing commas and Python's words are got over; of a value that is cut, what is
    complete is kept; of several values there is a list, of a key that stands twice both values.
    """
    try:
        value = json.loads(text, object_pairs_hook=_merged)
        return (value, True) if isinstance(value, (dict, list)) else (None, False)
    except (ValueError, RecursionError):
        values, at = [], 0
    while start := re.compile(r"[{\[]").search(text, at):
        value, at = _json_from(text, start.start())
        values.append(value)
    return (values[0] if len(values) == 1 else values or None), False


def _merged(pairs):
    value = {}
    for key, each in pairs:
        _put(value, key, each)
    return value


def _json_from(text, at):
    """(the value that begins at text[at], complete as far as it goes; where it ends)."""
    top, stack, key = [], [], None
    here = top
    while match := JSON_TOKEN.match(text, at):
        at, mark = match.end(), match["mark"]
        if mark in ("{", "["):
            new = {} if mark == "{" else []
            _put(here, key, new)
            stack.append(here)
            here, key = new, None
        elif mark in ("}", "]"):
            here, key = stack.pop(), None
            if not stack:
                return top[0], at
        elif mark == ",":
            key = None
        elif mark != ":":
            value = _json_value(match)
            if isinstance(here, dict) and key is None:
                key = str(value)
            else:
                _put(here, key, value)
    return top[0], len(text)


def _put(container, key, value):
    if isinstance(container, list):
        container.append(value)
    elif key is not None:
        container[key] = [container[key], value] if key in container else value


def _json_value(match):
    if match["word"] is not None:
        return int(match["word"]) if re.fullmatch(r"-?\d{1,15}", match["word"]) else None
    string = match["double"] if match["double"] is not None else match["single"].replace("\\'", "'")
    try:
        return json.loads(f'"{string}"' if match["double"] is not None else json.dumps(string), strict=False)
    except ValueError:
        return string


def _read_lines(answer, record, types, by_position):
    names, items, known, other = {_type_key(type_) for type_ in types}, [], 0, 0
    for line in answer.split("\n"):
        line = BULLET.sub("", line)
        own = next(
            (type_ for type_ in types if ":" in type_ and line.startswith(f"{type_}:")), None
        )  # a type with colons
        head, rest = (own, line[len(own) + 1 :]) if own else (line.partition(":")[0], line.partition(":")[2])
        mentions = [each.replace("\\;", ";").strip() for each in re.split(r"(?<!\\);", rest.removeprefix("**"))]
        mentions = [each for each in mentions if not _says_nothing(each, record)]
        if not line.strip() or line.strip().casefold() in NOTHING:
            known += bool(line.strip())
        elif own or _type_key(head) in names or (mentions and len(head.split()) <= 3 and rest.strip()[-1] != "."):
            known += bool(own) or _type_key(head) in names
            items += [(mention, head.strip(" *_`"), None) for mention in mentions]
        else:
            other += 1
    return (items, not other) if known else (None, False)


def _read_inline(answer, record, types, by_position):
    known = "|".join(re.escape(type_) for type_ in sorted(types, key=len, reverse=True))
    tag = re.compile(rf"<(/?)\s*({known}|[^\W\d][\w-]*)\s*>", re.I)
    plain, open_, spans, at = "", [], [], 0
    for match in tag.finditer(answer):
        plain += _unescape(answer[at : match.start()])
        at = match.end()
        if not match[1]:
            open_.append((match[2], len(plain)))
            continue
        inner = [i for i, (type_, _) in enumerate(open_) if type_.casefold() == match[2].casefold()]
        if inner:
            type_, start = open_.pop(inner[-1])
            spans.append((start, len(plain), type_))
    plain += _unescape(answer[at:])
    if not spans and "".join(plain.split()) != "".join(record["text"].split()):
        return None, False
    places = _token_places(plain, record["text"])
    items = [(plain[a:b], type_, _project(a, b, *places)) for a, b, type_ in sorted(spans)]
    return items, not open_ and "".join(plain.split()) == "".join(record["text"].split())


def _unescape(text):
    return text.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")


def _token_places(source, target):
    """(offsets of source's tokens, of target's, {source token: target token}) of a text and what should be its copy."""
    offsets = tokenize(source), tokenize(target)
    words = [[text[a:b].casefold() for a, b in each] for text, each in zip((source, target), offsets, strict=True)]
    return *offsets, _same_tokens(*words)


def _same_tokens(source, target):
    """{index in source: index in target} of the tokens that a common alignment of both holds."""
    if source == target:
        return {i: i for i in range(len(source))}
    blocks = SequenceMatcher(None, source, target, False).get_matching_blocks()
    return {i + k: j + k for i, j, n in blocks for k in range(n)}


def _project(start, end, source, target, same):
    """Where source[start:end] stands in the target; None where its tokens are not there, one after the other."""
    inside = [i for i, (a, b) in enumerate(source) if a < end and b > start]
    there = [same.get(i) for i in inside]
    if not inside or None in there or there != list(range(there[0], there[0] + len(there))):
        return None
    first, last = target[there[0]], target[there[-1]]
    return [first[0] + max(0, start - source[inside[0]][0]), last[1] - max(0, source[inside[-1]][1] - end)]


def _tagged(line):
    """(token, tag) of a line `token<TAB>TAG`, or with a colon, bar or brackets; None where its last word is no tag."""
    if "\t" in line:
        head, _, tag = (part.strip() for part in line.rpartition("\t"))
        return head, tag if head and TAG.fullmatch(tag) else None
    head, _, tag = line.strip().strip("[]").rpartition(" ")
    head, tag = head.rstrip(), tag.strip("[]|:")
    token = head[:-1].rstrip() if head[-1:] in (":", "|") else head
    return (token or head).strip("[]") or head, tag if head and TAG.fullmatch(tag) else None


def _read_iob(answer, record, types, by_position):
    lines = [line for line in answer.split("\n") if line.strip()]
    read = [_tagged(line) for line in lines]
    if not any(tag for _, tag in read):
        return None, False
    whole, pairs = all(tag for _, tag in read), [(token, tag or "O") for token, tag in read]
    text = record["text"]
    offsets = record["offsets"] if record.get("pretokenized") else tokenize(text)
    tokens = [text[a:b] for a, b in offsets]
    if by_position:  # as the code of Lu et al. did: what is no `token: TAG` is O, and the n-th line is the n-th token's
        parts = [re.sub(r"[\[\]]", "", line).split(": ") for line in lines]
        pairs = [
            (part[0], part[1].strip() if len(part) == 2 and TAG.fullmatch(part[1].strip()) else "O") for part in parts
        ]
    words = [word for word, _ in pairs]
    if by_position:
        same = {i: i for i in range(min(len(words), len(tokens)))}
    else:
        same = _same_tokens([word.casefold() for word in words], [token.casefold() for token in tokens])
    tags = ["O"] * len(tokens)
    for i, j in same.items():
        tags[j] = pairs[i][1]
    items = [(text[offsets[a][0] : offsets[b - 1][1]], type_, [offsets[a][0], offsets[b - 1][1]])
             for a, b, type_ in tag_spans(tags)]  # fmt: skip
    for a, b, type_ in [] if by_position else tag_spans([tag for _, tag in pairs]):
        if not any(i in same for i in range(a, b)):
            items.append((" ".join(words[a:b]), type_, None))
    return items, whole and len(same) == len(words) == len(tokens)


# ---- alignment of mentions to the text


def place_mentions(items, text, alignment="normalized"):
    """Place (mention, type, [start, end] or None) in a text: return (entities in text order, [{text, type, reason}]).

    Offsets that hold the mention are taken. Of the rest the longest come first, each to the leftmost whole-word
    occurrence that no placed one covers, else to one inside another, else inside a word; where there is none, the same
    with what agrees but for case, dashes, quotes, white space and Unicode forms (`normalized`), then `scattered` words,
    then what is nearly the same (`fuzzy`). A type takes an occurrence once; who comes too late is `surplus`. Of gold's
    strings, in sentences, offsets come back for 99.8 % (JNLPBA, RareDis, NEREL-BIO) to 99.997 % (BC5CDR).
    """
    entities, dropped, taken, rest, known = [], [], set(), [], {}

    def put(spans, type_):
        start, end = spans[0][0], spans[-1][1]
        taken.add((start, end, type_))
        entity = {"start": start, "end": end, "type": type_, "text": span_text(text, spans)}
        entities.append(entity | ({"fragments": [list(span) for span in spans]} if len(spans) > 1 else {}))

    for mention, type_, span in items:
        inside = span and 0 <= span[0] < span[1] <= len(text)
        whole = inside and ([span] if text[slice(*span)] == mention else scattered(mention, text, *span))
        if whole and (whole[0][0], whole[-1][1], type_) not in taken:
            put(whole, type_)
        else:
            rest.append((mention, type_))
    for mention, type_ in sorted(rest, key=lambda item: -len(item[0])):
        if mention not in known:
            places = occurrences(mention, text, alignment)
            known[mention] = places, [] if places or alignment == "exact" else scattered(mention, text)
        places, words = known[mention]
        free = [span for span in places if (*span, type_) not in taken]
        outside = [span for span in free if not any(a <= span[0] and span[1] <= b for a, b, _ in taken)]
        spans = [(outside or free)[0]] if free else words
        if spans and (spans[0][0], spans[-1][1], type_) not in taken:
            put(spans, type_)
        else:
            reason = "surplus" if places or spans else "not_in_text"
            dropped.append({"text": mention, "type": type_, "reason": reason})
    return sorted(entities, key=lambda e: (e["start"], -e["end"], e["type"])), dropped


def occurrences(mention, text, alignment="normalized"):
    """The (start, end) of a mention in a text: whole words first; of the first stage that finds any."""
    mention = mention.strip()
    found = _find(mention, text)
    if not found and alignment != "exact":
        folded, places = _fold(text)
        wanted = _fold(mention)[0]
        found = [(places[a], places[b - 1] + 1) for a, b in _find(wanted, folded)]
        if not found and alignment == "fuzzy" and len(wanted) > 3:
            found = [(places[a], places[b - 1] + 1) for a, b in _nearly(wanted, folded)]
    return found


def _find(mention, text):
    """All occurrences, those at word boundaries before those inside words."""
    if not mention:
        return []
    found = [(m.start(), m.start() + len(mention)) for m in re.finditer(f"(?={re.escape(mention)})", text)]
    return sorted(found, key=lambda span: (_in_word(text, span[0]) or _in_word(text, span[1]), span))


def _in_word(text, at):
    return 0 < at < len(text) and text[at - 1].isalnum() and (text[at].isalnum() or unicodedata.combining(text[at]) > 0)


@lru_cache(maxsize=64)
def _fold(text):
    """(the text in NFKD, without case, fancy dashes and quotes, runs of white space; the place of each character)."""
    folded, places = [], []
    for i, character in enumerate(text.translate(LOOKALIKES)):
        if character.isspace():
            if folded and folded[-1] != " ":
                folded.append(" ")
                places.append(i)
        elif character not in "\u00ad\u200b\u200c\u200d\ufeff":
            for each in unicodedata.normalize("NFKD", character).casefold():  # character by character, so not NFKC
                folded.append(each)
                places.append(i)
    if folded and folded[-1] == " ":
        folded.pop()
        places.pop()
    return "".join(folded), places


@lru_cache(maxsize=64)
def _folded_words(text):
    """(the tokens of the folded text, where they stand in it, the place of each of its characters in the text)."""
    folded, places = _fold(text)
    spans = tokenize(folded)
    return [folded[a:b] for a, b in spans], spans, places


def scattered(mention, text, start=0, end=None):
    """The fragments of a mention whose words stand in text[start:end] in their order; without `end`, GAP apart at most.

    The shortest stretch of one sentence that holds them, in the fewest fragments; [] if another is as short. So come
    back, from their strings alone, 714 of RareDis' 767 discontinuous mentions and 460 of 475 of NEREL-BIO's train and
    dev, in sentences; 24 and 8 come back otherwise, the rest does not.
    """
    words, spans, places = _folded_words(text[start:end])
    wanted = _folded_words(mention)[0]
    hulls, several = [], len(wanted) > 1 and (end is not None or not re.search("[,;]", mention))  # no list of mentions
    for first in [i for i, word in enumerate(words) if several and word == wanted[0]]:
        at = first
        for word in wanted[1:]:
            at = next((i for i in range(at + 1, len(words)) if words[i] == word), None)
            if at is None or (end is None and spans[at][1] - spans[first][0] > len(mention) + GAP):
                break
        else:
            hulls.append((spans[at][1] - spans[first][0], first, at))
    breaks = sentence_starts(text[start:end]) if hulls and end is None else ()
    hulls = sorted(hull for hull in hulls if not any(
        places[spans[hull[1]][0]] < edge <= places[spans[hull[2]][0]] for edge in breaks))  # fmt: skip
    if not hulls or (len(hulls) > 1 and hulls[0][0] == hulls[1][0]):
        return []
    _, first, last = hulls[0]
    paths = {first: (1, [first])}  # token of the last word so far -> (fragments, tokens)
    for word in wanted[1:]:
        paths = {i: min((n + (i > j + 1), [*path, i]) for j, (n, path) in paths.items() if j < i)
                 for i in range(min(paths) + 1, last + 1) if words[i] == word}  # fmt: skip
    found = []
    for i in paths[last][1]:
        here, there = start + places[spans[i][0]], start + places[spans[i][1] - 1] + 1
        if found and not text[found[-1][1] : here].strip():
            found[-1][1] = there
        else:
            found.append([here, there])
    return found


def _nearly(wanted, text, least=0.9):
    """The one run of whole words that is nearly the wanted one; none if another comes as near."""
    words, size = tokenize(text), len(tokenize(wanted))
    scored = []
    for n in {max(1, size - 1), size, size + 1}:
        for i in range(len(words) - n + 1):
            span = words[i][0], words[i + n - 1][1]
            matcher = SequenceMatcher(None, text[slice(*span)], wanted, False)
            if matcher.real_quick_ratio() >= least and matcher.quick_ratio() >= least:
                scored.append((matcher.ratio(), span))
    scored = sorted((pair for pair in scored if pair[0] >= least), reverse=True)
    return [scored[0][1]] if scored and (len(scored) == 1 or scored[0][0] > scored[1][0]) else []

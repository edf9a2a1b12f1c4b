# /// script
# requires-python = ">=3.10"
# dependencies = ["numpy"]
# ///
"""Score predicted entities against gold: several systems in one table, with intervals, errors, and a report to browse.

An entity is right if its type and all its characters agree; nested, overlapping and discontinuous entities are scored
as they are. The SemEval-2013 schemes (strict, exact, partial, type) and the error classes align a record's overlapping
gold and predicted spans one to one, with as many correct pairs as possible, then as many further pairs as possible:
POS is the number of gold entities and ACT of predicted ones, always, and no order of the input changes a figure. The
token level compares flat views on gold's tokens; the generation level tells how an LLM's answers could be read.
Intervals resample documents; tests swap the systems' documents. Gold is never cut, and a record without a prediction
is an error.

    python brat2iob.py --input data/rare_en --output_dir out/rare_en
    python ner_eval.py --gold out/rare_en/test.jsonl --pred out/rare_en/test.jsonl out/rare_en/test.iob --names all flat
    python ner_eval.py --gold out/rare_en/test.iob --pred out/rare_en/test.iob --scheme lenient --format json
    python ner_eval.py --gold out/rare_en/test.jsonl --pred out/rare_en/test.iob --by length --html out/report.html

Reads   JSONL records (id, text, entities; characters, end exclusive) or IOB, also .gz. Records join by id, or by
        position where one side is IOB. One --pred file without --gold: token, gold tag, predicted tag in columns.
        PRED.run.json, where there is one, for seconds and cost per 1,000 records (s/1k, $/1k) and training curves
Writes  a table, Markdown or JSON to stdout; the JSON also to --output_file; --html one file that needs no other;
        --errors a JSON line per error. Two scores are comparable if their signatures agree. What has nothing to divide
        by is 0.0, and listed in `undefined`. Files under one name are runs: means, sd, and draws scored run by run
Needs   Python alone; numpy for intervals and tests (--resamples 0: none). 100,000 sentences, 300,000 entities: 5 s
        in 60 MB, and 1.5 s more for intervals; --html holds all texts in memory
Source  seqeval 1.2.2 (IOB: equal to the last digit, strict IOB2 and lenient) and so conlleval; SemEval-2013 task 9.1
        (Segura-Bedmar et al. 2013) as D. Batista tabulates it ("Named-Entity evaluation metrics", 2018); approximate
        randomization (Noreen 1989), percentile bootstrap (Efron 1979), Holm (1979)
Differs seqeval: mode="strict" without scheme= is lenient, and no entity at all an error; here strict is strict, and an
        empty corpus has a report. nervaluate and NER-Evaluation are greedy, so that order changes scores and an exact
        prediction can lose its gold to a partial one, and miss one-token overlaps or those under 1 % of gold; here the
        alignment is the best one, and one shared character overlaps. Per type, R is gold's side and P the prediction's,
        where nervaluate's types do not add up. instruct-ner counts a type that neither side has as right (F1 0.83-0.97
        for 0.39-0.75), LLM-NER-clinical-text swaps P and R, PharmaCoNER's script passes over files that were omitted
"""

import argparse
import gc
import json
import os
import re
import sys
from array import array
from bisect import bisect_left
from collections import Counter, defaultdict
from contextlib import nullcontext
from functools import reduce
from heapq import heappop, heappush
from importlib.util import find_spec
from itertools import chain, count, pairwise, product
from math import fsum
from operator import itemgetter
from statistics import fmean, stdev
from typing import NamedTuple

from utils import (
    VERSION,
    DataError,
    flat_entities,
    flat_tags,
    flat_view,
    is_iob,
    log,
    read_iob,
    read_lines,
    read_records,
    read_type_map,
    run,
    sha256,
    span_text,
    split_tag,
    tag_spans,
    to_json,
    writing,
)

CLASSES = ("correct", "type", "boundary", "type_boundary", "missed", "spurious")
# What each class is in a SemEval scheme: Batista's scenarios I, IV, V, VI, III, II
SCHEMES = {
    "strict": ("COR", "INC", "INC", "INC", "MIS", "SPU"),
    "exact": ("COR", "COR", "INC", "INC", "MIS", "SPU"),
    "partial": ("COR", "COR", "PAR", "PAR", "MIS", "SPU"),
    "type": ("COR", "INC", "COR", "INC", "MIS", "SPU"),
}
# An alignment has as many pairs as possible of the classes with the highest rank, then of the next (exact: and partial)
RULES = {"strict": (1, 0, 0, 0), "exact": (1, 1, 0, 0), "type": (1, 0, 1, 0), "errors": (3, 2, 1, 0)}
LEVELS = ("entity", "entity_other_scheme", "semeval", "token", "generation", "errors")
PARSED = ("ok", "salvaged", "truncated")  # statuses of answers that gave what could be read of them
MISSED, SPURIOUS = "(missed)", "(spurious)"  # the margins of the confusion matrix
LENGTHS = ((1, "1 word"), (2, "2 words"), (3, "3 words"), (5, "4-5 words"), (10, "6-10 words"), (1 << 60, "11+ words"))
AROUND = 40  # characters of context on each side in --errors
FEW = 20  # documents below which intervals say little
UNDEFINED = float("0")  # told from a measured 0.0 by its identity
OTHER = {"strict": "lenient", "lenient": "strict"}
# Where the comparison finds its columns in the scores of a system
COLUMNS = {
    "F1": "entity.micro.f1", "95 %": "intervals.f1", "sd": "runs.sd.micro.f1", "runs": "runs.f1",
    "P": "entity.micro.precision", "R": "entity.micro.recall", "macro F1": "entity.macro.f1",
    "{} F1": "entity_other_scheme.micro.f1", **{f"SE-{scheme}": f"semeval.{scheme}.f1" for scheme in SCHEMES},
    "token F1": "token.by_type.micro.f1", "F1+dropped": "generation.f1_with_dropped",
    "parsed": "generation.parse_rate_repaired", "halluc.": "generation.hallucination_rate",
    "s/1k": "seconds_per_1000", "$/1k": "cost_per_1000",
}  # fmt: skip

# A span, throughout, is (start, end, type), with a fourth item, its fragments, where it is discontinuous.

# ---------------------------------------------------------------------------- records of both sides


class System(NamedTuple):
    """One prediction file and what was counted in it."""

    name: str
    path: str
    iob: bool
    stream: object  # (what it joins gold by, record), read when they are asked for
    waiting: dict  # records read before their turn, by that
    rows: defaultdict  # {(type in gold, type predicted; None for nothing): documents, one for each such entity}
    counts: defaultdict  # of Counters, see `count_record`
    info: dict  # its sidecar


class Side(NamedTuple):
    """What gold, or a prediction, says about one record, in characters of gold's text and in gold's tokens."""

    spans: frozenset  # by the chosen scheme
    other: frozenset  # by the other scheme (the same where the input isn't IOB)
    tags: list
    copies: int = 0  # exact duplicates, left out
    filtered: int = 0  # left out by --types and --map_types


def open_system(name, path, args):
    """A System, unread yet. It joins by id, or by position where a side is IOB, which can't hold white space alone."""
    iob, info = is_iob(path), {}
    filled = (record for record in read_records(path) if record["text"].strip())
    stream = enumerate(filled) if iob or args.gold_iob else ((record["id"], record) for record in read_records(path))
    if os.path.exists(f"{path}.run.json"):
        try:
            with open(f"{path}.run.json", encoding="utf-8") as file:
                info = json.load(file)
        except (ValueError, RecursionError):
            log(f"warning: {path}.run.json: not JSON; without it there are no seconds and no cost")
    info = info if isinstance(info, dict) and info.get("script") != "brat2iob.py" else {}  # not of a conversion
    return System(name, path, iob, stream, {}, defaultdict(lambda: array("q")), defaultdict(Counter), info)


def entity_span(entity, text, trim):
    """The span of an entity. Fragments with only white space between them are one, as in brat2iob.py.

    `trim`: without white space at its ends, which IOB can't hold.
    """
    parts, start, end = [], entity["start"], entity["end"]
    for first, last in entity.get("fragments") or ():
        if parts and not text[parts[-1][1] : first].strip():
            first = parts.pop()[0]
        parts.append((first, last))
    if trim and text[start:end].strip():
        start, end = end - len(text[start:end].lstrip()), start + len(text[start:end].rstrip())
    return (start, end, entity["type"], *([tuple(parts)] if len(parts) > 1 else ()))


def project_spans(spans, source, target):
    """Carry spans over to another text that has the same characters but other white space."""
    places = [i for i, character in enumerate(source) if not character.isspace()]
    there = [i for i, character in enumerate(target) if not character.isspace()] + [len(target)]

    def move(start, end):
        first, last = bisect_left(places, start), bisect_left(places, end)
        return there[first], there[last - 1] + 1 if last > first else there[first]

    moved = [(*move(*s[:2]), s[2], *(tuple(move(*part) for part in parts) for parts in s[3:])) for s in spans]
    return [span for span in moved if span[0] < span[1]]  # nothing is left of white space alone


def project_tags(spans, gold):
    """The tags of the flat view of spans (the longest wins) on gold's tokens."""
    kept, names = sorted(spans), ("start", "end", "type", "fragments")
    if any(a[1] > b[0] for a, b in pairwise(kept)) or max(map(len, kept), default=3) > 3:
        entities = [dict(zip(names, span, strict=False), text=gold["text"][span[0] : span[1]]) for span in kept]
        kept = flat_entities(entities, gold["text"])[0]
    return flat_tags(kept, gold["offsets"])


def new_type(type_, args):
    """The type by --map_types; None where it, or --types, leaves it out."""
    type_ = args.type_map.get(type_, type_)
    return type_ if type_ and (not args.types or type_ in args.types) else None


def read_side(record, gold, iob, pair, args, truth=None):
    """The Side of a record: gold itself, or a prediction for it, which has gold's Side as `truth`.

    `iob`: whether it is from IOB; `pair`: how many of the two are. Of two, tags are scored as they are written; with
    one, white space at the ends of spans is left out, as IOB has none.
    """
    text, tags = record["text"], []
    lenient = strict = [
        entity_span(entity, text, pair == 1)
        if pair == 1 or "fragments" in entity
        else (entity["start"], entity["end"], entity["type"])  # the usual case, and quick
        for entity in record["entities"]
    ]
    if iob:
        edges = record["offsets"]
        strict = [(edges[a][0], edges[b - 1][1], type_) for a, b, type_ in tag_spans(record["tags"], strict=True)]
    if text != gold["text"]:
        lenient, strict = (project_spans(spans, text, gold["text"]) for spans in (lenient, strict))
    read = len(strict if args.scheme == "strict" else lenient)
    if args.types or args.type_map:
        lenient, strict = (
            [(*s[:2], type_, *s[3:]) for s in spans if (type_ := new_type(s[2], args))] for spans in (lenient, strict)
        )
    spans, other = (strict, lenient) if args.scheme == "strict" else (lenient, strict)
    unique = frozenset(spans)
    other = frozenset(other) if iob else unique
    if "token" in args.levels and pair < 2:
        flat = other if args.scheme == "strict" else unique
        tags = truth.tags if truth and flat == truth.spans == truth.other else project_tags(flat, gold)
    elif "token" in args.levels:
        tags = record["tags"]
        if args.types or args.type_map:
            parts = [(prefix, new_type(type_, args)) for prefix, type_ in map(split_tag, tags)]
            tags = [f"{prefix}-{type_}" if type_ else "O" for prefix, type_ in parts]
    return Side(unique, other, tags, len(spans) - len(unique), read - len(spans))


# What must agree where none, one or both of gold and a prediction are IOB, and what to do where it doesn't
VIEWS = (
    ("characters", lambda record: record["text"], "evaluate the file you predicted"),
    ("characters", lambda record: "".join(record["text"].split()), "use JSONL for both, which joins by id"),
    ("tokens", lambda record: record["tokens"], "predict each token of gold once, in its order"),
)


def place(path, record):
    """FILE:LINE of a record, found by reading the file again, which only errors do."""

    def filled(line):
        return line.strip() and not line.startswith(("-DOCSTART-", "###MEDLINE:"))

    lines = pairwise(chain([(0, "")], read_lines(path)))
    starts = (n for (_, before), (n, line) in lines if filled(line) and not (is_iob(path) and filled(before)))
    units = zip(starts, read_records(path), strict=False)
    return next((f"{path}:{number}" for number, unit in units if unit["id"] == record["id"]), path)  # a pipe is empty


def read_guess(system, gold, key, truth, args):
    """The Side of the prediction that has gold's key, checked to be one of gold's text; an empty one where it's absent.

    A key is None where IOB can't hold gold's record: white space alone.
    """
    while key is not None and key not in system.waiting and (found := next(system.stream, None)):
        system.waiting[found[0]] = found[1]
    pred, pair = system.waiting.pop(key, None), system.iob + args.gold_iob
    if not pred:
        if not (args.allow_missing or key is None):
            remedy = "predict it, or count it as nothing predicted with --allow_missing"
            where = f"record {gold['id']!r} of {place(args.gold, gold)}"
            raise DataError(f"{system.path}: no prediction for {where}; {remedy}")
        system.counts["input"]["missing"] += key is not None
        return Side(frozenset(), frozenset(), ["O"] * len(truth.tags))
    what, view, remedy = VIEWS[pair]
    if view(pred) != view(gold):
        problem = f"its {what} ({len(view(pred))}) are not those ({len(view(gold))}) of record {gold['id']!r}"
        where = f"{place(system.path, pred)}: record {pred['id']!r}"
        raise DataError(f"{where}: {problem} in {place(args.gold, gold)}; {remedy}")
    guess = read_side(pred, gold, system.iob, pair, args, truth)
    if "answer" in pred or "status" in pred:
        count_answer(system.counts["generation"], pred, truth, guess, args)
    return guess


def compare(systems, args, errors=None, kept=None):
    """Read gold and all predictions side by side and count; return the Counter of what gold holds.

    `errors`: a file that gets a JSON line per error; `kept`: a list that gets what the report shows of each record.
    Memory: one record of each file, the ids, and the predictions that stand before their turn.
    """
    facts, documents, places = Counter(), {}, count()
    seen = seen_mentions(args) if args.train_file else {}
    for gold in read_iob(args.gold, column=args.column) if args.column else read_records(args.gold):
        if "token" in args.levels and "offsets" not in gold:
            gold["offsets"] = flat_view(gold)[0]["offsets"]
        truths, pairs = {}, []
        gold["document"] = documents.setdefault(gold["doc_id"], len(documents))
        position = next(places) if gold["text"].strip() else None
        for system in systems:
            pair = system.iob + args.gold_iob
            if pair not in truths:
                truths[pair] = read_side(gold, gold, args.gold_iob, pair, args)
            guess = read_guess(system, gold, position if pair else gold["id"], truths[pair], args)
            count_record(system, truths[pair], guess, gold, args, seen)
            if errors or kept is not None:
                pairs.append(list(error_pairs(truths[pair].spans, guess.spans)))
                write_errors(errors, system, gold, pairs[-1])
        if kept is not None:
            kept.append([gold["id"], gold["doc_id"], gold["text"], pairs])
        truth = truths[pair]
        facts["records"] += 1
        facts["entities"] += len(truth.spans)
        facts["duplicates"] += truth.copies
        facts["filtered"] += truth.filtered
    facts["documents"] = len(documents)
    check_ends(systems, args)
    return facts


def check_ends(systems, args):
    """Refuse predictions that gold has no record for; say where tags are no strict IOB2, and which type nobody has."""
    for system in systems:
        for _, record in chain(system.waiting.items(), system.stream):
            where = f"{place(system.path, record)}: record {record['id']!r}"
            raise DataError(f"{where} is not in {args.gold}; evaluate the split you predicted")
        if args.level == "generation" and not system.counts["generation"]:
            raise DataError(f"{system.path}: holds no answers of an LLM; leave out --level generation")
    sides = [(args.gold, systems[-1], 0), *((system.path, system, 1) for system in systems)]
    for path, system, side in sides if args.scheme == "strict" else ():
        both = system.counts["entity_other_scheme"], entity_pairs(system)
        lenient, strict = (sum(n for pair, n in pairs.items() if pair[side]) for pairs in both)
        if lenient > strict:
            remedy = "convert it with brat2iob.py, or use --scheme lenient"
            log(f"warning: {path}: {lenient - strict:,} entities are none in strict IOB2 (IOB1, IOBES?); {remedy}")
    known = {type_ for system in systems for pair in system.rows for type_ in pair}
    for type_ in sorted(set(args.types or ()) - known):
        log(f"warning: --types: neither gold nor a prediction has {type_!r}; check how it is written")


# ---------------------------------------------------------------------------- counting


def count_record(system, gold, pred, record, args, seen=None):
    """Add one record's two Sides to what was counted of a system.

    "entity_other_scheme", "token" and the facets hold pairs (what gold has, what is predicted), see `averages`; "any"
    and the RULES pairs with their class, see `alignments`; "input" what was read.
    """
    counts, read = system.counts, system.counts["input"]
    read["duplicates"] += pred.copies
    read["predicted"] += len(pred.spans)
    read["filtered"] += pred.filtered
    rows, document = system.rows, record["document"]
    for span in gold.spans:
        rows[span[2], span[2] if span in pred.spans else None].append(document)
    for span in pred.spans - gold.spans:
        rows[None, span[2]].append(document)
    if system.iob or args.gold_iob:
        counts["entity_other_scheme"].update(name_pairs(gold.other, pred.other))
    for rule, kind, one, other in alignments(gold.spans, pred.spans, args.rules) if args.rules else ():
        counts[rule][kind, one and one[2], other and other[2]] += 1
    counts["token"].update(zip(gold.tags, pred.tags, strict=True))
    for facet in args.facets:
        counts[facet].update(name_pairs(gold.spans, pred.spans, FACETS[facet], record, seen))


def name_pairs(gold, pred, name=itemgetter(2), *about):
    """Yield (name in gold, predicted name; None for nothing) of each span: its type, or the group of a facet."""
    for span in gold:
        named = name(span, *about)
        yield named, named if span in pred else None
    yield from ((None, name(span, *about)) for span in pred - gold)


def entity_pairs(system):
    """The Counter of the pairs of types of the chosen scheme."""
    return Counter({pair: len(documents) for pair, documents in system.rows.items()})


def mention(span, record):
    """The words of a span."""
    return span_text(record["text"], span[3] if span[3:] else [span[:2]]).split()


def seen_mentions(args):
    """{mention of the training file, in lower case and without white space: its types}."""
    seen = defaultdict(set)
    for record in read_records(args.train_file):
        for entity in record["entities"]:
            seen["".join(entity["text"].split()).casefold()].add(new_type(entity["type"], args))
    return seen


def by_length(span, record, seen):
    return LENGTHS[bisect_left(LENGTHS, (len(mention(span, record)), ""))][1]


def by_seen(span, record, seen):
    types = seen.get("".join(mention(span, record)).casefold())
    return "unseen" if not types else "seen" if span[2] in types else "seen with other type"


FACETS = {"length": by_length, "seen": by_seen, "document": lambda span, record, seen: record["doc_id"]}


def facet_scores(facet, pairs):
    """Scores of each group: lengths from the shortest, documents from the worst, else by name."""
    groups = averages(pairs, "groups")["groups"]
    lengths = [name for _, name in LENGTHS]
    order = {"length": lengths.index, "document": lambda name: groups[name]["f1"]}.get(facet)
    return {name: groups[name] for name in (sorted(groups, key=order) if order else groups)}


# ---------------------------------------------------------------------------- alignment


def pair_class(gold, pred):
    """The class of an aligned pair of spans (None: no span on that side)."""
    if not gold or not pred:
        return "missed" if gold else "spurious"
    same_span = gold[:2] == pred[:2] and gold[3:] == pred[3:]
    return CLASSES[2 * (not same_span) + (gold[2] != pred[2])]


def alignments(gold, pred, rules):
    """Yield (rule, class, gold span or None, predicted span or None), by component; rule "any" where all agree."""
    if gold == pred:
        yield from (("any", "correct", span, span) for span in sorted(gold))
        return
    for spans in components(gold | pred):
        golds, preds = [span for span in spans if span in gold], [span for span in spans if span in pred]
        if golds == preds:
            yield from (("any", "correct", span, span) for span in golds)
        elif not golds or not preds:
            yield from (("any", "missed", span, None) for span in golds)
            yield from (("any", "spurious", None, span) for span in preds)
        elif len(golds) == len(preds) == 1 and overlap(golds[0], preds[0]):
            yield "any", pair_class(golds[0], preds[0]), golds[0], preds[0]
        else:
            edges = overlapping(golds, preds)
            yield from ((rule, pair_class(*pair), *pair) for rule in rules for pair in align(golds, preds, edges, rule))


def components(spans):
    """Yield each run of spans with overlapping hulls, sorted, in text order."""
    found, reach = [], 0
    for span in sorted(spans):
        if span[0] >= reach and found:
            yield found
            found = []
        found.append(span)
        reach = max(reach, span[1])
    if found:
        yield found


def overlap(a, b):
    """How many characters two spans share, fragment by fragment."""
    parts = b[3] if b[3:] else (b,)
    return sum(max(0, min(x[1], y[1]) - max(x[0], y[0])) for x in (a[3] if a[3:] else (a,)) for y in parts)


def overlapping(golds, preds):
    """Return the sorted (gold span, predicted span, overlap) of spans that overlap, by one sweep to the right."""
    edges, live = [], ([], [])
    for span, side in sorted([(span, 0) for span in golds] + [(span, 1) for span in preds]):
        live[1 - side][:] = [other for other in live[1 - side] if other[1] > span[0]]
        for other in live[1 - side]:
            if shared := overlap(span, other):
                edges.append((other, span, shared) if side else (span, other, shared))
        live[side].append(span)
    return sorted(edges)


def align(golds, preds, edges, rule):
    """Align one component by a rule: return its (gold span or None, predicted span or None).

    One to one, of overlapping spans (`edges`), the most of what the rule puts first. Ties, which can only move a pair
    between types, go to the greatest overlap, then to equal types, then to the left.
    """
    most, weights = min(len(golds), len(preds)) + 1, {}
    shares, left = 1 + sum(edge[2] for edge in edges), 1 + 2 * most * max(span[0] for span in golds + preds)
    for gold, pred, shared in edges:
        worth = most ** RULES[rule][CLASSES.index(pair_class(gold, pred))] * shares + shared
        weights[gold, pred] = (worth * most + (gold[2] == pred[2])) * left - gold[0] - pred[0]
    pairs = best_assignment(weights)
    alone = sorted(set(preds).difference(pairs.values()))
    return [(gold, pairs.get(gold)) for gold in golds] + [(None, pred) for pred in alone]


def best_assignment(weights):
    """Return {row: column}, the heaviest matching of {(row, column): weight}, by the sparse Hungarian method.

    Row by row, the shortest augmenting path (Dijkstra on reduced costs) to a free column or to staying alone, which is
    a column of one's own. It ends early; a large component costs the square of its size at worst.
    """
    rows, held, owner, price, worth = {}, {}, {}, Counter(), Counter()
    for (row, column), weight in weights.items():
        rows.setdefault(row, [((-1 - len(rows),), 0)]).append((column, -weight))
    # Who overlaps thousands comes last, or all would look at it. Of a long chain, every second block of 16 comes first,
    # then every fourth, ...: a path doesn't leave what is joined, and the cost is n log n.
    order = {row: (len(rows[row]), (i >> 4) & -(i >> 4)) for i, row in enumerate(rows)}
    for root in sorted(rows, key=order.get):
        row, base, done, best, heap = root, 0, {}, {}, []
        while row is not None:
            for column, cost in rows[row]:
                length = base + cost - worth[row] - price[column]
                if column not in done and length < best.get(column, (length + 1,))[0]:
                    best[column] = length, row
                    heappush(heap, (length, column))
            base, column = heappop(heap)
            while column in done:
                base, column = heappop(heap)
            row = owner.get(column)
            if row is not None:
                done[column] = base
        for seen, length in done.items():
            price[seen] += length - base
            worth[owner[seen]] += base - length
        worth[root] += base
        while row != root:  # hand over along the path, back to the root
            row = best[column][1]
            owner[column] = row
            column, held[row] = held.get(row), column
    return {row: column for row, column in held.items() if column[0] >= 0}


# ---------------------------------------------------------------------------- scores


def prf(gold, pred, found, right):
    """F1, precision and recall from the credit on each side: `found` of gold, `right` of what is predicted."""
    precision, recall = right / pred if pred else UNDEFINED, found / gold if gold else UNDEFINED
    f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    return {"f1": f1 if gold or pred else UNDEFINED, "precision": precision, "recall": recall}


def tally(graded, score):
    """(score of all, {name: score of each}) of (name in gold, predicted name, count, credit): None is no name.

    `score` gets how many there are in gold, how many are predicted, and the credit of either.
    """
    gold, pred, found, right = sums = [Counter() for _ in range(4)]
    for true, guess, n, credit in graded:
        for name, number, credits in ((true, gold, found), (guess, pred, right)):
            if name is not None:
                number[name] += n
                credits[name] += n * credit
    each = {name: score(*(side[name] for side in sums)) for name in sorted(gold.keys() | pred.keys())}
    return score(*(side.total() for side in sums)), each


def averages(pairs, each="types"):
    """Scores from a Counter of (what gold has, what is predicted; None for nothing): of each, and averaged.

    Averages are micro, macro (over all that gold or the prediction has) and weighted by gold's counts.
    """

    def score(gold, pred, tp, _):
        return prf(gold, pred, tp, tp) | {"tp": tp, "fp": pred - tp, "fn": gold - tp, "support": gold}

    micro, scores = tally(((true, guess, n, true == guess) for (true, guess), n in pairs.items()), score)
    result = {"micro": micro}
    for name, weight in (("macro", lambda row: 1), ("weighted", itemgetter("support"))):
        total = sum(map(weight, scores.values()))
        sums = {n: fsum(row[n] * weight(row) for row in scores.values()) for n in ("f1", "precision", "recall")}
        result[name] = {n: part / total if total else UNDEFINED for n, part in sums.items()}
    return result | {each: scores}


def token_scores(pairs):
    """Scores from the counts of (gold tag, predicted tag): accuracy with O, all else without it, by type and by tag."""
    types, tags, same = Counter(), Counter(), sum(n for (true, guess), n in pairs.items() if true == guess)
    for (true, guess), n in pairs.items():
        types[split_tag(true)[1], split_tag(guess)[1]] += n
        tags[true if true != "O" else None, guess if guess != "O" else None] += n
    accuracy = same / pairs.total() if pairs else UNDEFINED
    return {"accuracy": accuracy, "by_type": averages(types), "by_tag": averages(tags, "tags")}


def semeval_scores(counts, scheme):
    """Scores of one scheme, over all and per type: recall is gold's side, precision the prediction's."""
    pairs, kinds = counts["any"] + counts["exact" if scheme == "partial" else scheme], Counter()
    kind_of = dict(zip(CLASSES, SCHEMES[scheme], strict=True))
    for (class_, *_), n in pairs.items():
        kinds[kind_of[class_]] += n
    credit = {name: {"COR": 1, "PAR": 0.5}.get(kind, 0) for name, kind in kind_of.items()}

    def score(gold, pred, found, right):
        order = dict.fromkeys(("POS", "ACT", "precision", "recall", "f1"))
        return order | {"POS": gold, "ACT": pred} | prf(gold, pred, found, right)

    total, types = tally(((gold, pred, n, credit[class_]) for (class_, gold, pred), n in pairs.items()), score)
    return {kind: kinds[kind] for kind in ("COR", "INC", "PAR", "MIS", "SPU")} | total | {"types": types}


# ---------------------------------------------------------------------------- where it goes wrong


def error_scores(counts):
    """Counts by class, F1 if all of a class were repaired, and {gold type: {predicted type: n}} with both margins."""
    classes, confusion = dict.fromkeys(CLASSES, 0), defaultdict(Counter)
    for (class_, gold, pred), n in (counts["any"] + counts["errors"]).items():
        classes[class_] += n
        confusion[gold or SPURIOUS][pred or MISSED] += n
    both, repaired = 2 * sum(classes.values()) - classes["spurious"] - classes["missed"], {}
    for name in CLASSES[1:]:
        n, right = classes[name], classes["correct"] + classes[name] * (name != "spurious")
        after = both + n * (name == "missed") - n * (name == "spurious")
        repaired[name] = 2 * right / after if after else UNDEFINED
    names = sorted({*confusion, *chain(*confusion.values())}, key=lambda name: (name in (SPURIOUS, MISSED), name))
    rows = {gold: confusion[gold] for gold in names if gold in confusion}
    confusion = {gold: {pred: row[pred] for pred in names if pred in row} for gold, row in rows.items()}
    return {"classes": classes, "f1_if_repaired": repaired, "confusion": confusion}


def error_pairs(gold, pred):
    """Yield the (class, gold span, predicted span, flags) of a record's joint alignment, in text order.

    Flags: "split", a gold span that several predictions overlap; "merge", a prediction that overlaps several of gold.
    """
    edges = overlapping(gold, pred)
    split, merge = Counter(edge[0] for edge in edges), Counter(edge[1] for edge in edges)
    for _, kind, one, other in alignments(gold, pred, ["errors"]):
        yield kind, one, other, ["split"] * (split[one] > 1) + ["merge"] * (merge[other] > 1)


def write_errors(out, system, gold, pairs):
    """Write a JSON line for each error of a record, with its context in the text."""
    text = gold["text"]
    head = {"system": system.name, "file": system.path, "id": gold["id"], "doc_id": gold["doc_id"]}
    for kind, *spans, flags in pairs if out else ():
        if kind == "correct":
            continue
        line = head | {"class": kind}
        for side, span in zip(("gold", "pred"), spans, strict=True):
            parts = span and (span[3] if span[3:] else [span[:2]])
            line[side] = span and {"start": span[0], "end": span[1], "type": span[2], "text": span_text(text, parts)}
            if span and span[3:]:
                line[side]["fragments"] = span[3]
        if all(spans):
            moved = (("left", spans[0][0] - spans[1][0]), ("right", spans[1][1] - spans[0][1]))
            line["boundary"] = [f"{edge} too {'long' if by > 0 else 'short'}" for edge, by in moved if by]
        first, last = min(s[0] for s in spans if s), max(s[1] for s in spans if s)
        line |= {"flags": flags, "context": text[max(0, first - AROUND) : last + AROUND]}
        out.write(plain(to_json(line)) + "\n")


# ---------------------------------------------------------------------------- answers of LLMs


def count_answer(found, pred, gold, guess, args):
    """Count how an LLM's answer to a record could be read, and what in it could not be placed.

    An item is a mention that the answer names: one of `entities`, or of `dropped`, with the reason. Of types that
    --types and --map_types leave out, no item is counted.
    """
    status, dropped, answer = pred.get("status", "ok"), pred.get("dropped", []), pred.get("answer") or ""
    if status == "empty" and not gold.spans and not gold.filtered:
        status = "ok"  # nothing to say, and nothing said
    reasons = Counter(item["reason"] for item in dropped if new_type(item["type"], args))
    invented, items = reasons["not_in_text"] + reasons["leaked"], len(guess.spans) + guess.copies + reasons.total()
    found.update([status])
    found.update(reasons)  # no reason is named as a status
    found.update(records=1, items=items, dropped=reasons.total(), invented=invented, with_items=bool(items))
    found["share"] += invented / items if items else 0
    found["complies"] += status == "ok" and all(item["reason"] != "unknown_type" for item in dropped)
    if status in PARSED:
        found.update(right=len(gold.spans & guess.spans), gold=len(gold.spans), predicted=len(guess.spans))
    joined = {(e["start"], e["end"], e["text"]) for e in pred.get("entities", ()) if "fragments" in e}
    for start, end, named in own_offsets(answer if isinstance(answer, str) else "\n".join(answer)):
        found["offsets"] += 1
        stands = pred["text"][start:end] == named or (start, end, named) in joined
        found["right_offsets"] += 0 <= start < end and stands


def own_offsets(answer):
    """The distinct (start, end, mention) that an answer in the format `spans` gives itself."""
    found, decoder, at = set(), json.JSONDecoder(), 0
    while (at := answer.find("{", at)) >= 0:
        try:
            item, end = decoder.raw_decode(answer, at)
        except (ValueError, RecursionError):
            at += 1  # cut, or no JSON: its status tells
            continue
        own = "start" in item
        at = end if own else at + 1  # what is inside an item is none of its own
        if type(item.get("start")) is type(item.get("end")) is int and isinstance(item.get("text"), str):
            found.add((item["start"], item["end"], item["text"]))
    return found


def generation_scores(found, micro):
    """Rates of how answers could be read. As they are: status `ok`; after repair: `salvaged` and `truncated`, too."""

    def rate(*parts, of="records"):
        return sum(found[part] for part in parts) / found[of] if found[of] else UNDEFINED

    right, wrong = micro["tp"], micro["fp"] + found["dropped"]
    return {
        "records": found["records"],
        "parse_rate": rate("ok"),
        "parse_rate_repaired": rate(*PARSED),
        "compliance_rate": rate("complies"),
        **{f"{status}_rate": rate(status) for status in ("truncated", "empty", "refused", "failed")},
        "items": found["items"],
        "hallucination_rate": rate("invented", of="items"),
        "hallucination_rate_macro": rate("share", of="with_items"),
        **{f"{reason}_rate": rate(reason, of="items") for reason in ("leaked", "unknown_type", "surplus")},
        "own_offsets": found["offsets"],
        "boundary_accuracy": rate("right_offsets", of="offsets"),
        "f1_with_dropped": prf(micro["support"], right + wrong, right, right)["f1"],
        "f1_of_parsed": prf(found["gold"], found["predicted"], found["right"], found["right"])["f1"],
    }


# ---------------------------------------------------------------------------- documents resampled


def document_counts(runs, documents):
    """(runs, documents, types, 3) floats: tp, fp and fn."""
    import numpy as np

    names = sorted({pair[0] or pair[1] for system in runs for pair in system.rows})
    table = np.zeros((len(runs), documents, max(1, len(names)), 3))
    for counts, system in zip(table, runs, strict=True):
        for (gold, pred), found in system.rows.items():
            kind = 1 if gold is None else 2 if pred is None else 0
            counts[:, names.index(gold or pred), kind] = np.bincount(found, minlength=documents)
    return table


def f1_of(counts):
    """F1 from an array whose last axis is tp, fp, fn; 0 where there is nothing."""
    import numpy as np

    tp, both = counts[..., 0], 2 * counts[..., 0] + counts[..., 1] + counts[..., 2]
    return np.divide(2 * tp, both, out=np.zeros_like(both), where=both > 0)


def weighted_sums(table, draws):
    """(draws, runs, types, 3): the counts over all documents, each as often as a draw has it."""
    import numpy as np

    runs, n, types, _ = table.shape
    flat = table.swapaxes(0, 1).reshape(n, runs * types * 3)
    return np.array([np.asarray(weights, float) @ flat for weights in draws]).reshape(-1, runs, types, 3)


def intervals(table, args):
    """95 % percentile intervals, by --resamples bootstraps of documents, of scores recomputed from summed counts.

    Of several runs, the mean of their scores on the same documents. The macro F1 of a resample is over the types that
    it has. Time: resamples x runs x documents x types.
    """
    import numpy as np

    rng, n = np.random.default_rng(args.seed), table.shape[1]
    totals = weighted_sums(table, (np.bincount(rng.integers(n, size=n), minlength=n) for _ in range(args.resamples)))
    micro, present = totals.sum(2), np.maximum(1, totals.any(3).sum(2))
    figures = {"f1": f1_of(micro), "precision": f1_of(micro[..., [0, 1, 1]]), "recall": f1_of(micro[..., [0, 2, 2]]),
               "macro_f1": f1_of(totals).sum(2) / present}  # fmt: skip
    bounds = {name: np.percentile(each.mean(1), (2.5, 97.5)).tolist() for name, each in figures.items()}
    return bounds | {"documents": n, "resamples": args.resamples, "seed": args.seed, "degenerate": n < 2}


def swap_test(first, other, args):
    """Paired approximate randomization: (difference of micro F1, two-sided p, whether all swaps were tried).

    A swap gives the counts of a document to the other system, run by run (to the runs in turn, where one has more).
    Documents with equal counts change nothing.
    """
    import numpy as np

    sides = [table.sum(2, keepdims=True) for table in (first, other)]
    turns = [np.resize(side, (len(mine), *side.shape[1:])) for mine, side in zip(sides, sides[::-1], strict=True)]
    ours, moves = np.concatenate(sides), np.concatenate(turns) - np.concatenate(sides)  # the runs of both
    moves = moves[:, moves.any((0, 2, 3))]
    n, split = moves.shape[1], len(first)

    def difference(counts):
        f1 = f1_of(counts)[..., 0]
        return f1[..., split:].mean(-1) - f1[..., :split].mean(-1)

    exact, rng = n < 60 and 2**n <= args.resamples + 1, np.random.default_rng(args.seed)
    swaps = product((0, 1), repeat=n) if exact else (rng.integers(0, 2, n) for _ in range(args.resamples))
    observed = float(difference(ours.sum(1)))
    swapped = difference(ours.sum(1) + weighted_sums(moves, swaps))
    hits = int((abs(swapped) >= abs(observed) - 1e-12).sum())
    return observed, hits / 2**n if exact else (hits + 1) / (args.resamples + 1), exact


def compare_systems(groups, documents, args):
    """Return ({name: intervals}, the tests of each system against the first, with Holm's correction)."""
    tables = {name: document_counts(runs, documents) for name, runs in groups.items()}
    first, *others = tables
    tests = []
    for name in others:
        difference, p, exact = swap_test(tables[first], tables[name], args)
        method = "all swaps" if exact else f"{args.resamples} random swaps, seed {args.seed}"
        tests.append({"system": name, "against": first, "metric": "f1", "difference": difference, "p": p,
                      "method": f"approximate randomization of {documents} documents, {method}"})  # fmt: skip
    worst = 0.0
    for rank, test in enumerate(sorted(tests, key=lambda test: test["p"])):
        test["p_holm"] = worst = max(worst, min(1.0, test["p"] * (len(tests) - rank)))
    return {name: intervals(table, args) for name, table in tables.items()}, tests


# ---------------------------------------------------------------------------- the report


def undefined(node, path=""):
    """The paths of the figures at and below a node that are 0.0 because there was nothing to divide by."""
    if isinstance(node, dict):
        return [found for key in node for found in undefined(node[key], f"{path}.{key}" if path else key)]
    return [path] if node is UNDEFINED else []


def number(value):
    """Whether a value of a sidecar is a finite number, 0 or more."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < float("inf")


def plain(text):
    """Text that UTF-8 can hold: a file name may be none."""
    return text.encode("utf-8", "replace").decode("utf-8")


def system_scores(system, args):
    """The scores of one prediction file, in the order that metrics.json has."""
    counts, scores, info, entity = system.counts, {}, system.info, averages(entity_pairs(system))
    if "entity" in args.levels:
        scores["entity"] = entity
        if system.iob or args.gold_iob:
            scores["entity_other_scheme"] = averages(counts["entity_other_scheme"])
    if "semeval" in args.levels:
        scores["semeval"] = {scheme: semeval_scores(counts, scheme) for scheme in SCHEMES}
    if "token" in args.levels:
        scores["token"] = token_scores(counts["token"])
    if "generation" in args.levels and counts["generation"]:
        scores["generation"] = generation_scores(counts["generation"], entity["micro"])
    if "entity" in args.levels:
        scores["errors"] = error_scores(counts)
    if args.facets:
        scores["by"] = {facet: facet_scores(facet, counts[facet]) for facet in args.facets}
    predicted = info["counts"].get("records") if isinstance(info.get("counts"), dict) else None
    for name in ("seconds", "cost") if number(predicted) and predicted else ():
        if number(info.get(name)) and info[name] < 1e12:  # a broken sidecar is none
            scores[f"{name}_per_1000"] = 1000.0 * info[name] / predicted
    scores["input"] = {key: counts["input"][key] for key in ("missing", "duplicates", "filtered")}
    return scores | {"undefined": undefined(scores)}


def over_runs(trees, how=fmean):
    """One tree of numbers from several; a type or group that a run lacks counts as 0."""
    if not any(isinstance(tree, dict) for tree in trees):
        return how([tree or 0 for tree in trees])
    keys = dict.fromkeys(chain.from_iterable(tree or {} for tree in trees))
    return {key: over_runs([(tree or {}).get(key) for tree in trees], how) for key in keys}


def group_scores(runs, bounds, args):
    """The scores of one system: of its file, or the means of its runs, and their standard deviations."""
    trees = [system_scores(system, args) for system in runs]
    scores = trees[0]
    if len(trees) > 1:
        zeros = list(dict.fromkeys(zero for tree in trees for zero in tree.pop("undefined")))
        spread = {"files": [system.path for system in runs]}
        if "entity" in args.levels:
            spread["f1"] = [tree["entity"]["micro"]["f1"] for tree in trees]
            spread["sd"] = {mean: over_runs([tree["entity"][mean] for tree in trees], stdev)
                            for mean in ("micro", "macro")}  # fmt: skip
        sections = dict.fromkeys(chain(*trees))  # answers, or seconds, that not all have: of those that do
        scores = {name: over_runs([tree[name] for tree in trees if name in tree]) for name in sections}
        scores |= {"runs": spread, "undefined": zeros}
    levels = {name: scores[name] for name in scores if name in LEVELS}
    return levels | ({"intervals": bounds} if bounds else {}) | scores


def signature(systems, facts, args):
    """What must agree for two tables to be comparable, in one line (the idea is sacreBLEU's)."""
    kinds = {args.gold_iob, *(system.iob for system in systems)}
    scheme = "+".join(["spans"] * (False in kinds) + [f"iob-{args.scheme}"] * (True in kinds))
    unit = "character" if False in kinds else "token"
    counts = "|".join(f"{key}:{facts[key]}" for key in ("records", "documents", "entities"))
    types = f"|types:{'+'.join(sorted(args.types))}" if args.types else ""
    if args.map_types:
        path = args.map_types.removesuffix(":group")
        types += f"|map:{os.path.basename(args.map_types)}:{sha256(path)[:8]}"
    return f"scheme:{scheme}|unit:{unit}|macro:gold+pred{types}|{counts}|version:{VERSION}"


def make_report(systems, facts, args):
    """metrics.json: signature, systems, tests, and the options that made it."""
    groups, bounds, tests = {}, {}, []
    for system in systems:
        groups.setdefault(system.name, []).append(system)
    if args.resamples and not find_spec("numpy"):
        log("warning: numpy is not installed: no intervals, no tests")
    elif args.resamples:
        bounds, tests = compare_systems(groups, facts["documents"], args)
        if facts["documents"] < FEW:
            log(f"warning: {facts['documents']} documents: intervals and tests by document say little below {FEW}")
    options = ("level", "scheme", "by", "train_file", "types", "map_types", "allow_missing", "resamples", "seed")
    return {
        "signature": signature(systems, facts, args),
        "systems": {name: group_scores(runs, bounds.get(name), args) for name, runs in groups.items()},
        "tests": tests,
        "options": {name: getattr(args, name) for name in options},
    }


def comparison(report):
    """The rows of the comparison, (system, {column: figure}), with each column that a system has."""
    other, rows = OTHER[report["options"]["scheme"]], []
    marks = {test["system"]: f"{test['p_holm']:.4f}{'*' * (test['p_holm'] < 0.05)}" for test in report["tests"]}
    for name, scores in report["systems"].items():
        row = {}
        for column, path in COLUMNS.items():
            found = reduce(lambda node, key: node.get(key, {}), path.split("."), scores)
            row[column.format(other)] = found if found != {} else "-"
        if "intervals" in scores:
            row["95 %"] = "{:.4f}-{:.4f}".format(*scores["intervals"]["f1"])
        if row["runs"] != "-":
            row["runs"] = len(row["runs"])
        rows.append((name, row | {"p": marks.get(name, "-")}))
    columns = [column for column in rows[0][1] if any(row[column] != "-" for _, row in rows)]
    return [(name, {column: row[column] for column in columns}) for name, row in rows]


def tables(scores, args):
    """Yield (title, [(row name, {column: figure})]) for all that is printed of one system."""
    token = scores.get("token", {})
    parts = {"entity": scores.get("entity"), f"entity, {OTHER[args.scheme]}": scores.get("entity_other_scheme"),
             "token": token.get("by_type"), "token, by tag": token.get("by_tag")}  # fmt: skip
    for title, part in parts.items():
        if part and (title != "token, by tag" or args.level == "token"):
            *means, (_, each) = part.items()
            yield title, [*(each.items() if "type" in args.by else ()), *means]
    if token:
        yield "tokens, O included", [("accuracy", {"": token["accuracy"]})]
    if "semeval" in scores:
        yield "SemEval-2013", scores["semeval"].items()
    for facet in (facet for facet in args.facets if facet in args.by):  # the others are of the HTML report
        yield f"by {facet}", scores["by"][facet].items()
    if "errors" in scores:
        classes, repaired, confusion = scores["errors"].values()
        yield "errors", [(kind, {"n": n, "F1 if repaired": repaired.get(kind, "-")}) for kind, n in classes.items()]
        columns = [*sorted({column for row in confusion.values() for column in row} - {MISSED}), MISSED]
        yield (
            "gold, predicted as",
            [(true, {column: row.get(column, 0) for column in columns}) for true, row in confusion.items()],
        )
    if "generation" in scores:
        yield "answers", [(rate, {"": value}) for rate, value in scores["generation"].items()]


def figure(value):
    """A cell as text: floats with 4 decimals, nothing that a terminal would obey."""
    text = f"{value:.4f}" if isinstance(value, float) else str(value)
    return "".join(character if character.isprintable() else "\ufffd" for character in text)


def aligned(title, rows, markdown=False):
    """A table of (row name, {column: figure}) as text, P R F1 before counts; "-" for what a row has not."""
    rows, shown = list(rows), {"precision": "P", "recall": "R", "f1": "F1"}
    columns = dict.fromkeys(column for _, row in rows for column in row if not isinstance(row[column], dict))
    if "f1" in columns and "tp" in columns:
        columns = dict.fromkeys((*shown, *columns))
    cells = [[title, *(shown.get(column, column) for column in columns)]]
    cells += [[name, *(row.get(column, "-") for column in columns)] for name, row in rows]
    cells = [list(map(figure, row)) for row in cells]
    if markdown:
        cells = [[cell.replace("|", "\\|") for cell in row] for row in cells]
        return "\n".join(f"| {' | '.join(row)} |" for row in [cells[0], ["---", *["--:"] * len(columns)], *cells[1:]])
    first, *widths = (max(map(len, column)) for column in zip(*cells, strict=True))
    return "\n".join("  ".join([row[0].ljust(first), *map(str.rjust, row[1:], widths)]).rstrip() for row in cells)


def render(report, args):
    """The report as text or Markdown: the comparison, each system's tables, what is undefined, the signature."""
    markdown, zeros = args.format == "markdown", []
    blocks = [aligned("system", comparison(report), markdown)]
    for name, scores in report["systems"].items():
        blocks += [aligned(f"{name}: {title}", rows, markdown) for title, rows in tables(scores, args)]
        zeros += [f"{name} {zero}" for zero in scores["undefined"] if not re.match(r"semeval.*\.types\.|by\.", zero)]
    blocks += [f"undefined, shown as 0.0000: {figure(', '.join(zeros))}"] if zeros else []
    if report["tests"]:
        first = report["tests"][0]["against"]
        blocks.append(f"p: of a difference in F1 from {figure(first)} as large as this by chance; * below 0.05 (Holm)")
    return "\n\n".join([*blocks, f"signature: {figure(report['signature'])}"])


def write_html(report, systems, kept, args):
    """Write the report: the template with its data, as JSON that can't end its element.

    What has an order is a list: JavaScript sorts the keys of objects that look like numbers.
    """
    columns = [args.names.index(name) for name in report["systems"]]  # of several runs, the first
    histories = [(systems[i].name, curve(systems[i].info.get("history"))) for i in columns]
    data = {
        "title": os.path.basename(args.gold),
        "signature": report["signature"],
        "systems": list(report["systems"].items()),
        "comparison": [(name, {key: figure(v) for key, v in row.items()}) for name, row in comparison(report)],
        "history": [(name, points) for name, points in histories if points],
        "records": [[*head, [pairs[i] for i in columns]] for *head, pairs in kept],
    }
    with writing(args.html) as out:
        out.write(plain(TEMPLATE.replace("{{DATA}}", to_json(data).replace("<", "\\u003c"))))


def curve(history):
    """The points of a sidecar's history that can be drawn: a loss may be NaN."""
    points = [point for point in history if isinstance(point, dict)] if isinstance(history, list) else []
    points = [{key: point[key] for key in ("step", "loss", "f1") if number(point.get(key))} for point in points]
    return [point for point in points if "step" in point and len(point) > 1]


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument_group("data").add_argument
    add("--gold", metavar="FILE", help="the truth, JSONL or IOB (default: the columns of --pred)")
    add("--pred", required=True, nargs="+", action="extend", metavar="FILE", help="predictions, a file per run")
    add("--names", nargs="+", action="extend", metavar="NAME",
        help="of the systems; files of one name are its runs (default: the files' names)")  # fmt: skip
    missing = "count a gold record without a prediction as nothing predicted, not as an error (default: %(default)s)"
    add("--allow_missing", action="store_true", help=missing)
    add("--train_file", metavar="FILE", help="whose mentions are seen, for --by seen (default: %(default)s)")
    add("--types", nargs="+", metavar="TYPE", help="score these alone, as renamed (default: all)")
    add("--map_types", metavar="FILE", help="old to new type, as in brat2iob.py (default: %(default)s)")
    add = parser.add_argument_group("scoring").add_argument
    levels = ("entity", "token", "semeval", "generation", "all")
    add("--level", choices=levels, default="all", help="what to score (default: %(default)s)")
    scheme = "what is an entity in IOB: strict IOB2, or lenient, as in conlleval and by default in seqeval; "
    scheme += "the other is printed beside it (default: %(default)s)"
    add("--scheme", choices=("strict", "lenient"), default="strict", help=scheme)
    add("--by", nargs="+", choices=("type", *FACETS), default=["type"],
        help="of what there are tables (default: type)")  # fmt: skip
    add("--resamples", type=int, default=1000, metavar="N",
        help="draws of documents for intervals, swaps for tests; 0: neither (default: %(default)s)")  # fmt: skip
    add("--seed", type=int, default=42, help="of the draws and swaps (default: %(default)s)")
    add = parser.add_argument_group("output").add_argument
    add("--format", choices=("table", "markdown", "json"), default="table", help="printed (default: %(default)s)")
    add("--output_file", metavar="JSON", help="write the JSON to this file, too (default: %(default)s)")
    add("--html", metavar="FILE", help="write a report to browse (default: %(default)s)")
    add("--errors", metavar="JSONL", help="write each error (default: %(default)s)")
    add("--min_f1", type=float, metavar="X", help="exit 1 where a micro F1 is below X (default: %(default)s)")
    args = parser.parse_args(argv)
    if not args.names:
        names = [os.path.basename(path) for path in args.pred]
        args.names = names if len(set(names)) == len(names) else args.pred
    for wrong, problem in usage_errors(args):
        if wrong:
            parser.error(problem)
    args.column = None if args.gold else -2
    args.gold = args.gold or args.pred[0]
    args.levels = levels[:-1] if args.level == "all" else (args.level,)
    args.resamples *= "entity" in args.levels
    args.rules = ["errors"] * ("entity" in args.levels) + ["strict", "exact", "type"] * ("semeval" in args.levels)
    wanted = FACETS if args.html else args.by
    args.facets = [name for name in FACETS if name in wanted and (name != "seen" or args.train_file)]
    args.gold_iob, args.type_map = is_iob(args.gold), {}
    return args


def usage_errors(args):
    """(whether it is so, what to say) of all that the flags must not be together."""
    type_map, pairs = (args.map_types or "").removesuffix(":group"), set(zip(args.names, args.pred, strict=False))
    inputs = {os.path.realpath(path) for path in (args.gold, *args.pred, args.train_file, type_map) if path}
    outputs = [os.path.realpath(path) for path in (args.output_file, args.html, args.errors) if path]
    beyond = args.min_f1 is not None or args.html or args.errors or args.by != ["type"]
    return (
        (len(args.names) != len(args.pred),
         f"--names: {len(args.names)} for the {len(args.pred)} files of --pred; give each its name"),
        (len(pairs) < len(args.pred), "--pred: one file stands twice under one name"),
        (not args.gold and (len(args.pred) > 1 or not is_iob(args.pred[0])),
         "--gold: give the truth; without it, --pred is one IOB file with gold and predicted columns"),
        (len(inputs.union(outputs)) < len(inputs) + len(outputs),
         "--output_file, --html, --errors: one of them is an input, or another output; name another file"),
        ("seen" in args.by and not args.train_file, "--by seen: give the --train_file whose mentions are seen"),
        (args.resamples < 0 or args.seed < 0, "--resamples and --seed: 0 or more"),
        (args.min_f1 is not None and not 0 <= args.min_f1 <= 1, "--min_f1: from 0 to 1"),
        (args.level not in ("all", "entity") and beyond,
         f"--min_f1, --html, --errors and --by need entities, which --level {args.level} leaves out"),
    )  # fmt: skip


def main(argv=None):
    args = parse_args(argv)
    args.type_map = read_type_map(args.map_types) if args.map_types else {}
    systems = [open_system(name, path, args) for name, path in zip(args.names, args.pred, strict=True)]
    kept = [] if args.html else None
    with writing(args.errors) if args.errors else nullcontext() as errors:
        facts = compare(systems, args, errors, kept)
    report = make_report(systems, facts, args)
    if args.html:
        write_html(report, systems, kept, args)
    text = plain(json.dumps(report, ensure_ascii=False, allow_nan=False, indent=2))
    if args.output_file:
        with writing(args.output_file) as out:
            out.write(text + "\n")
    if args.format == "json":
        sys.stdout.reconfigure(encoding="utf-8")
    print(text if args.format == "json" else render(report, args))
    say_what_was_read(systems, facts, args)
    low = [name for name, scores in report["systems"].items()
           if args.min_f1 and scores["entity"]["micro"]["f1"] < args.min_f1]  # fmt: skip
    for name in low:
        log(f"error: {name}: micro F1 is below --min_f1 {args.min_f1}")
    return int(bool(low))


def say_what_was_read(systems, facts, args):
    """The last lines: what each file held, and what of it was left out."""
    other = ", {:,} of types left out" if args.types or args.type_map else ""
    for system in systems:
        read = system.counts["input"]
        found = f"{read['predicted']:,} entities, {read['duplicates']:,} duplicates left out"
        log(f"{system.name}: {found}{other.format(read['filtered'])}, {read['missing']:,} records without a prediction")
    size = f"{facts['records']:,} records, {facts['documents']:,} documents, {facts['entities']:,} entities"
    log(f"{args.gold}: {size}, {facts['duplicates']:,} duplicates left out{other.format(facts['filtered'])}")


TEMPLATE = r"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>NER report</title>
<style>
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #5b6570; --line: #d5dade; --page: #fff; --card: #f6f7f9; --heat: 0, 90, 160 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8eaed; --soft: #a3adb8; --line: #3b434c; --page: #14171a; --card: #1e2328; --heat: 86, 170, 233 }
}
* { box-sizing: border-box }
body { margin: 0 auto; padding: 1.2rem; max-width: 75rem; color: var(--ink); background: var(--page); font: 15px/1.5 system-ui, sans-serif }
h1 { font-size: 1.5rem; margin: 0 }
h2 { font-size: 1.1rem; margin: 2.2rem 0 .6rem; border-bottom: 1px solid var(--line) }
h3 { font-size: .95rem; margin: .4rem 0 }
code, .soft { color: var(--soft); font-size: .85rem; overflow-wrap: anywhere }
.wide { overflow-x: auto }
.row { display: flex; flex-wrap: wrap; gap: 1.5rem }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .87rem }
th, td { padding: .2rem .6rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: var(--page) }
.bar { display: inline-block; height: .65rem; vertical-align: middle; margin-right: .4rem; border-radius: 2px }
svg text { fill: var(--ink); font: 12px system-ui, sans-serif }
svg .axis { stroke: var(--line) }
svg { max-width: 100% }
.controls { display: flex; flex-wrap: wrap; gap: .5rem; align-items: center; position: sticky; top: 0; padding: .5rem 0; background: var(--page); z-index: 2 }
select, input, button { font: inherit; color: inherit; background: var(--card); border: 1px solid var(--line); border-radius: 5px; padding: .25rem .5rem; max-width: 14rem }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1rem; font-size: .85rem }
article { scroll-margin-top: 4rem; background: var(--card); border: 1px solid var(--line); border-left: 4px solid var(--line); border-radius: 6px; margin: .7rem 0; padding: .5rem .8rem }
article.now { border-left-color: #d55e00 }
.side { display: grid; grid-template-columns: minmax(8rem, 11rem) 1fr; gap: .6rem; border-top: 1px dotted var(--line); padding: .3rem 0 }
.side b { font-size: .85rem; overflow-wrap: anywhere }
.text { white-space: pre-wrap; overflow-wrap: anywhere; min-width: 0 }
.text span { background-repeat: no-repeat; -webkit-box-decoration-break: clone; box-decoration-break: clone }
.tag { font-size: .66rem; padding: 0 .25rem; margin-right: .15rem; border-radius: 3px; border: 1px solid; user-select: none; white-space: nowrap }
.tag.bad { border-style: dashed; font-weight: 700 }
@media (max-width: 40rem) { body { padding: .7rem } .side { grid-template-columns: 1fr; gap: 0 } .controls { position: static } }
@media print { .controls { display: none } body { max-width: none } article, section { break-inside: avoid } }
</style>
</head>
<body>
<script id="data" type="application/json">{{DATA}}</script>
<script>
"use strict";
// Objects have no prototype: a type may be named "constructor". What has an order is a list.
const bare = (key, value) => value && typeof value === "object" && !Array.isArray(value) ? Object.assign(Object.create(null), value) : value;
const data = JSON.parse(document.getElementById("data").textContent, bare);
const { systems, records } = data, names = systems.map(([name]) => name);
// Okabe and Ito's colours, which the colour-blind tell apart; what they mean is always written, too
const COLOURS = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#b0a000", "#7f7f7f"];
const SIGNS = { correct: "", type: "≠ type", boundary: "↔ boundary", type_boundary: "≠↔ both", missed: "∅ missed", spurious: "+ spurious" };
const DASHES = ["", "6 3", "2 3", "8 3 2 3", "1 4"];
const colour = i => COLOURS[i % COLOURS.length];
const types = [...new Set(systems.flatMap(([, s]) => Object.keys(s.entity.types)))].sort();
const shade = type => colour(types.indexOf(type));
const width = Math.min(640, document.body.clientWidth - 24);
const show = (value, column) => typeof value !== "number" ? value : /^(f1|precision|recall)$/.test(column) || !Number.isInteger(value) ? value.toFixed(4) : String(value);

function make(parent, tag, text, attributes = {}) {  // text is always text, never markup
  const vector = parent instanceof SVGElement || tag === "svg";
  const node = vector ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (text !== null && text !== undefined) node.textContent = text;
  return parent.appendChild(node);
}
function section(title, about) {
  const node = make(document.body, "section", null);
  make(node, "h2", title);
  if (about) make(node, "p", about, { class: "soft" });
  return node;
}
function table(parent, title, rows, decorate) {
  const columns = [...new Set(rows.flatMap(([, row]) => Object.keys(row)))];
  const node = make(make(parent, "div", null, { class: "wide" }), "table", null);
  const head = make(node, "tr", null);
  [title, ...columns].forEach(name => make(head, "th", name));
  for (const [name, row] of rows) {
    const line = make(node, "tr", null);
    make(line, "td", name);
    for (const column of columns) {
      const value = Object.hasOwn(row, column) ? row[column] : undefined, cell = make(line, "td", value === undefined ? "-" : show(value, column));
      if (decorate) decorate(cell, value, name, column);
    }
  }
  return node;
}
function legend(parent, labels, mark) {
  const node = make(parent, "div", null, { class: "legend" });
  labels.forEach((label, i) => {
    const item = make(node, "span", null);
    if (mark) mark(item, i);
    else make(item, "span", "", { class: "bar", style: `width:.9rem;background:${colour(i)}` });
    item.append(label);
  });
}

function comparison() {
  const node = section("Comparison", "Micro F1 with its 95 % interval over documents; p: a difference from the first system this large by chance, * below 0.05 (Holm).");
  const low = Math.min(...systems.map(([, s]) => (s.intervals || { f1: [s.entity.micro.f1] }).f1[0]));
  const from = Math.max(0, Math.floor(low * 10 - 0.5) / 10), x = value => 130 + (width - 210) * (value - from) / (1 - from);
  const height = 26 * systems.length + 24;
  const svg = make(node, "svg", null, { width, height, role: "img", "aria-label": "F1 of each system with its interval" });
  for (let tick = 0; tick <= 4; tick++) {
    const value = from + (1 - from) * tick / 4;
    make(svg, "line", null, { x1: x(value), x2: x(value), y1: 0, y2: height - 18, class: "axis" });
    make(svg, "text", value.toFixed(2), { x: x(value), y: height - 4, "text-anchor": "middle" });
  }
  systems.forEach(([name, scores], i) => {
    const y = 16 + 26 * i, f1 = scores.entity.micro.f1, bounds = (scores.intervals || {}).f1;
    make(svg, "text", name.length > 18 ? name.slice(0, 17) + "…" : name, { x: 0, y: y + 4 });
    if (bounds) make(svg, "line", null, { x1: x(bounds[0]), x2: x(bounds[1]), y1: y, y2: y, stroke: colour(i), "stroke-width": 4, "stroke-opacity": .5 });
    make(svg, "circle", null, { cx: x(f1), cy: y, r: 5, fill: colour(i) });
    make(svg, "text", f1.toFixed(4), { x: width - 50, y: y + 4 });
  });
  table(node, "system", data.comparison);
}

function byType() {
  const node = section("By type", "F1 of each type; the number of gold entities behind its name.");
  legend(node, names);
  const support = type => Math.max(...systems.map(([, s]) => (s.entity.types[type] || { support: 0 }).support));
  for (const type of [...types].sort((a, b) => support(b) - support(a))) {
    const line = make(node, "div", null, { class: "side" });
    make(line, "b", `${type} (${show(support(type))})`);
    const cell = make(line, "div", null);
    systems.forEach(([name, s], i) => {
      const score = s.entity.types[type] || { f1: 0, precision: 0, recall: 0 };
      const row = make(cell, "div", null, { title: `${name}: P ${score.precision.toFixed(4)} R ${score.recall.toFixed(4)}`, style: "line-height:1.15" });
      make(row, "span", "", { class: "bar", style: `width:calc((100% - 4rem) * ${Math.max(.005, score.f1)});background:${colour(i)}` });
      make(row, "span", score.f1.toFixed(4), { class: "soft" });
    });
  }
}

function errors() {
  const node = section("Errors", "Each gold and predicted entity in one class; beside it the micro F1 if all of that class were repaired.");
  table(node, "system", systems.map(([name, s]) => [name, Object.fromEntries(Object.entries(s.errors.classes).map(
    ([kind, n]) => [kind, kind in s.errors.f1_if_repaired ? `${Math.round(n * 100) / 100} (→ ${s.errors.f1_if_repaired[kind].toFixed(4)})` : n]))]));
  const maps = make(node, "div", null, { class: "row" });
  for (const [name, s] of systems) {
    const box = make(maps, "div", null, { style: "max-width:100%" }), cells = s.errors.confusion;
    make(box, "h3", `${name}: gold (rows), predicted (columns), of aligned pairs`);
    const columns = [...types.filter(type => Object.values(cells).some(row => row[type])), "(missed)"];
    const rows = [...types, "(spurious)"].filter(type => cells[type]);
    table(box, "", rows.map(type => [type, Object.fromEntries(columns.map(column => [column, cells[type][column] || 0]))]), (cell, value, row) => {
      const total = Object.values(cells[row]).reduce((a, b) => a + b, 0), share = value / total;
      cell.style.background = `rgba(var(--heat), ${(.85 * share).toFixed(3)})`;
      if (share > .8) cell.style.color = "var(--page)";
      if (!value) cell.style.color = "var(--soft)";
    });
  }
}

function lines(parent, title, series, labels, top) {  // series: [[name, [y or null, one for each label]]]
  const box = make(parent, "div", null), wide = Math.min(420, width), height = 200;
  make(box, "h3", title);
  const svg = make(box, "svg", null, { width: wide, height, role: "img", "aria-label": title });
  const x = i => 44 + (wide - 70) * (labels.length < 2 ? .5 : i / (labels.length - 1)), y = value => 12 + (height - 46) * (1 - value / top);
  for (let tick = 0; tick <= 4; tick++) {
    make(svg, "line", null, { x1: 44, x2: wide - 20, y1: y(top * tick / 4), y2: y(top * tick / 4), class: "axis" });
    make(svg, "text", (top * tick / 4).toFixed(2), { x: 38, y: y(top * tick / 4) + 4, "text-anchor": "end" });
  }
  const every = Math.ceil(labels.length / 6);
  labels.forEach((label, i) => { if (i % every === 0) make(svg, "text", label, { x: x(i), y: height - 14, "text-anchor": "middle" }); });
  series.forEach(([name, values]) => {
    const i = names.indexOf(name), points = values.map((value, j) => value === null ? null : [x(j), y(value)]).filter(Boolean);
    make(svg, "polyline", null, { points: points.map(point => point.join()).join(" "), fill: "none", stroke: colour(i), "stroke-width": 2, "stroke-dasharray": DASHES[i % DASHES.length] });
    if (points.length < 40) points.forEach(([cx, cy]) => make(svg, "circle", null, { cx, cy, r: 3, fill: colour(i) }));
  });
}
function facets() {
  const found = systems.filter(([, s]) => s.by && s.by.length);
  if (found.length) {
    const node = section("By length", "Recall by the length of the gold mention, precision by that of the predicted one, in words; whole predictions.");
    const order = label => parseInt(label), labels = [...new Set(found.flatMap(([, s]) => Object.keys(s.by.length)))].sort((a, b) => order(a) - order(b));
    legend(node, names);
    const row = make(node, "div", null, { class: "row" });
    for (const [figure, base] of [["recall", "tp fn"], ["precision", "tp fp"]])
      lines(row, figure, found.map(([name, s]) => [name, labels.map(label => {
        const group = s.by.length[label];
        return group && base.split(" ").some(key => group[key]) ? group[figure] : null;
      })]), labels.map(label => label.replace(/ words?/, "")), 1);
  }
  const seen = systems.flatMap(([name, s]) => Object.entries((s.by || {}).seen || {}).map(([key, group]) => [names.length > 1 ? `${name}: ${key}` : key, group]));
  if (seen.length) table(section("Mentions seen in training"), "", seen);
  const f1s = new Map();  // document -> {system: F1}
  for (const [name, s] of systems) for (const [doc, group] of Object.entries((s.by || {}).document || {}))
    f1s.set(doc, { "gold entities": group.support, ...f1s.get(doc), [name]: group.f1.toFixed(4) });
  const worst = [...f1s].map(([doc, row]) => [names.reduce((sum, name) => sum + Number(row[name] || 0), 0), doc, row]).sort((a, b) => a[0] - b[0]);
  if (worst.length > 1) {
    const node = section("By document", `F1 of the ${Math.min(20, worst.length)} worst of ${worst.length} documents with entities; --by document prints all.`);
    table(node, "document", worst.slice(0, 20).map(([, doc, row]) => [doc, row]));
  }
  if (data.history.length) {
    const node = section("Training", "By step, as the models' sidecars tell: the loss, and F1 on the development file.");
    legend(node, names);
    const row = make(node, "div", null, { class: "row" });
    for (const figure of ["loss", "f1"]) {
      const steps = [...new Set(data.history.flatMap(([, points]) => points).filter(point => figure in point).map(point => point.step))].sort((a, b) => a - b);
      const series = data.history.map(([name, points]) => {
        const at = new Map(points.filter(point => figure in point).map(point => [point.step, point[figure]]));
        return [name, steps.map(step => at.has(step) ? at.get(step) : null)];
      });
      const top = figure === "f1" ? 1 : Math.max(...series.flatMap(([, values]) => values.filter(value => value !== null)), 1e-9);
      if (steps.length) lines(row, figure === "f1" ? "development F1" : "loss", series, steps, top);
    }
  }
}

// ---- texts. A mark is {parts, type, kind, from, to}; a pair of the data [class, gold span, predicted span, flags].
const parts = span => span[3] || [[span[0], span[1]]];
function points(text) { return Array.from(text); }  // offsets are code points, JavaScript's are UTF-16 units
function draw(parent, text, marks) {
  const chars = points(text), levels = [];
  marks.sort((a, b) => a.span[0] - b.span[0] || b.span[1] - a.span[1]);
  for (const mark of marks) {  // the first level that is free where its hull begins
    mark.level = levels.findIndex(end => end <= mark.span[0]);
    if (mark.level < 0) mark.level = levels.length;
    levels[mark.level] = mark.span[1];
  }
  const node = make(parent, "div", null, { class: "text", style: `line-height:${1.75 + .36 * levels.length}` });
  const edges = [...new Set([0, chars.length, ...marks.flatMap(mark => [mark.span[0], mark.span[1], ...parts(mark.span).flat()])])].sort((a, b) => a - b);
  edges.slice(0, -1).forEach((start, i) => {
    const end = edges[i + 1], on = marks.filter(mark => mark.span[0] <= start && end <= mark.span[1]);
    for (const mark of on) if (mark.span[0] === start)
      make(node, "span", `${mark.span[2]}${SIGNS[mark.kind] ? " " + SIGNS[mark.kind] : ""}`, { class: SIGNS[mark.kind] ? "tag bad" : "tag", style: `color:color-mix(in srgb, ${shade(mark.span[2])}, var(--ink) 45%);border-color:${shade(mark.span[2])}` });
    const piece = make(node, "span", chars.slice(start, end).join(""));
    piece.title = on.map(mark => `${mark.span[2]} ${mark.kind || ""}`).join(", ");
    if (!on.length) return;
    const layers = on.map(mark => {
      const inside = parts(mark.span).some(part => part[0] <= start && end <= part[1]), c = shade(mark.span[2]);
      const gap = !inside || mark.kind === "missed" || mark.kind === "spurious";
      const fill = gap ? `repeating-linear-gradient(90deg, ${c} 0 ${inside ? 6 : 2}px, transparent 0 ${inside ? 9 : 7}px)` : `linear-gradient(${c}, ${c})`;
      return { fill, size: `100% ${inside ? 3 : 1.5}px`, place: `0 calc(100% - ${5 * (levels.length - 1 - mark.level)}px)` };
    });
    piece.style.backgroundImage = layers.map(layer => layer.fill).join();
    piece.style.backgroundSize = layers.map(layer => layer.size).join();
    piece.style.backgroundPosition = layers.map(layer => layer.place).join();
    piece.style.paddingBottom = `${5 * levels.length}px`;
  });
}
function browser() {
  const PAGE = 10, node = section("Texts", "Gold, and what each system found: solid where it is right in its place, dashed what was missed or is spurious, thin and dotted the gap of a discontinuous mention. ← and → (or p and n) go to the previous and the next text." + (systems.some(([, s]) => s.runs) ? " Of several runs, the first is shown." : ""));
  legend(node, types, (item, i) => make(item, "span", "", { class: "bar", style: `width:.9rem;background:${colour(i)}` }));
  const controls = make(node, "div", null, { class: "controls" }), list = make(node, "div", null);
  function choice(label, options) {
    const select = make(controls, "select", null, { "aria-label": label });
    [`all ${label}`, ...options].forEach((option, i) => make(select, "option", option, { value: i ? option : "" }));
    select.addEventListener("change", filter);
    return select;
  }
  const system = choice("systems", names), type = choice("types", types), kind = choice("classes", [...Object.keys(SIGNS), "any error"]);
  const query = make(controls, "input", null, { type: "search", placeholder: "text or id", "aria-label": "search" });
  query.addEventListener("input", filter);
  const back = make(controls, "button", "←"), next = make(controls, "button", "→"), where = make(controls, "span", "", { class: "soft", "aria-live": "polite" });
  let found = [], now = 0;
  const wanted = pair => (!type.value || [pair[1], pair[2]].some(span => span && span[2] === type.value))
    && (!kind.value || (kind.value === "any error" ? pair[0] !== "correct" : pair[0] === kind.value));
  function filter() {
    const words = query.value.toLowerCase(), columns = names.map((name, i) => i).filter(i => !system.value || names[i] === system.value);
    found = records.filter(([id, doc, text, pairs]) => (!words || `${id}\n${doc}\n${text}`.toLowerCase().includes(words))
      && ((!type.value && !kind.value) || columns.some(i => pairs[i].some(wanted))));
    now = 0;
    page();
  }
  function page() {
    list.replaceChildren();
    const first = now - now % PAGE;
    found.slice(first, first + PAGE).forEach(([id, doc, text, pairs], i) => {
      const card = make(list, "article", null, first + i === now ? { class: "now", "aria-current": "true" } : {});
      make(card, "div", doc === id ? id : `${id} · ${doc}`, { class: "soft" });
      const gold = pairs[0].filter(pair => pair[1]).map(pair => ({ span: pair[1] }));
      const sides = [["gold", gold], ...names.map((name, j) => [name, pairs[j].map(pair => ({ span: pair[2] || pair[1], kind: pair[0] }))])];
      for (const [name, marks] of sides) {
        if (system.value && name !== "gold" && name !== system.value) continue;
        const side = make(card, "div", null, { class: "side" });
        make(side, "b", name);
        draw(side, text.trimEnd(), marks);  // not the line ends behind it
      }
    });
    where.textContent = found.length ? `${now + 1} of ${found.length} texts (${records.length} in all)` : "no text is like that";
  }
  function go(by) {
    if (!found.length) return;
    now = (now + by + found.length) % found.length;
    page();
    list.querySelector(".now").scrollIntoView({ block: "center" });
  }
  back.addEventListener("click", () => go(-1));
  next.addEventListener("click", () => go(1));
  document.addEventListener("keydown", event => {
    if (/INPUT|SELECT/.test(event.target.tagName) || event.ctrlKey || event.metaKey || event.altKey) return;
    const by = { ArrowRight: 1, n: 1, ArrowLeft: -1, p: -1 }[event.key];
    if (by) { event.preventDefault(); go(by); }
  });
  filter();
}

document.title = `NER report: ${data.title}`;
make(document.body, "h1", document.title);
make(document.body, "code", data.signature);
comparison();
byType();
errors();
facets();
browser();
</script>
</body>
</html>
"""  # noqa: E501


if __name__ == "__main__":
    gc.disable()  # nothing here makes cycles, and looking for them takes a tenth of the time
    sys.exit(run(main))

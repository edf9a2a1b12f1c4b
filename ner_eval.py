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
from heapq import heappop, heappush
from importlib.util import find_spec
from itertools import chain, pairwise, product
from math import fsum
from statistics import fmean, stdev
from typing import NamedTuple

from utils import (
    VERSION,
    DataError,
    flat_tags,
    flat_view,
    fragments,
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

# What an alignment has as much of as possible, first things first, given (same span, same type) of a pair
RULES = {
    "strict": lambda span, type_: (span and type_, True),
    "exact": lambda span, type_: (span, True),  # and of partial
    "type": lambda span, type_: (type_, True),
    "errors": lambda span, type_: (span and type_, span, type_, True),
}
# Per scheme: its alignment, whether an aligned pair is right, and what it is if not (Batista's scenarios I-VI)
SCHEMES = {
    "strict": ("strict", lambda span, type_: span and type_, "INC"),
    "exact": ("exact", lambda span, type_: span, "INC"),
    "partial": ("exact", lambda span, type_: span, "PAR"),
    "type": ("type", lambda span, type_: type_, "INC"),
}
LEVELS = ("entity", "entity_other_scheme", "semeval", "token", "generation", "errors")
PARSED = ("ok", "salvaged", "truncated")  # statuses of answers that gave what could be read of them
MISSED, SPURIOUS = "(missed)", "(spurious)"  # the margins of the confusion matrix
CLASSES = ("correct", "type", "boundary", "type_boundary", "missed", "spurious")
LENGTHS = ((1, "1 word"), (2, "2 words"), (3, "3 words"), (5, "4-5 words"), (10, "6-10 words"), (1 << 60, "11+ words"))
AROUND = 40  # characters of context on each side in --errors
FEW = 20  # documents below which intervals say little
UNDEFINED = float("0")  # told from a measured 0.0 by its identity

# A span, throughout, is (start, end, type), with a fourth item, its fragments, where it is discontinuous.

# ---------------------------------------------------------------------------- records of both sides


class System(NamedTuple):
    """One prediction file and what was counted in it."""

    name: str
    path: str
    iob: bool
    stream: object  # its records, read when they are asked for
    waiting: dict  # records read before their turn, by id
    counts: defaultdict  # of Counters, see `count`
    rows: array  # of (document, index in types, 0 for tp, 1 for fp, 2 for fn), flat, for --resamples
    types: dict
    info: dict  # its sidecar


class Side(NamedTuple):
    """What gold, or a prediction, says about one record, in characters of gold's text and in gold's tokens."""

    spans: frozenset  # by the chosen scheme
    other: frozenset  # by the other scheme (the same where the input isn't IOB)
    tags: list
    copies: int = 0  # exact duplicates, left out
    filtered: int = 0  # left out by --types and --map_types


NOTHING = Side(frozenset(), frozenset(), [])


def entity_span(entity, text, trim=False):
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


def is_flat(spans):
    """Whether sorted spans are continuous and do not overlap each other."""
    reach = 0
    for span in spans:
        if span[0] < reach or len(span) > 3:
            return False
        reach = span[1]
    return True


def project_tags(spans, gold):
    """The tags of the flat view of spans (the longest wins) on gold's tokens."""
    kept = sorted(spans)
    if is_flat(kept):
        return flat_tags(kept, gold["offsets"])
    entities = [{"start": s[0], "end": s[1], "type": s[2], "fragments": s[3] if s[3:] else None} for s in kept]
    return flat_view({**gold, "entities": entities, "pretokenized": True})[0]["tags"]


def new_type(type_, args):
    """The type by --map_types; None where it, or --types, leaves it out."""
    type_ = args.type_map.get(type_, type_)
    return type_ if type_ and (not args.types or type_ in args.types) else None


def read_side(record, gold, iob, pair, args, truth=None):
    """The Side of a record: gold itself, or a prediction for it, which has gold's Side as `truth`.

    `iob`: whether it is from IOB; `pair`: how many of the two are. Of two, tags are scored as they are written; with
    one, white space at the ends of spans is left out, as IOB has none.
    """
    text = record["text"]
    lenient = strict = [
        entity_span(entity, text, pair == 1)
        if pair == 1 or "fragments" in entity
        else (entity["start"], entity["end"], entity["type"])
        for entity in record["entities"]
    ]
    if iob:
        edges = record["offsets"]
        strict = [(edges[a][0], edges[b - 1][1], type_) for a, b, type_ in tag_spans(record["tags"], strict=True)]
    if text != gold["text"]:
        lenient, strict = (project_spans(spans, text, gold["text"]) for spans in (lenient, strict))
    tags, read = record.get("tags"), len(strict if args.scheme == "strict" else lenient)
    if args.types or args.type_map:
        lenient, strict = (
            [(*s[:2], type_, *s[3:]) for s in spans if (type_ := new_type(s[2], args))] for spans in (lenient, strict)
        )
        parts = [(prefix, type_ and new_type(type_, args)) for prefix, type_ in map(split_tag, tags or ())]
        tags = [f"{prefix}-{type_}" if type_ else "O" for prefix, type_ in parts]
    spans, other = (strict, lenient) if args.scheme == "strict" else (lenient, strict)
    unique = frozenset(spans)
    all_ = unique if spans is lenient else frozenset(lenient)
    if "token" not in args.levels:
        tags = []
    elif pair < 2:
        tags = truth.tags if truth and all_ == truth.spans == truth.other else project_tags(all_, gold)
    return Side(unique, frozenset(other) if iob else unique, tags, len(spans) - len(unique), read - len(spans))


def check_match(pred, gold, system, args):
    """Raise DataError where a prediction is not of gold's tokens (two IOB files), characters (one) or text (none)."""
    if system.iob and args.gold_iob:
        same, ours, theirs = pred["tokens"] == gold["tokens"], len(pred["tokens"]), len(gold["tokens"])
        problem = f"its tokens ({ours}) are not those ({theirs}) of", "predict each token of gold once, in its order"
    elif system.iob or args.gold_iob:
        same = "".join(pred["text"].split()) == "".join(gold["text"].split())
        problem = "its tokens are not those of", "use JSONL for both, which joins by id and not by position"
    else:
        same, problem = pred["text"] == gold["text"], ("its text is not that of", "evaluate the file you predicted")
    if not same:
        where = f"{place(system.path, pred)}: record {pred['id']!r}"
        raise DataError(f"{where}: {problem[0]} record {gold['id']!r} in {place(args.gold, gold)}; {problem[1]}")


def place(path, record):
    """FILE:LINE of a record, found by reading the file again, which only errors do."""
    lines = ((number, line) for number, line in read_lines(path))
    if not is_iob(path):
        return f"{path}:{next(n for n, line in lines if line.strip() and json.loads(line)['id'] == record['id'])}"
    empty = ((n, not line.strip() or line.startswith(("-DOCSTART-", "###MEDLINE:"))) for n, line in lines)
    starts = (b[0] for a, b in pairwise(chain([(0, True)], empty)) if a[1] and not b[1])
    units = zip(starts, read_iob(path, warn=len), strict=True)
    return f"{path}:{next(number for number, unit in units if unit['id'] == record['id'])}"


def find_prediction(system, gold, args):
    """Return the prediction for a gold record; None where there is none and --allow_missing says so."""
    if not (system.iob or args.gold_iob):
        pred = system.waiting.pop(gold["id"], None) if system.waiting else None
        while not pred and (found := next(system.stream, None)):
            if found["id"] == gold["id"]:
                pred = found
            else:
                system.waiting[found["id"]] = found
    elif not gold["text"].strip():
        return None  # white space alone, which IOB can't hold
    else:
        pred = next(system.stream, None)
    if not (pred or args.allow_missing):
        remedy = "predict it, or count it as nothing predicted with --allow_missing"
        where = place(args.gold, gold)
        raise DataError(f"{system.path}: no prediction for record {gold['id']!r} of {where}; {remedy}")
    system.counts["input"]["missing"] += not pred
    return pred


def read_guess(pred, gold, system, truth, args):
    """The Side of a prediction, checked to be one of gold's text."""
    check_match(pred, gold, system, args)
    guess = read_side(pred, gold, system.iob, system.iob + args.gold_iob, args, truth)
    if "answer" in pred or "status" in pred:
        count_answer(system.counts, pred, truth, guess, args)
    return guess


def open_system(name, path, args):
    """A System, unread yet. Joined by position, records that IOB can't hold are passed over."""
    iob, stream, info = is_iob(path), read_records(path), {}
    if iob or args.gold_iob:
        stream = (record for record in stream if record["text"].strip())
    if os.path.exists(f"{path}.run.json"):
        try:
            with open(f"{path}.run.json", encoding="utf-8") as file:
                info = json.load(file)
        except (ValueError, RecursionError):
            log(f"warning: {path}.run.json: not JSON; without it there are no seconds and no cost")
    info = info if isinstance(info, dict) and info.get("script") != "brat2iob.py" else {}  # not of a conversion
    return System(name, path, iob, stream, {}, defaultdict(Counter), array("q"), {}, info)


def gold_records(args):
    """Yield gold's records, with tokens where the token level needs them."""
    for gold in read_iob(args.gold, column=args.column) if args.column else read_records(args.gold):
        if "token" in args.levels and "offsets" not in gold:
            gold["offsets"] = flat_view(gold)[0]["offsets"]
        yield gold


def compare(systems, args, errors=None, kept=None):
    """Read gold and all predictions side by side and count; return the Counter of what gold holds.

    `errors`: a file that gets a JSON line per error; `kept`: a list that gets what the report shows of each record.
    Memory: one record of each file, the ids, and the predictions that stand before their turn.
    """
    facts, documents, seen = Counter(), {}, seen_mentions(args) if args.train_file else {}
    for gold in gold_records(args):
        document, truths, pairs = documents.setdefault(gold["doc_id"], len(documents)), {}, []
        for system in systems:
            if system.iob not in truths:
                truths[system.iob] = read_side(gold, gold, args.gold_iob, system.iob + args.gold_iob, args)
            truth = truths[system.iob]
            pred = find_prediction(system, gold, args)
            guess = (
                read_guess(pred, gold, system, truth, args) if pred else NOTHING._replace(tags=["O"] * len(truth.tags))
            )
            count(system, truth, guess, document, args)
            for facet in args.facets:
                count_pairs(system.counts[facet], truth.spans, guess.spans, FACETS[facet], gold, seen)
            if errors or kept is not None:
                pairs.append(list(error_pairs(truth.spans, guess.spans)))
                write_errors(errors, system, gold, pairs[-1])
        if kept is not None:
            kept.append([gold["id"], gold["doc_id"], gold["text"], pairs])
        facts["strangers"] += len(truth.other) - len(truth.spans) if args.scheme == "strict" else 0
        facts["records"] += 1
        facts["entities"] += len(truth.spans)
        facts["duplicates"] += truth.copies
        facts["filtered"] += truth.filtered
    check_ends(systems, facts, args)
    return facts | Counter(documents=len(documents))


def check_ends(systems, facts, args):
    """Refuse predictions that gold has no record for; say where tags are no strict IOB2, and which type nobody has."""
    for system in systems:
        for record in chain(system.waiting.values(), system.stream):
            where = f"{place(system.path, record)}: record {record['id']!r}"
            raise DataError(f"{where} is not in {args.gold}; evaluate the split you predicted")
    for system in systems if args.level == "generation" else ():
        if not system.counts["generation"]:
            raise DataError(f"{system.path}: holds no answers of an LLM; leave out --level generation")
    sides = [(system.path, system.counts["input"]["strangers"]) for system in systems]
    for path, strangers in [(args.gold, facts["strangers"]), *sides]:
        if strangers > 0:
            remedy = "convert it with brat2iob.py, or use --scheme lenient"
            log(f"warning: {path}: {strangers:,} entities are none in strict IOB2 (IOB1, IOBES?); {remedy}")
    known = {type_ for system in systems for pair in system.counts["entity"] for type_ in pair}
    for type_ in sorted(set(args.types or ()) - known) if "entity" in args.levels else ():
        log(f"warning: --types: neither gold nor a prediction has {type_!r}; check how it is written")


# ---------------------------------------------------------------------------- counting


def count(system, gold, pred, document, args):
    """Add one record's two Sides to the Counters of a system.

    "entity", "entity_other_scheme" and "token" hold pairs (what gold has, what is predicted), see `averages`; "any"
    and the RULES hold the keys of `count_alignments`; "input" what was read.
    """
    counts, read = system.counts, system.counts["input"]
    read["duplicates"] += pred.copies
    read["predicted"] += len(pred.spans)
    read["filtered"] += pred.filtered
    count_pairs(counts["entity"], gold.spans, pred.spans)
    if system.iob or args.gold_iob:
        count_pairs(counts["entity_other_scheme"], gold.other, pred.other)
        read["strangers"] += len(pred.other) - len(pred.spans) if args.scheme == "strict" else 0
    if args.rules:
        count_alignments(counts, gold.spans, pred.spans, args.rules)
    if "token" in args.levels:
        counts["token"].update(zip(gold.tags, pred.tags, strict=True))
    if args.resamples:
        for spans, kind in ((gold.spans & pred.spans, 0), (pred.spans - gold.spans, 1), (gold.spans - pred.spans, 2)):
            for span in spans:
                system.rows.extend((document, system.types.setdefault(span[2], len(system.types)), kind))


def count_pairs(pairs, gold, pred, key=None, record=None, seen=None):
    """Add a record's spans to a Counter of (gold's key, the prediction's; None for nothing): types, or a facet's."""
    for span in gold:
        name = key(span, record, seen) if key else span[2]
        pairs[name, name if span in pred else None] += 1
    for span in pred - gold:
        pairs[None, key(span, record, seen) if key else span[2]] += 1


def mention(span, record):
    """The words of a span."""
    return span_text(record["text"], span[3] if span[3:] else [span[:2]]).split()


def seen_mentions(args):
    """{mention of the training file, in lower case and without white space: its types}."""
    seen = defaultdict(set)
    for record in read_records(args.train_file):
        for entity in record["entities"]:
            words = span_text(record["text"], fragments(entity)).split()
            seen["".join(words).casefold()].add(new_type(entity["type"], args))
    return seen


def by_length(span, record, seen):
    words = len(mention(span, record))
    return next(name for most, name in LENGTHS if words <= most)


def by_seen(span, record, seen):
    types = seen.get("".join(mention(span, record)).casefold())
    return "unseen" if not types else "seen" if span[2] in types else "seen with other type"


def facet_scores(facet, pairs):
    """Scores of each group: lengths from the shortest, documents from the worst, else by name."""
    groups = averages(pairs, "groups")["groups"]
    names = [name for _, name in LENGTHS] if facet == "length" else list(groups)
    worst = sorted(names, key=lambda name: groups[name]["f1"]) if facet == "document" else names
    return {name: groups[name] for name in worst if name in groups}


FACETS = {"length": by_length, "seen": by_seen, "document": lambda span, record, seen: record["doc_id"]}


# ---------------------------------------------------------------------------- alignment


def count_alignments(counts, gold, pred, rules):
    """Add a record's aligned pairs to the counters, keyed (same span, gold type or None, predicted type or None).

    Pairs on which all alignments agree go to "any", others to each rule's own; SCHEMES and `error_class` grade keys.
    """
    if gold == pred:
        for span in gold:
            counts["any"][True, span[2], span[2]] += 1
        return
    for rule, pairs in alignments(gold, pred, rules):
        for pair in pairs:
            counts[rule][pair_key(*pair)] += 1


def alignments(gold, pred, rules):
    """Yield (rule, its (gold span or None, predicted span or None)) by component; rule "any" where all agree."""
    for spans in components(gold | pred):
        golds, preds = [span for span in spans if span in gold], [span for span in spans if span in pred]
        if golds == preds:
            yield "any", zip(golds, preds, strict=True)
        elif not golds or not preds:
            yield "any", [(span, None) for span in golds] + [(None, span) for span in preds]
        elif len(golds) == len(preds) == 1 and overlap(golds[0], preds[0]):
            yield "any", [(golds[0], preds[0])]
        else:
            edges = overlapping(golds, preds)
            yield from ((rule, align(golds, preds, edges, rule)) for rule in rules)


def pair_key(gold, pred):
    return bool(gold and pred and same_span(gold, pred)), gold and gold[2], pred and pred[2]


def components(spans):
    """Yield each run of spans with overlapping hulls, sorted, in text order."""
    found, reach = [], 0
    for span in sorted(spans):
        if span[0] >= reach and found:
            yield found
            found = []
        found.append(span)
        if span[1] > reach:
            reach = span[1]
    if found:
        yield found


def same_span(a, b):
    """Whether two spans cover the same characters."""
    return a[:2] == b[:2] and a[3:] == b[3:]


def overlap(a, b):
    """How many characters two spans share, fragment by fragment."""
    parts = b[3] if b[3:] else (b,)
    return sum(max(0, min(x[1], y[1]) - max(x[0], y[0])) for x in (a[3] if a[3:] else (a,)) for y in parts)


def align(golds, preds, edges, rule):
    """Align one component by a rule: return its (gold span or None, predicted span or None).

    One to one, of overlapping spans (`edges`), the most of what the rule puts first. Ties, which can only move a pair
    between types, go to the greatest overlap, then to equal types, then to the left.
    """
    most, weights = min(len(golds), len(preds)) + 1, []
    shares, left = 1 + sum(edge[2] for edge in edges), 1 + 2 * most * max(span[0] for span in golds + preds)
    for i, j, shared in edges:
        gold, pred, weight = golds[i], preds[j], 0
        for good in RULES[rule](same_span(gold, pred), gold[2] == pred[2]):
            weight = weight * most + good
        weights.append(((weight * shares + shared) * most + (gold[2] == pred[2])) * left - gold[0] - pred[0])
    solve = best_chain if is_flat(golds) and is_flat(preds) else best_assignment
    pairs = dict(edges[e][:2] for e in solve(edges, weights))
    found = [(gold, preds[pairs[i]] if i in pairs else None) for i, gold in enumerate(golds)]
    return found + [(None, preds[j]) for j in sorted(set(range(len(preds))).difference(pairs.values()))]


def overlapping(golds, preds):
    """Return the sorted (gold index, predicted index, overlap) of the spans that overlap, by one sweep to the right."""
    edges, live = [], ([], [])
    sides = [(span, 0, i) for i, span in enumerate(golds)] + [(span, 1, j) for j, span in enumerate(preds)]
    for span, side, i in sorted(sides):
        live[1 - side][:] = [other for other in live[1 - side] if other[0][1] > span[0]]
        for other, j in live[1 - side]:
            if shared := overlap(span, other):
                edges.append((j, i, shared) if side else (i, j, shared))
        live[side].append((span, i))
    return sorted(edges)


def best_chain(edges, weights):
    """Return the edges (indices) of the heaviest matching where both sides are flat, in linear time.

    Sorted edges then make a staircase. Who takes an edge goes on with the first that is to the right on both sides.
    """
    after, best, chosen, e = [], [0] * (len(edges) + 1), [], 0
    for i, j, _ in edges:
        while e < len(edges) and (edges[e][0] <= i or edges[e][1] <= j):
            e += 1
        after.append(e)
    for e in range(len(edges) - 1, -1, -1):
        best[e] = max(best[e + 1], weights[e] + best[after[e]])
    e = 0
    while e < len(edges):
        if best[e] == weights[e] + best[after[e]]:
            chosen.append(e)
            e = after[e]
        else:
            e += 1
    return chosen


def best_assignment(edges, weights):
    """Return the edges (indices) of the heaviest matching of any bipartite graph, by the sparse Hungarian method.

    Gold by gold, the shortest augmenting path (Dijkstra on reduced costs) to a free prediction or to staying alone,
    which is a column of one's own. It ends early; a large component costs the square of its size at worst.
    """
    rows, held, owner, price, worth = {}, {}, {}, Counter(), Counter()
    for e, (i, j, _) in enumerate(edges):
        rows.setdefault(i, [(-1 - i, 0, -1)]).append((j, -weights[e], e))
    for root in sorted(rows, key=lambda i: len(rows[i])):  # who overlaps thousands waits, or all would look at these
        row, base, done, best, heap = root, 0, {}, {}, []
        while row is not None:
            for column, cost, e in rows[row]:
                length = base + cost - worth[row] - price[column]
                if column not in done and length < best.get(column, (length + 1,))[0]:
                    best[column] = length, row, e
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
            _, row, e = best[column]
            owner[column], before, held[row] = row, held.get(row), (column, e)
            column = before and before[0]
    return sorted(e for _, e in held.values() if e >= 0)


# ---------------------------------------------------------------------------- scores


def prf(found, gold, right, pred):
    """F1, precision and recall from the credit on each side."""
    precision, recall = right / pred if pred else UNDEFINED, found / gold if gold else UNDEFINED
    f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    return {"f1": f1 if gold or pred else UNDEFINED, "precision": precision, "recall": recall}


def averages(pairs, each="types"):
    """Scores from a Counter of (what gold has, what is predicted; None for nothing): of each, and averaged.

    Averages are micro, macro (over all that gold or the prediction has) and weighted by gold's counts.
    """
    tp, gold, pred = Counter(), Counter(), Counter()
    for (true, guess), n in pairs.items():
        for side, counter in ((true, gold), (guess, pred), (true if true == guess else None, tp)):
            counter[side] += n
    del tp[None], gold[None], pred[None]

    def score(tp, gold, pred):
        return prf(tp, gold, tp, pred) | {"tp": tp, "fp": pred - tp, "fn": gold - tp, "support": gold}

    scores = {key: score(tp[key], gold[key], pred[key]) for key in sorted(gold.keys() | pred.keys())}
    result = {"micro": score(tp.total(), gold.total(), pred.total())}
    for name, weights in (("macro", dict.fromkeys(scores, 1)), ("weighted", gold)):
        sums = {n: fsum(scores[key][n] * weights[key] for key in scores) for n in ("f1", "precision", "recall")}
        total = sum(weights.values())
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
    rule, correct, wrong = SCHEMES[scheme]
    kinds, pos, act, found, right = Counter(), Counter(), Counter(), Counter(), Counter()
    for (span, gold, pred), n in (counts["any"] + counts[rule]).items():
        if gold is None or pred is None:
            kind = "MIS" if pred is None else "SPU"
        else:
            kind = "COR" if correct(span, gold == pred) else wrong
        kinds[kind] += n
        for type_, number, credit in ((gold, pos, found), (pred, act, right)):
            if type_ is not None:
                number[type_] += n
                credit[type_] += n * {"COR": 1, "PAR": 0.5}.get(kind, 0)

    def score(found, pos, right, act):
        scores = prf(found, pos, right, act)
        return {"POS": pos, "ACT": act} | {number: scores[number] for number in ("precision", "recall", "f1")}

    types = {key: score(found[key], pos[key], right[key], act[key]) for key in sorted(pos.keys() | act.keys())}
    total = score(found.total(), pos.total(), right.total(), act.total())
    return {kind: kinds[kind] for kind in ("COR", "INC", "PAR", "MIS", "SPU")} | total | {"types": types}


# ---------------------------------------------------------------------------- where it goes wrong


def error_class(same, gold, pred):
    """The class of a pair, given whether its spans are the same, and its types (None: no span on that side)."""
    if gold is None or pred is None:
        return "missed" if pred is None else "spurious"
    return {(True, True): "correct", (True, False): "type", (False, True): "boundary"}.get(
        (same, gold == pred), "type_boundary"
    )


def error_scores(counts):
    """Counts by class, F1 if all of a class were repaired, and {gold type: {predicted type: n}} with both margins."""
    classes, confusion = dict.fromkeys(CLASSES, 0), defaultdict(Counter)
    for key, n in (counts["any"] + counts["errors"]).items():
        classes[error_class(*key)] += n
        confusion[key[1] or SPURIOUS][key[2] or MISSED] += n
    pos = sum(n for name, n in classes.items() if name != "spurious")
    act = sum(n for name, n in classes.items() if name != "missed")
    repaired = {}
    for name in CLASSES[1:]:
        n, right = classes[name], classes["correct"] + classes[name] * (name != "spurious")
        both = pos + act + n * (name == "missed") - n * (name == "spurious")
        repaired[name] = 2 * right / both if both else UNDEFINED
    margins = (SPURIOUS, MISSED)
    rows = {name: sorted(row.items(), key=lambda cell: (cell[0] in margins, cell)) for name, row in confusion.items()}
    confusion = {name: dict(row) for name, row in sorted(rows.items(), key=lambda row: (row[0] in margins, row[0]))}
    return {"classes": classes, "f1_if_repaired": repaired, "confusion": confusion}


def error_pairs(gold, pred):
    """Yield the (class, gold span, predicted span, flags) of a record's joint alignment, in text order.

    Flags: "split", a gold span that several predictions overlap; "merge", a prediction that overlaps several of gold.
    """
    golds, preds = sorted(gold), sorted(pred)
    edges = overlapping(golds, preds)
    split, merge = Counter(golds[i] for i, _, _ in edges), Counter(preds[j] for _, j, _ in edges)
    for _, pairs in alignments(gold, pred, ["errors"]):
        for one, other in pairs:
            flags = ["split"] * (split[one] > 1) + ["merge"] * (merge[other] > 1)
            yield error_class(*pair_key(one, other)), one, other, flags


def write_errors(out, system, gold, pairs):
    """Write a JSON line for each error of a record, with its context in the text."""
    text = gold["text"]
    for kind, *spans, flags in pairs if out else ():
        if kind == "correct":
            continue
        line = {
            "system": system.name,
            "file": plain(system.path),
            "id": gold["id"],
            "doc_id": gold["doc_id"],
            "class": kind,
        }
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
        out.write(to_json(line) + "\n")


# ---------------------------------------------------------------------------- answers of LLMs


def count_answer(counts, pred, gold, guess, args):
    """Count how an LLM's answer to a record could be read, and what in it could not be placed.

    An item is a mention that the answer names: one of `entities`, or of `dropped`, with the reason. Of types that
    --types and --map_types leave out, no item is counted.
    """
    status, found, parsed = pred.get("status", "ok"), counts["generation"], counts["parsed"]
    if status == "empty" and not gold.spans and not gold.filtered:
        status = "ok"  # nothing to say, and nothing said
    dropped = pred.get("dropped", [])
    found["complies"] += status == "ok" and all(item["reason"] != "unknown_type" for item in dropped)
    reasons = Counter(item["reason"] for item in dropped if new_type(item["type"], args))
    invented, items = reasons["not_in_text"] + reasons["leaked"], len(guess.spans) + guess.copies + reasons.total()
    found.update({"records": 1, "items": items, "invented": invented, "with items": bool(items)})
    found["share"] += invented / items if items else 0
    counts["status"][status] += 1
    counts["dropped"].update(reasons)
    if status in PARSED:
        parsed.update({"right": len(gold.spans & guess.spans), "gold": len(gold.spans), "pred": len(guess.spans)})
    answer = pred.get("answer") or ""
    for start, end, named in own_offsets(answer if isinstance(answer, str) else "\n".join(answer)):
        found["offsets"] += 1
        found["right offsets"] += 0 <= start < end and pred["text"][start:end] == named


def own_offsets(answer):
    """The distinct (start, end, mention) that an answer in the format `spans` gives itself."""
    found, at, decoder = set(), answer.find("{"), json.JSONDecoder()
    while at >= 0:
        try:
            item, end = decoder.raw_decode(answer, at)
        except (ValueError, RecursionError):
            item, end = {}, at + 1  # cut, or no JSON: its status tells
        if type(item.get("start")) is type(item.get("end")) is int and isinstance(item.get("text"), str):
            found.add((item["start"], item["end"], item["text"]))
        else:
            end = at + 1  # what holds the items
        at = answer.find("{", end)
    return found


def generation_scores(counts):
    """Rates of how answers could be read. As they are: status `ok`; after repair: `salvaged` and `truncated`, too."""
    found, status, dropped, entity = (counts[name] for name in ("generation", "status", "dropped", "entity"))
    n, items = found["records"], found["items"]

    def rate(part, whole=n):
        return part / whole if whole else UNDEFINED

    scores = {"records": n, "parse_rate": rate(status["ok"]),
              "parse_rate_repaired": rate(sum(status[name] for name in PARSED)),
              "compliance_rate": rate(found["complies"])}  # fmt: skip
    scores |= {f"{name}_rate": rate(status[name]) for name in ("truncated", "empty", "refused", "failed")}
    scores |= {"items": items, "hallucination_rate": rate(found["invented"], items),
               "hallucination_rate_macro": rate(found["share"], found["with items"])}  # fmt: skip
    scores |= {f"{reason}_rate": rate(dropped[reason], items) for reason in ("leaked", "unknown_type", "surplus")}
    scores |= {"own_offsets": found["offsets"], "boundary_accuracy": rate(found["right offsets"], found["offsets"])}
    micro, parsed = averages(entity)["micro"], counts["parsed"]
    right, wrong = micro["tp"], micro["fp"] + dropped.total()
    scores["f1_with_dropped"] = prf(right, micro["support"], right, right + wrong)["f1"]
    return scores | {"f1_of_parsed": prf(parsed["right"], parsed["gold"], parsed["right"], parsed["pred"])["f1"]}


# ---------------------------------------------------------------------------- documents resampled


def document_counts(runs, documents):
    """(runs, documents, types, 3) floats: tp, fp and fn."""
    import numpy as np

    names = {name: i for i, name in enumerate(sorted({name for system in runs for name in system.types}))}
    table = np.zeros((len(runs), documents, max(1, len(names)), 3))
    for counts, system in zip(table, runs, strict=True):
        document, type_, kind = np.frombuffer(system.rows, np.int64).reshape(-1, 3).T
        places = np.array([names[name] for name in system.types], np.int64)
        np.add.at(counts, (document, places[type_], kind), 1)
    return table


def f1_of(counts):
    """F1 from an array whose last axis is tp, fp, fn; 0 where there is nothing."""
    import numpy as np

    tp, both = counts[..., 0], 2 * counts[..., 0] + counts[..., 1] + counts[..., 2]
    return np.divide(2 * tp, both, out=np.zeros_like(both), where=both > 0)


def intervals(table, args):
    """95 % percentile intervals, by --resamples bootstraps of documents, of scores recomputed from summed counts.

    Of several runs, the mean of their scores on the same documents. The macro F1 of a resample is over the types that
    it has. Time: resamples x runs x documents x types.
    """
    import numpy as np

    runs, n, types, _ = table.shape
    rng, flat = np.random.default_rng(args.seed), table.swapaxes(0, 1).reshape(n, -1)
    draws = (np.bincount(rng.integers(n, size=n), minlength=n) for _ in range(args.resamples))
    totals = np.array([weights.astype(float) @ flat for weights in draws]).reshape(-1, runs, types, 3)
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

    sides = [table.sum(2) for table in (first, other)]  # (runs, documents, 3)
    turns = [np.resize(side, (len(mine), *side.shape[1:])) for mine, side in zip(sides, sides[::-1], strict=True)]
    moves = [theirs - mine for mine, theirs in zip(sides, turns, strict=True)]
    apart = np.any([move.any((0, 2)) for move in moves], 0)
    moves, totals, n = [move[:, apart] for move in moves], [side.sum(1) for side in sides], int(apart.sum())
    means = [f1_of(total).mean() for total in totals]
    difference = float(means[1] - means[0])
    exact = n < 60 and 2**n <= args.resamples + 1
    if exact:
        batches = [np.array(list(product((0.0, 1.0), repeat=n))).reshape(2**n, n)]
    else:
        rng, size = np.random.default_rng(args.seed), max(1, 10**6 // n)
        sizes = [min(size, args.resamples - start) for start in range(0, args.resamples, size)]
        batches = (rng.integers(0, 2, (rows, n)).astype(float) for rows in sizes)
    hits = 0
    for swaps in batches:
        ours, theirs = (f1_of(total[:, None] + swaps @ move).mean(0) for total, move in zip(totals, moves, strict=True))
        hits += int((abs(theirs - ours) >= abs(difference) - 1e-12).sum())
    return difference, hits / 2**n if exact else (hits + 1) / (args.resamples + 1), exact


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
    counts, scores, info = system.counts, {}, system.info
    if "entity" in args.levels:
        scores["entity"] = averages(counts["entity"])
        if system.iob or args.gold_iob:
            scores["entity_other_scheme"] = averages(counts["entity_other_scheme"])
    if "semeval" in args.levels:
        scores["semeval"] = {scheme: semeval_scores(counts, scheme) for scheme in SCHEMES}
    if "token" in args.levels:
        scores["token"] = token_scores(counts["token"])
    if "generation" in args.levels and counts["generation"]:
        scores["generation"] = generation_scores(counts)
    if "entity" in args.levels:
        scores["errors"] = error_scores(counts)
    if args.facets:
        scores["by"] = {facet: facet_scores(facet, counts[facet]) for facet in args.facets}
    predicted = info["counts"].get("records") if isinstance(info.get("counts"), dict) else None
    for name in ("seconds", "cost") if number(predicted) and predicted else ():
        if number(info.get(name)):
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
        spread = {"files": [plain(system.path) for system in runs]}
        if "entity" in args.levels:
            spread |= {"f1": [tree["entity"]["micro"]["f1"] for tree in trees]}
            means = ("micro", "macro")
            spread["sd"] = {mean: over_runs([tree["entity"][mean] for tree in trees], stdev) for mean in means}
        sections = dict.fromkeys(chain.from_iterable(trees))  # answers, or seconds, that not all have: of those that do
        scores = {name: over_runs([tree[name] for tree in trees if name in tree]) for name in sections}
        scores |= {"runs": spread, "undefined": zeros}
    first = {level: scores[level] for level in LEVELS if level in scores}
    return first | ({"intervals": bounds} if bounds else {}) | scores


def signature(systems, facts, args):
    """What must agree for two tables to be comparable, in one line (the idea is sacreBLEU's)."""
    kinds = {args.gold_iob, *(system.iob for system in systems)}
    scheme = "+".join(["spans"] * (False in kinds) + [f"iob-{args.scheme}"] * (True in kinds))
    unit = "character" if False in kinds else "token"
    counts = "|".join(f"{key}:{facts[key]}" for key in ("records", "documents", "entities"))
    types = f"|types:{'+'.join(sorted(args.types))}" if args.types else ""
    if args.map_types:
        digest = sha256(args.map_types.removesuffix(":group"))[:8]
        types += f"|map:{plain(os.path.basename(args.map_types))}:{digest}"
    return f"scheme:{scheme}|unit:{unit}|macro:gold+pred{types}|{counts}|version:{VERSION}"


def make_report(systems, facts, args):
    """metrics.json: signature, systems, tests, and the options that made it."""
    groups = {}
    for system in systems:
        groups.setdefault(system.name, []).append(system)
    bounds, tests = {}, []
    if args.resamples and not find_spec("numpy"):
        log("warning: numpy is not installed: no intervals, no tests")
    elif args.resamples:
        bounds, tests = compare_systems(groups, facts["documents"], args)
        if facts["documents"] < FEW:
            log(f"warning: {facts['documents']} documents: intervals and tests by document say little below {FEW}")
    report = {"signature": signature(systems, facts, args)}
    report["systems"] = {name: group_scores(runs, bounds.get(name), args) for name, runs in groups.items()}
    report["tests"] = tests
    options = ("level", "scheme", "by", "train_file", "types", "map_types", "allow_missing", "resamples", "seed")
    options = {name: getattr(args, name) for name in options}
    return report | {"options": {name: plain(v) if isinstance(v, str) else v for name, v in options.items()}}


def comparison_row(name, scores, report):
    """What the comparison table shows of one system, by column."""
    row = {}
    if "entity" in scores:
        micro, macro = scores["entity"]["micro"], scores["entity"]["macro"]
        row = {"F1": micro["f1"]}
        if "intervals" in scores:
            row["95 %"] = "{:.4f}-{:.4f}".format(*scores["intervals"]["f1"])
        if "runs" in scores:
            row |= {"sd": scores["runs"]["sd"]["micro"]["f1"], "runs": len(scores["runs"]["files"])}
        row |= {"P": micro["precision"], "R": micro["recall"], "macro F1": macro["f1"]}
        if "entity_other_scheme" in scores:
            other = "lenient" if report["options"]["scheme"] == "strict" else "strict"
            row[f"{other} F1"] = scores["entity_other_scheme"]["micro"]["f1"]
    row |= {f"SE-{scheme}": part["f1"] for scheme, part in scores.get("semeval", {}).items()}
    if "token" in scores:
        row["token F1"] = scores["token"]["by_type"]["micro"]["f1"]
    if "generation" in scores:
        part = scores["generation"]
        row |= {"F1+dropped": part["f1_with_dropped"], "parsed": part["parse_rate_repaired"],
                "halluc.": part["hallucination_rate"]}  # fmt: skip
    row |= {short: scores[f"{key}_per_1000"] for key, short in (("seconds", "s/1k"), ("cost", "$/1k"))
            if f"{key}_per_1000" in scores}  # fmt: skip
    p = next((test["p_holm"] for test in report["tests"] if test["system"] == name), None)
    return row | ({} if p is None else {"p": f"{p:.4f}{'*' if p < 0.05 else ''}"})


def comparison(report):
    """The rows of the comparison, (system, {column: figure}); the fullest one has the columns first."""
    rows = [(name, comparison_row(name, scores, report)) for name, scores in report["systems"].items()]
    columns = dict.fromkeys(column for _, row in sorted(rows, key=lambda row: -len(row[1])) for column in row)
    return [(name, {column: row.get(column, "-") for column in columns}) for name, row in rows]


def tables(scores, args):
    """Yield (title, [(row name, {column: figure})]) for all that is printed of one system."""
    other, means = "lenient" if args.scheme == "strict" else "strict", ("micro", "macro", "weighted")
    token = scores.get("token", {})
    parts = {"entity": scores.get("entity"), f"entity, {other}": scores.get("entity_other_scheme"),
             "token": token.get("by_type")}  # fmt: skip
    if args.level == "token":
        parts["token, by tag"] = token["by_tag"]
    for title, part in parts.items():
        if part:
            each = {**part.get("types", {}), **part.get("tags", {})} if "type" in args.by else {}
            yield title, in_order([*each.items(), *((mean, part[mean]) for mean in means)])
    if token:
        yield "tokens, O included", [("accuracy", {"": token["accuracy"]})]
    if "semeval" in scores:
        yield "SemEval-2013", scores["semeval"].items()
    for facet in (facet for facet in args.facets if facet in args.by):  # the others are of the HTML report
        yield f"by {facet}", in_order(scores["by"][facet].items())
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


def in_order(rows):
    """Rows with the columns in the order in which people read them."""
    columns = ("precision", "recall", "f1", "tp", "fp", "fn", "support")
    return [(name, {column: row[column] for column in columns if column in row}) for name, row in rows]


def figure(value):
    """A cell as text: floats with 4 decimals, nothing that a terminal would obey."""
    text = f"{value:.4f}" if isinstance(value, float) else str(value)
    return "".join(character if character.isprintable() else "\ufffd" for character in text)


def aligned(title, rows, markdown=False):
    """A table of (row name, {column: figure}) as text; "-" for what a row has not."""
    rows = list(rows)
    columns = dict.fromkeys(column for _, row in rows for column in row if not isinstance(row[column], dict))
    cells = [[title, *({"precision": "P", "recall": "R", "f1": "F1"}.get(column, column) for column in columns)]]
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
    firsts = [next(system for system in systems if system.name == name) for name in report["systems"]]
    columns = [systems.index(system) for system in firsts]
    data = {"title": plain(os.path.basename(args.gold)), "signature": report["signature"]}
    data["systems"] = list(report["systems"].items())
    data["comparison"] = [(name, {key: figure(v) for key, v in row.items()}) for name, row in comparison(report)]
    data["history"] = [(system.name, points) for system in firsts if (points := curve(system.info.get("history")))]
    data["records"] = [[*head, [pairs[i] for i in columns]] for *head, pairs in kept]
    with writing(args.html) as out:
        out.write(TEMPLATE.replace("{{DATA}}", to_json(data).replace("<", "\\u003c")))


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
    check_args(args, parser)
    return args


def check_files(args, parser):
    """Give each file of --pred its name; refuse files that don't go together."""
    if not args.names:
        names = [os.path.basename(path) for path in args.pred]
        args.names = names if len(set(names)) == len(names) else args.pred
    args.names = list(map(plain, args.names))
    if len(args.names) != len(args.pred):
        parser.error(f"--names: {len(args.names)} for the {len(args.pred)} files of --pred; give each its name")
    if len(set(zip(args.names, args.pred, strict=True))) != len(args.pred):
        parser.error("--pred: one file stands twice under one name")
    args.column = None
    if not args.gold:
        if len(args.pred) != 1 or not is_iob(args.pred[0]):
            parser.error("--gold: give the truth; without it, --pred is one IOB file with gold and predicted columns")
        args.gold, args.column = args.pred[0], -2
    outputs = [os.path.realpath(path) for path in (args.output_file, args.html, args.errors) if path]
    type_map = (args.map_types or "").removesuffix(":group")
    inputs = {os.path.realpath(path) for path in (args.gold, *args.pred, args.train_file, type_map) if path}
    if inputs & set(outputs) or len(set(outputs)) < len(outputs):
        parser.error("--output_file, --html, --errors: one of them is an input, or another output; name another file")


def check_args(args, parser):
    """Cross-check the flags and derive what they stand for."""
    check_files(args, parser)
    if "seen" in args.by and not args.train_file:
        parser.error("--by seen: give the --train_file whose mentions are seen")
    if args.resamples < 0 or args.seed < 0:
        parser.error("--resamples and --seed: 0 or more")
    if args.min_f1 is not None and not 0 <= args.min_f1 <= 1:
        parser.error("--min_f1: from 0 to 1")
    needy = args.min_f1 is not None or args.html or args.errors or args.by != ["type"]
    if args.level not in ("all", "entity") and needy:
        parser.error(f"--min_f1, --html, --errors and --by need entities, which --level {args.level} leaves out")
    args.levels = ("entity", "token", "semeval", "generation") if args.level == "all" else (args.level,)
    args.resamples *= "entity" in args.levels
    args.rules = ["errors"] * ("entity" in args.levels) + ["strict", "exact", "type"] * ("semeval" in args.levels)
    wanted = FACETS if args.html else args.by
    args.facets = [name for name in FACETS if name in wanted and (name != "seen" or args.train_file)]
    args.gold_iob, args.type_map = is_iob(args.gold), {}


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
    text = json.dumps(report, ensure_ascii=False, allow_nan=False, indent=2)
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
        draw(side, text, marks);
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

# /// script
# requires-python = ">=3.10"
# dependencies = []
# ///
"""Score predicted entities against gold: entities, SemEval-2013 schemes and tokens, several systems in one table.

An entity is right if its type and all its characters agree; nested, overlapping and discontinuous entities are scored
as they are. The SemEval-2013 schemes (strict, exact, partial, type) align a record's overlapping gold and predicted
spans one to one, with as many correct pairs as possible, then as many further pairs as possible: POS is the number of
gold entities and ACT of predicted ones, always, and no order of the input changes a figure. The token level compares
flat views on gold's tokens. Gold is never cut, and a record without a prediction is an error.

    python brat2iob.py --input data/rare_en --output_dir out/rare_en
    python ner_eval.py --gold out/rare_en/test.jsonl --pred out/rare_en/test.jsonl out/rare_en/test.iob --names all flat
    python ner_eval.py --gold out/rare_en/test.iob --pred out/rare_en/test.iob --scheme lenient --format json

Reads   JSONL records (id, text, entities; characters, end exclusive) or IOB, also .gz. Records join by id, or by
        position where one side is IOB. PRED.run.json, where there is one, for seconds per 1,000 records (s/1k)
Writes  a table or JSON to stdout; the JSON also to --output_file. Two scores are comparable if their signatures agree.
        What has nothing to divide by is 0.0, and listed in `undefined`
Needs   Python alone: no package, GPU or network. 100,000 sentences, 300,000 entities: 10 s (7 s of them reading), 45 MB
Source  seqeval 1.2.2 (IOB: equal to the last digit, strict IOB2 and lenient) and so conlleval; SemEval-2013 task 9.1
        (Segura-Bedmar et al. 2013) as D. Batista tabulates it ("Named-Entity evaluation metrics", 2018)
Differs seqeval: mode="strict" without scheme= is lenient, and no entity at all an error; here strict is strict, and an
        empty corpus has a report. nervaluate and NER-Evaluation are greedy, so that order changes scores and an exact
        prediction can lose its gold to a partial one, and miss one-token overlaps or those under 1 % of gold; here the
        alignment is the best one, and one shared character overlaps. Per type, R is gold's side and P the prediction's,
        where nervaluate's types do not add up. instruct-ner counts a type that neither side has as right (F1 0.83-0.97
        for 0.39-0.75), LLM-NER-clinical-text swaps P and R, PharmaCoNER's script passes over files that were omitted
"""

import argparse
import json
import os
import re
import sys
from bisect import bisect_left
from collections import Counter, defaultdict
from heapq import heappop, heappush
from itertools import chain, pairwise
from math import fsum
from typing import NamedTuple

from utils import (
    VERSION,
    DataError,
    flat_tags,
    flat_view,
    is_iob,
    log,
    read_records,
    run,
    split_tag,
    tag_spans,
    writing,
)

# Per scheme: whether an aligned pair is right, given (same span, same type), and what it is if not (Batista's I-VI)
SCHEMES = {
    "strict": (lambda span, type_: span and type_, "INC"),
    "exact": (lambda span, type_: span, "INC"),
    "partial": (lambda span, type_: span, "PAR"),  # aligned as exact is
    "type": (lambda span, type_: type_, "INC"),
}
UNDEFINED = float("0")  # told from a measured 0.0 by its identity

# A span, throughout, is (start, end, type), with a fourth item, its fragments, where it is discontinuous.


class System(NamedTuple):
    """One prediction file and what was counted in it."""

    name: str
    path: str
    iob: bool
    stream: object  # its records, read when they are asked for
    waiting: dict  # records read before their turn, by id
    counts: defaultdict  # of Counters, see `count`


class Side(NamedTuple):
    """What gold, or a prediction, says about one record, in characters of gold's text and in gold's tokens."""

    spans: frozenset  # by the chosen scheme
    other: frozenset  # by the other scheme (the same where the input isn't IOB)
    tags: list
    copies: int = 0  # exact duplicates, left out


def entity_span(entity, text):
    """The span of an entity. Fragments with only white space between them are one, as in brat2iob.py."""
    parts = []
    for start, end in entity.get("fragments") or ():
        if parts and not text[parts[-1][1] : start].strip():
            start = parts.pop()[0]
        parts.append((start, end))
    return (entity["start"], entity["end"], entity["type"], *([tuple(parts)] if len(parts) > 1 else ()))


def project_spans(spans, source, target):
    """Carry spans over to another text that has the same characters but other white space."""
    places = [i for i, character in enumerate(source) if not character.isspace()]
    there = [i for i, character in enumerate(target) if not character.isspace()] + [len(target)]

    def move(start, end):
        first, last = bisect_left(places, start), bisect_left(places, end)
        return there[first], there[last - 1] + 1 if last > first else there[first]

    return [(*move(*s[:2]), s[2], *(tuple(move(*part) for part in parts) for parts in s[3:])) for s in spans]


def is_flat(spans):
    """Whether sorted spans are continuous and do not overlap each other."""
    return all(len(span) == 3 for span in spans) and all(a[1] <= b[0] for a, b in pairwise(spans))


def project_tags(spans, gold):
    """The tags of the flat view of spans (the longest wins) on gold's tokens."""
    kept = sorted(spans)
    if is_flat(kept):
        return flat_tags(kept, gold["offsets"])
    entities = [{"start": s[0], "end": s[1], "type": s[2], "fragments": s[3] if s[3:] else None} for s in kept]
    return flat_view({**gold, "entities": entities, "pretokenized": True})[0]["tags"]


def read_side(record, gold, iob, as_written, args):
    """The Side of a record (gold itself, or a prediction for it). `as_written`: its tags are scored as they stand."""
    lenient = strict = [entity_span(entity, record["text"]) for entity in record["entities"]]
    if iob:
        edges = record["offsets"]
        strict = [(edges[a][0], edges[b - 1][1], type_) for a, b, type_ in tag_spans(record["tags"], strict=True)]
    if record["text"] != gold["text"]:
        lenient, strict = (project_spans(spans, record["text"], gold["text"]) for spans in (lenient, strict))
    spans, other = (strict, lenient) if args.scheme == "strict" else (lenient, strict)
    tags = record["tags"] if as_written else project_tags(set(lenient), gold) if "token" in args.levels else []
    unique = frozenset(spans)
    return Side(unique, frozenset(other) if iob else unique, tags, len(spans) - len(unique))


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
        where = f"{system.path}: record {pred['id']!r}"
        raise DataError(f"{where}: {problem[0]} record {gold['id']!r} in {args.gold}; {problem[1]}")


def find_prediction(system, gold, args):
    """Return the prediction for a gold record; None where there is none and --allow_missing says so."""
    if not (system.iob or args.gold_iob):
        while gold["id"] not in system.waiting and (pred := next(system.stream, None)):
            system.waiting[pred["id"]] = pred
        pred = system.waiting.pop(gold["id"], None)
    elif not gold["text"].strip():
        return None  # white space alone, which IOB can't hold
    else:
        pred = next(system.stream, None)
    if not (pred or args.allow_missing):
        remedy = "predict it, or count it as nothing predicted with --allow_missing"
        raise DataError(f"{system.path}: no prediction for record {gold['id']!r} of {args.gold}; {remedy}")
    system.counts["input"]["missing"] += not pred
    return pred


def open_system(name, path, args):
    """A System, unread yet. Joined by position, records that IOB can't hold are passed over."""
    iob, stream = is_iob(path), read_records(path)
    if iob or args.gold_iob:
        stream = (record for record in stream if record["text"].strip())
    return System(name, path, iob, stream, {}, defaultdict(Counter))


def compare(systems, args):
    """Read gold and all predictions side by side and count; return the Counter of what gold holds.

    Memory: one record of each file, the ids, and the predictions that stand before their turn.
    """
    facts, documents = Counter(), set()
    for gold in read_records(args.gold):
        if "token" in args.levels and "offsets" not in gold:
            gold["offsets"] = flat_view(gold)[0]["offsets"]
        truths = {}
        for system in systems:
            as_written = system.iob and args.gold_iob
            if as_written not in truths:
                truths[as_written] = read_side(gold, gold, args.gold_iob, as_written, args)
            truth = truths[as_written]
            guess = Side(frozenset(), frozenset(), ["O"] * len(truth.tags))
            if pred := find_prediction(system, gold, args):
                check_match(pred, gold, system, args)
                guess = read_side(pred, gold, system.iob, as_written, args)
            count(system.counts, truth, guess, args.levels, system.iob or args.gold_iob)
        facts["strangers"] += len(truth.other) - len(truth.spans)
        documents.add(gold["doc_id"])
        facts.update(records=1, entities=len(truth.spans), duplicates=truth.copies)
    for system in systems:
        for record in chain(system.waiting.values(), system.stream):
            where = f"{system.path}: record {record['id']!r}"
            raise DataError(f"{where} is not in {args.gold}; evaluate the split you predicted")
    if facts["strangers"] > 0:
        remedy = "convert it with brat2iob.py, or use --scheme lenient"
        log(f"warning: {args.gold}: {facts['strangers']:,} entities are none in strict IOB2 (IOB1, IOBES?); {remedy}")
    return facts | Counter(documents=len(documents))


def count(counts, gold, pred, levels, iob):
    """Add one record's two Sides to a defaultdict of Counters; `iob`: one of them at least is from IOB.

    "entity", "entity_other_scheme" and "token" hold pairs (what gold has, what is predicted), see `averages`; "any",
    "strict", "exact" and "type" the pairs of `count_semeval`; "input" what was read.
    """
    counts["input"].update(duplicates=pred.copies, predicted=len(pred.spans))
    if "entity" in levels:
        both = (("entity", gold.spans, pred.spans), ("entity_other_scheme", gold.other, pred.other))
        for name, true, guess in both[: 1 + iob]:
            pairs = [(span[2], span[2] if span in guess else None) for span in true]
            counts[name].update(pairs + [(None, span[2]) for span in guess - true])
    if "semeval" in levels:
        count_semeval(counts, gold.spans, pred.spans)
    if "token" in levels:
        counts["token"].update(zip(gold.tags, pred.tags, strict=True))


def count_semeval(counts, gold, pred):
    """Add a record's aligned pairs to the counters, keyed (same span, gold type or None, predicted type or None).

    Pairs on which all alignments agree go to "any", others to their own; `semeval_scores` grades the keys.
    """
    for golds, preds in components(gold, pred) if gold != pred else [(gold, pred)]:
        if golds == preds:
            counts["any"].update([(True, span[2], span[2]) for span in golds])
        elif len(golds) == len(preds) == 1 and overlap(golds[0], preds[0]):
            counts["any"][same_span(golds[0], preds[0]), golds[0][2], preds[0][2]] += 1
        elif golds and preds:
            for name, pairs in align(golds, preds).items():
                counts[name].update(pairs)
        else:
            counts["any"].update([(False, span[2], None) for span in golds] + [(False, None, p[2]) for p in preds])


def components(gold, pred):
    """Yield the (gold spans, predicted spans) of each run of overlapping hulls, in text order, each side sorted."""
    golds, preds, reach = [], [], 0
    for span in sorted(gold | pred):
        if span[0] >= reach and (golds or preds):
            yield golds, preds
            golds, preds = [], []
        reach = max(reach, span[1])
        if span in gold:
            golds.append(span)
        if span in pred:
            preds.append(span)
    yield golds, preds


def same_span(a, b):
    """Whether two spans cover the same characters."""
    return a[:2] == b[:2] and a[3:] == b[3:]


def overlap(a, b):
    """How many characters two spans share, fragment by fragment."""
    parts = b[3] if b[3:] else (b,)
    return sum(max(0, min(x[1], y[1]) - max(x[0], y[0])) for x in (a[3] if a[3:] else (a,)) for y in parts)


def align(golds, preds):
    """Align one component: return, per alignment, the keys of `count_semeval` of its pairs and of what is left over.

    One to one, of overlapping spans: as many correct pairs as possible, then as many further pairs as possible. Ties,
    which can only move a pair between types, go to the greatest overlap, then to equal types, then to the left.
    """
    edges, keys = overlapping(golds, preds), {}
    solve = best_chain if is_flat(golds) and is_flat(preds) else best_assignment
    most = min(len(golds), len(preds)) + 1
    shares, left = 1 + sum(edge[2] for edge in edges), 1 + 2 * most * max(golds[-1][0], preds[-1][0])
    for name in ("strict", "exact", "type"):
        weights = []
        for i, j, shared in edges:
            gold, pred = golds[i], preds[j]
            weight = SCHEMES[name][0](same_span(gold, pred), gold[2] == pred[2]) * most + 1
            weights.append(((weight * shares + shared) * most + (gold[2] == pred[2])) * left - gold[0] - pred[0])
        pairs = dict(edges[e][:2] for e in solve(edges, weights))
        keys[name] = [(same_span(golds[i], preds[j]), golds[i][2], preds[j][2]) for i, j in pairs.items()]
        keys[name] += [(False, gold[2], None) for i, gold in enumerate(golds) if i not in pairs]
        keys[name] += [(False, None, preds[j][2]) for j in set(range(len(preds))).difference(pairs.values())]
    return keys


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
    for root in rows:
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
    correct, wrong = SCHEMES[scheme]
    kinds, pos, act, found, right = Counter(), Counter(), Counter(), Counter(), Counter()
    for (span, gold, pred), n in (counts["any"] + counts["exact" if scheme == "partial" else scheme]).items():
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


def undefined(node, path=""):
    """The paths of the figures at and below a node that are 0.0 because there was nothing to divide by."""
    if isinstance(node, dict):
        return [found for key in node for found in undefined(node[key], f"{path}.{key}" if path else key)]
    return [path] if node is UNDEFINED else []


def system_scores(system, args):
    """The scores of one system, in the order that metrics.json has."""
    counts, scores = system.counts, {}
    if "entity" in args.levels:
        scores["entity"] = averages(counts["entity"])
        if system.iob or args.gold_iob:
            scores["entity_other_scheme"] = averages(counts["entity_other_scheme"])
    if "semeval" in args.levels:
        scores["semeval"] = {scheme: semeval_scores(counts, scheme) for scheme in SCHEMES}
    if "token" in args.levels:
        scores["token"] = token_scores(counts["token"])
    names = undefined(scores)
    return scores | {"input": {key: counts["input"][key] for key in ("missing", "duplicates")}, "undefined": names}


def signature(systems, facts, args):
    """What must agree for two tables to be comparable, in one line (the idea is sacreBLEU's)."""
    kinds = {args.gold_iob, *(system.iob for system in systems)}
    scheme = "+".join(["spans"] * (False in kinds) + [f"iob-{args.scheme}"] * (True in kinds))
    unit = "character" if False in kinds else "token"
    counts = "|".join(f"{key}:{facts[key]}" for key in ("records", "documents", "entities"))
    return f"scheme:{scheme}|unit:{unit}|macro:gold+pred|{counts}|version:{VERSION}"


def aligned(title, rows):
    """A table of {row name: {column: number}} as text: columns as they come, floats with 4 decimals, "-" for none."""
    columns = dict.fromkeys(column for row in rows.values() for column in row if not isinstance(row[column], dict))
    columns = sorted(columns, key=lambda column: "precision recall f1 tp fp fn support".find(column))
    cells = [[title, *({"precision": "P", "recall": "R", "f1": "F1"}.get(column, column) for column in columns)]]
    for name, row in rows.items():
        values = [row.get(column, "-") for column in columns]
        cells.append([name, *(f"{value:.4f}" if isinstance(value, float) else str(value) for value in values)])
    first, *widths = (max(map(len, column)) for column in zip(*cells, strict=True))
    return "\n".join("  ".join([row[0].ljust(first), *map(str.rjust, row[1:], widths)]) for row in cells)


def comparison_row(scores, other):
    """What the comparison table shows of one system, by column. `other`: the other scheme, where any input is IOB."""
    row = {}
    if "entity" in scores:
        micro, macro = scores["entity"]["micro"], scores["entity"]["macro"]
        row = {"F1": micro["f1"], "P": micro["precision"], "R": micro["recall"], "macro F1": macro["f1"]}
    if "entity" in scores and other:
        row[f"{other} F1"] = scores["entity_other_scheme"]["micro"]["f1"] if "entity_other_scheme" in scores else "-"
    row |= {f"SE-{scheme}": part["f1"] for scheme, part in scores.get("semeval", {}).items()}
    return row | ({"token F1": scores["token"]["by_type"]["micro"]["f1"]} if "token" in scores else {})


def seconds_per_1000(path):
    """Wall seconds per 1,000 records by the prediction's sidecar; None where it says none, or is of a conversion."""
    try:
        with open(f"{path}.run.json", encoding="utf-8") as file:
            made = json.load(file)
        if made.get("script") != "brat2iob.py":
            return 1000.0 * made["seconds"] / made["counts"]["records"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError):
        return None  # a table without it is whole, too


def render(report, systems, args):
    """The report as plain text: the comparison, each system's tables, what is undefined, the signature."""
    other = "lenient" if args.scheme == "strict" else "strict"
    beside = other if any("entity_other_scheme" in scores for scores in report["systems"].values()) else None
    rows = {name: comparison_row(scores, beside) for name, scores in report["systems"].items()}
    blocks, zeros = [], []
    for system in systems:
        scores, name = report["systems"][system.name], system.name
        if seconds := seconds_per_1000(system.path):
            rows[name]["s/1k"] = seconds
        token = scores.get("token", {})
        parts = {"entity": scores.get("entity"), f"entity, {other}": scores.get("entity_other_scheme"),
                 "token": token.get("by_type")}  # fmt: skip
        if args.level == "token":
            parts["token, by tag"] = token["by_tag"]
        for title, part in parts.items():
            if part:
                each = part.get("types") or part.get("tags") or {}
                means = {mean: part[mean] for mean in ("micro", "macro", "weighted")}
                blocks.append(aligned(f"{name}: {title}", each | means))
        if token:
            blocks[-1] += f"\naccuracy, O included: {token['accuracy']:.4f}"
        if "semeval" in scores:
            blocks.append(aligned(f"{name}: SemEval-2013", scores["semeval"]))
        zeros += [f"{name} {zero}" for zero in scores["undefined"] if not re.match(r"semeval.*\.types\.", zero)]
    blocks += [f"undefined, shown as 0.0000: {', '.join(zeros)}"] if zeros else []
    return "\n\n".join([aligned("system", rows), *blocks, f"signature: {report['signature']}"])


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument_group("data").add_argument
    add("--gold", required=True, metavar="FILE", help="the truth, JSONL or IOB")
    add("--pred", required=True, nargs="+", action="extend", metavar="FILE", help="predictions, one file per system")
    add("--names", nargs="+", action="extend", metavar="NAME", help="of the systems (default: the files' names)")
    missing = "count a gold record without a prediction as nothing predicted, not as an error (default: %(default)s)"
    add("--allow_missing", action="store_true", help=missing)
    add = parser.add_argument_group("scoring").add_argument
    levels = ("entity", "token", "semeval", "all")
    add("--level", choices=levels, default="all", help="of scoring (default: %(default)s)")
    scheme = "what is an entity in IOB: strict IOB2, or lenient, as in conlleval and by default in seqeval; "
    scheme += "the other is printed beside it (default: %(default)s)"
    add("--scheme", choices=("strict", "lenient"), default="strict", help=scheme)
    add = parser.add_argument_group("output").add_argument
    add("--format", choices=("table", "json"), default="table", help="of what is printed (default: %(default)s)")
    add("--output_file", metavar="JSON", help="write the JSON to this file, too (default: %(default)s)")
    args = parser.parse_args(argv)
    if not args.names:
        names = [os.path.basename(path) for path in args.pred]
        args.names = names if len(set(names)) == len(names) else args.pred
    if len(args.names) != len(args.pred):
        parser.error(f"--names: {len(args.names)} for the {len(args.pred)} files of --pred; give each its name")
    if len(set(args.names)) != len(args.names):
        parser.error("--names: one stands twice; give each file of --pred its own")
    if args.output_file and os.path.realpath(args.output_file) in map(os.path.realpath, (args.gold, *args.pred)):
        parser.error("--output_file: this file is an input; name another")
    args.levels = ("entity", "token", "semeval") if args.level == "all" else (args.level,)
    args.gold_iob = is_iob(args.gold)
    return args


def main(argv=None):
    args = parse_args(argv)
    systems = [open_system(name, path, args) for name, path in zip(args.names, args.pred, strict=True)]
    facts = compare(systems, args)
    report = {"signature": signature(systems, facts, args)}
    report["systems"] = {system.name: system_scores(system, args) for system in systems}
    report["tests"] = []
    text = json.dumps(report, ensure_ascii=False, indent=2)
    if args.output_file:
        with writing(args.output_file) as out:
            out.write(text + "\n")
    print(text if args.format == "json" else render(report, systems, args))
    for system in systems:
        read = system.counts["input"]
        found = f"{read['predicted']:,} entities, {read['duplicates']:,} duplicates left out"
        log(f"{system.name}: {found}, {read['missing']:,} records without a prediction")
    size = f"{facts['records']:,} records, {facts['documents']:,} documents, {facts['entities']:,} entities"
    log(f"{args.gold}: {size}, {facts['duplicates']:,} duplicates left out")


if __name__ == "__main__":
    sys.exit(run(main))

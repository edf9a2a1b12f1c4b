"""ner_eval.py against seqeval, nervaluate and enumeration, its properties, peers' bugs, and its command line.

pytest tests/test_ner_eval.py
"""

import csv
import gzip
import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
import warnings
from collections import Counter, defaultdict
from difflib import SequenceMatcher
from itertools import combinations, pairwise, permutations, product

import numpy
import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from nervaluate import Evaluator
from seqeval.metrics import classification_report
from seqeval.scheme import IOB2

import ner_eval
from utils import fragments, iob_record, render_answer

LEVELS = ("entity", "token", "semeval")

# ---------------------------------------------------------------------------- helpers


def options(*flags):
    """The parsed command line of files that no test reads."""
    return ner_eval.parse_args(["--gold", "g", "--pred", "s", "--resamples", "0", *flags])


def score(pairs, iob=False, scheme="strict"):
    """Scores of [(gold record, predicted record)], as in metrics.json."""
    args = options("--scheme", scheme)
    args.gold_iob = iob
    system = ner_eval.open_system("s", "s", args)._replace(iob=iob)
    for gold, pred in pairs:
        truth = ner_eval.read_side(gold, gold, iob, 2 * iob, args)
        guess = ner_eval.read_side(pred, gold, iob, 2 * iob, args, truth)
        ner_eval.count_record(system, truth, guess, gold | {"document": 0}, args)
    return ner_eval.system_scores(system, args)


def score_tags(gold, pred, scheme="strict"):
    """Scores of two lists of tag sequences, written as "B-A I-A O" or lists."""
    records = [
        [iob_record("r", "r", [f"t{i}" for i in range(len(tags))], list(tags)) for tags in map(as_tags, side)]
        for side in (gold, pred)
    ]
    return score(list(zip(*records, strict=True)), True, scheme)


def as_tags(tags):
    return tags.split() if isinstance(tags, str) else tags


def record(*entities, text="x" * 60, id="r"):
    """A record of one-character tokens from (start, end, type) or (start, end, type, fragments)."""
    found = [dict(zip(("start", "end", "type", "fragments"), entity, strict=False)) for entity in entities]
    offsets = [[i, i + 1] for i in range(len(text))]
    return {"id": id, "doc_id": id, "text": text, "entities": found, "offsets": offsets}


def semeval(gold, pred):
    """{scheme: (COR, INC, PAR, MIS, SPU)} of two lists of entities of one record."""
    scores = score([(record(*gold), record(*pred))])["semeval"]
    return {
        scheme: tuple(part[kind] for kind in ("COR", "INC", "PAR", "MIS", "SPU")) for scheme, part in scores.items()
    }


def random_spans(rng, flat=False, most=4, length=9, types="AB", discontinuous=True):
    """A list of distinct spans, nested and overlapping ones too unless `flat`."""
    spans, at = set(), 0
    for _ in range(rng.randint(0, most)):
        if flat:
            start = at + rng.randint(0, 2)
            at = start + rng.randint(1, 4)
            spans.add((start, at, rng.choice(types)))
        else:
            start, end = sorted(rng.sample(range(length + 1), 2))
            if discontinuous and end - start > 2 and rng.random() < 0.2:
                cut = rng.randint(start + 1, end - 2)
                spans.add((start, end, rng.choice(types), ((start, cut), (cut + 1, end))))
            else:
                spans.add((start, end, rng.choice(types)))
    return sorted(spans)


def as_entities(spans):
    return [span[:3] if len(span) == 3 else (*span[:3], [list(part) for part in span[3]]) for span in spans]


def random_records(rng, count=20, flat=False):
    """Pairs of records whose predictions are gold with some noise."""
    pairs = []
    for n in range(count):
        gold = random_spans(rng, flat, 6, 40, "ABC")
        pred = [span for span in gold if rng.random() < 0.6]
        pred = sorted({*pred, *random_spans(rng, flat, 3, 40, "ABC")}) if not flat else random_spans(rng, True, 6, 40)
        pairs.append((record(*as_entities(gold), id=str(n)), record(*as_entities(pred), id=str(n))))
    return pairs


def figures(scores):
    """Scores without what was read and without the names of undefined figures."""
    return {key: scores[key] for key in scores if key in LEVELS}


# ---------------------------------------------------------------------------- against seqeval

PREFIXED = ["O", "O", "O", "B-A", "I-A", "I-A", "B-B-C", "I-B-C", "B-D", "I-D"]


@pytest.mark.parametrize("scheme", ["strict", "lenient"])
def test_entity_level_is_seqeval_on_random_tags(scheme):
    """2,100 sequences, most of them ill-formed, in 350 corpora: all averages and each type, to the last digit."""
    rng, compared = random.Random(7), 0
    options = {"mode": "strict", "scheme": IOB2} if scheme == "strict" else {}
    for _ in range(350):
        gold = [[rng.choice(PREFIXED) for _ in range(rng.randint(1, 9))] for _ in range(6)]
        pred = [[tag if rng.random() < 0.7 else rng.choice(PREFIXED) for tag in tags] for tags in gold]
        ours = score_tags(gold, pred, scheme)["entity"]
        if not ours["types"]:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # seqeval's own, on zero denominators
            theirs = classification_report(gold, pred, output_dict=True, **options)
        rows = {name: theirs.pop(f"{name} avg") for name in ("micro", "macro", "weighted")}
        assert list(ours["types"]) == sorted(theirs)
        for name, row in (*theirs.items(), ("micro", rows["micro"])):
            mine = ours["types"][name] if name in theirs else ours["micro"]
            assert (mine["precision"], mine["recall"], mine["f1"]) == (row["precision"], row["recall"], row["f1-score"])
            assert mine["support"] == row["support"] == mine["tp"] + mine["fn"]
        for name in ("macro", "weighted"):
            for number, key in (("precision", "precision"), ("recall", "recall"), ("f1", "f1-score")):
                assert ours[name][number] == pytest.approx(rows[name][key], abs=1e-15)
        compared += 1
    assert compared > 340


def test_strict_and_lenient_stand_beside_each_other():
    """seqeval 1.3 (1): I- without B-. Lenient finds the entity, strict does not, and both say so."""
    strict = score_tags(["B-A I-A O"], ["I-A I-A O"], "strict")
    lenient = score_tags(["B-A I-A O"], ["I-A I-A O"], "lenient")
    assert strict["entity"]["micro"]["f1"] == lenient["entity_other_scheme"]["micro"]["f1"] == 0.0
    assert lenient["entity"]["micro"]["f1"] == strict["entity_other_scheme"]["micro"]["f1"] == 1.0
    assert strict["semeval"]["strict"]["ACT"] == 0 and lenient["semeval"]["strict"]["COR"] == 1


def test_no_entity_at_all_is_a_report():
    """seqeval 1.3 (2) raises: here all is 0.0, and said to be undefined."""
    scores = score_tags(["O O"], ["O O"])
    assert scores["entity"]["micro"] == dict.fromkeys(("f1", "precision", "recall"), 0.0) | dict.fromkeys(
        ("tp", "fp", "fn", "support"), 0
    )
    assert scores["entity"]["types"] == {} and scores["token"]["accuracy"] == 1.0
    wanted = {f"entity.{mean}.{n}" for mean in ("micro", "macro", "weighted") for n in ("f1", "precision", "recall")}
    assert wanted <= set(scores["undefined"]) and "token.accuracy" not in scores["undefined"]
    assert "semeval.partial.f1" in scores["undefined"]


def test_undefined_is_told_from_zero():
    scores = score([(record((0, 2, "A"), (4, 6, "B")), record((8, 9, "A"), (20, 22, "C")))])
    entity = [name for name in scores["undefined"] if name.startswith("entity")]
    assert entity == ["entity.types.B.precision", "entity.types.C.recall"]  # A's, and all F1s, are measured zeros


def test_a_wrong_type_is_a_false_negative_token_too():
    """seqeval 1.3 (5), performance_measure: gold has two entity tokens, so TP + FN = 2."""
    token = score_tags(["B-A B-B O"], ["B-B O O"])["token"]
    for part in (token["by_type"], token["by_tag"]):
        assert [part["micro"][key] for key in ("tp", "fp", "fn", "support")] == [0, 1, 2, 2]
    assert token["accuracy"] == pytest.approx(1 / 3)


def test_macro_is_over_gold_and_predicted_types():
    """seqeval 1.3 (9): one stray type halves macro F1, and leaves the weighted one."""
    entity = score_tags(["B-A O"], ["B-A B-B"])["entity"]
    assert entity["macro"]["f1"] == 0.5 and entity["weighted"]["f1"] == 1.0


def test_iobes_and_bilou_leniently():
    """1.2, 1.3 (11): adjacent one-token entities are two."""
    for tags in ("S-A S-A", "B-A E-A B-A E-A", "U-A U-A O", "B-A E-A S-A"):
        assert score_tags([tags], [tags], "lenient")["entity"]["micro"]["tp"] == 2
    token = score_tags(["S-A B-A E-A"], ["S-A I-A E-A"])["token"]["by_tag"]["tags"]
    assert list(token) == ["B-A", "E-A", "I-A", "S-A"]  # tags are scored as they are written
    assert score_tags(["U-A U-A O"], ["U-A O O"], "lenient")["entity"]["micro"]["f1"] == pytest.approx(2 / 3)


def test_tokens_by_type_and_by_tag():
    token = score_tags(["B-A I-A I-A O B-B"], ["O B-A I-A I-A B-B"])["token"]
    assert [token["by_type"]["types"]["A"][key] for key in ("tp", "fp", "fn")] == [2, 1, 1]
    assert [token["by_tag"]["tags"]["I-A"][key] for key in ("tp", "fp", "fn")] == [1, 1, 1]
    assert [token["by_tag"]["tags"]["B-A"][key] for key in ("tp", "fp", "fn")] == [0, 1, 1]
    assert token["accuracy"] == 0.4 and "O" not in token["by_tag"]["tags"]
    assert token["by_type"]["macro"]["f1"] == pytest.approx((2 / 3 + 1) / 2)


# ---------------------------------------------------------------------------- SemEval-2013

SCENARIOS = [  # Batista's table: gold, prediction, and the class for strict, exact, partial, type
    ((0, 4, "A"), (0, 4, "A"), "COR COR COR COR"),
    ((0, 4, "A"), (0, 4, "B"), "INC COR COR INC"),
    ((0, 4, "A"), (0, 3, "A"), "INC INC PAR COR"),
    ((0, 4, "A"), (0, 3, "B"), "INC INC PAR INC"),
    ((0, 4, "A"), None, "MIS MIS MIS MIS"),
    (None, (0, 4, "A"), "SPU SPU SPU SPU"),
]


@pytest.mark.parametrize(("gold", "pred", "kinds"), SCENARIOS)
def test_scenarios(gold, pred, kinds):
    found = semeval([gold] if gold else [], [pred] if pred else [])
    for scheme, kind in zip(("strict", "exact", "partial", "type"), kinds.split(), strict=True):
        assert found[scheme] == tuple(int(k == kind) for k in ("COR", "INC", "PAR", "MIS", "SPU"))


def test_the_totals_of_batistas_post():
    """Its seven rows (scenario I twice): P = R = .50 (type), .67 (partial), .50 (exact), .33 (strict)."""
    rows = [SCENARIOS[i] for i in (2, 3, 0, 5, 0, 1, 4)]

    def move(span, n):
        return [(span[0] + 8 * n, span[1] + 8 * n, span[2])] if span else []

    gold = [entity for n, row in enumerate(rows) for entity in move(row[0], n)]
    pred = [entity for n, row in enumerate(rows) for entity in move(row[1], n)]
    found = semeval(gold, pred)
    assert found == {"strict": (2, 3, 0, 1, 1), "exact": (3, 2, 0, 1, 1), "partial": (3, 0, 2, 1, 1),
                     "type": (3, 2, 0, 1, 1)}  # fmt: skip
    scores = score([(record(*gold), record(*pred))])["semeval"]
    for scheme, wanted in (("type", 3 / 6), ("partial", 4 / 6), ("exact", 3 / 6), ("strict", 2 / 6)):
        assert scores[scheme]["precision"] == scores[scheme]["recall"] == scores[scheme]["f1"] == wanted


def test_partial_credit_survives_several_documents():
    """nervaluate 1.6 (1), 1.0.0 to 1.2.0: 0.5 PAR was lost with two documents."""
    pair = record((0, 4, "A")), record((0, 3, "A"))
    for copies in (1, 2, 5):
        assert score([pair] * copies)["semeval"]["partial"]["f1"] == 0.5


@pytest.mark.parametrize("order", [1, -1])
def test_an_exact_prediction_keeps_its_gold(order):
    """nervaluate 1.6 (2): a partial prediction that comes first took it."""
    found = semeval([(0, 6, "A")], [(0, 3, "A"), (0, 6, "A")][::order])
    assert found["strict"] == found["exact"] == found["partial"] == found["type"] == (1, 0, 0, 0, 1)


@pytest.mark.parametrize(
    ("gold", "pred", "wanted"),
    [
        ("B-A I-A I-A I-A I-A", "B-B I-B O B-A I-A", (1, 0, 0, 0, 1)),  # 1.6 (3)
        ("B-A B-A I-A I-A I-A", "B-A I-A I-A I-A B-A", (2, 0, 0, 0, 0)),  # 1.6 (4)
    ],
)
def test_type_scheme_finds_as_many_as_there_are(gold, pred, wanted):
    part = score_tags([gold], [pred])["semeval"]["type"]
    assert tuple(part[kind] for kind in ("COR", "INC", "PAR", "MIS", "SPU")) == wanted


def test_one_shared_character_overlaps_and_touching_does_not():
    """nervaluate 1.6 (5), (6), and NER-Evaluation's one-token spans."""
    long = "x" * 400
    scores = score([(record((0, 200, "A"), text=long), record((199, 241, "A"), text=long))])["semeval"]
    assert scores["partial"]["PAR"] == 1 and scores["type"]["COR"] == 1
    assert semeval([(0, 1, "A")], [(1, 3, "B")])["partial"] == (0, 0, 0, 1, 1)
    assert semeval([(1, 3, "A")], [(2, 3, "A")])["partial"] == (0, 0, 1, 0, 0)


def test_spurious_types_are_kept():
    """nervaluate 1.6 (7): a type that gold does not have still costs precision."""
    assert score_tags(["B-PER O O"], ["B-PER O B-ORG"])["semeval"]["strict"]["precision"] == 0.5


def test_types_add_up_on_both_sides():
    """nervaluate 1.6 (8): gold A, predicted B on one span is exact for gold's A and for the prediction's B."""
    part = score([(record((0, 4, "A")), record((0, 4, "B")))])["semeval"]["exact"]
    assert part["f1"] == part["types"]["A"]["recall"] == part["types"]["B"]["precision"] == 1.0
    assert (part["types"]["A"]["POS"], part["types"]["A"]["ACT"]) == (1, 0)
    assert (part["types"]["B"]["POS"], part["types"]["B"]["ACT"]) == (0, 1)


def test_nothing_is_counted_twice():
    """nervaluate 1.6 (9), (12): one prediction over two gold, two predictions in one gold."""
    assert semeval([(0, 2, "A"), (3, 5, "A")], [(0, 5, "A")])["strict"] == (0, 1, 0, 1, 0)
    assert semeval([(0, 5, "A")], [(0, 2, "A"), (3, 5, "A")])["strict"] == (0, 1, 0, 0, 1)


def test_fragments_overlap_by_their_characters():
    gold = (0, 9, "A", [[0, 3], [6, 9]])
    assert semeval([gold], [(3, 6, "A")])["partial"] == (0, 0, 0, 1, 1)  # in the gap
    assert semeval([gold], [(0, 9, "A")])["partial"] == (0, 0, 1, 0, 0)  # the hull is not the entity
    assert semeval([gold], [gold])["strict"] == (1, 0, 0, 0, 0)


def test_records_never_pair_with_each_other():
    pairs = [(record((0, 4, "A"), id="1"), record(id="1")), (record(id="2"), record((0, 4, "A"), id="2"))]
    part = score(pairs)["semeval"]["strict"]
    assert (part["COR"], part["MIS"], part["SPU"]) == (0, 1, 1)


def test_semeval_is_nervaluate_on_flat_spans():
    """Strict, exact and partial on 1,500 flat documents; each alone, so that no merge is in the way."""
    rng, names = random.Random(3), ("correct", "incorrect", "partial", "missed", "spurious")
    for _ in range(1500):
        gold, pred = random_spans(rng, flat=True, most=5), random_spans(rng, flat=True, most=5)
        if not gold:
            continue  # nervaluate has no tags then
        sides = [[[{"label": t, "start": a, "end": b - 1} for a, b, t in side]] for side in (gold, pred)]
        theirs = Evaluator(*sides, tags=["A", "B"], loader="dict").evaluate()["overall"]
        ours, scores = semeval(gold, pred), score([(record(*gold), record(*pred))])["semeval"]
        for scheme in ("strict", "exact", "partial"):
            assert ours[scheme] == tuple(getattr(theirs[scheme], name) for name in names), (scheme, gold, pred)
            assert scores[scheme]["precision"] == pytest.approx(theirs[scheme].precision, abs=1e-12)
            assert scores[scheme]["recall"] == pytest.approx(theirs[scheme].recall, abs=1e-12)


def characters(span):
    return {i for start, end in (span[3] if len(span) > 3 else [span[:2]]) for i in range(start, end)}


WANTED = {  # what there must be as much of as possible, first things first, given (same span, same type) of a pair
    "strict": lambda span, type_: (span and type_, True),
    "exact": lambda span, type_: (span, True),
    "type": lambda span, type_: (type_, True),
    "errors": lambda span, type_: (span and type_, span, type_, True),
}


def enumerated(gold, pred, rule):
    """All the best alignments by brute force, as Counters of (class, gold type, predicted type)."""
    best, found = None, []
    for size in range(min(len(gold), len(pred)) + 1):
        for golds in combinations(gold, size):
            for preds in permutations(pred, size):
                pairs = list(zip(golds, preds, strict=True))
                shares = [len(characters(g) & characters(p)) for g, p in pairs]
                if not all(shares):
                    continue
                same = [characters(g) == characters(p) for g, p in pairs]
                good = [rule(s, g[2] == p[2]) for s, (g, p) in zip(same, pairs, strict=True)]
                right = tuple(map(sum, zip(*good, strict=True))) if good else (0,) * len(rule(True, True))
                types, starts = sum(g[2] == p[2] for g, p in pairs), sum(g[0] + p[0] for g, p in pairs)
                rank = (right, sum(shares), types, -starts)
                names = {(True, True): "correct", (True, False): "type", (False, True): "boundary"}
                keys = [(names.get((s, g[2] == p[2]), "type_boundary"), g[2], p[2])
                        for s, (g, p) in zip(same, pairs, strict=True)]  # fmt: skip
                keys += [("missed", g[2], None) for g in gold if g not in golds]
                keys += [("spurious", None, p[2]) for p in pred if p not in preds]
                if best is None or rank > best:
                    best, found = rank, []
                if rank == best:
                    found.append(Counter(keys))
    return found


def count_alignments(counts, gold, pred):
    """Count aligned pairs by rule, as (class, gold type, predicted type)."""
    for rule, kind, one, other in ner_eval.alignments(frozenset(gold), frozenset(pred), ner_eval.RULES):
        counts[rule][kind, one and one[2], other and other[2]] += 1


@pytest.mark.parametrize("flat", [False, True])
def test_alignment_is_the_best_of_all(flat):
    """2,400 small span sets, nested, crossing and discontinuous ones too: counts, and ties, as by enumeration."""
    rng = random.Random(11)
    for _ in range(1200):
        gold, pred = random_spans(rng, flat, 4), random_spans(rng, flat, 4)
        counts = defaultdict(Counter)
        count_alignments(counts, gold, pred)
        for name, rule in WANTED.items():
            assert counts["any"] + counts[name] in enumerated(gold, pred, rule), (gold, pred)


def best_chain(weights):
    """The weight of the heaviest matching where both sides are flat: who takes an edge goes on to the right of it."""
    edges = list(weights)
    best = [0] * (len(edges) + 1)
    for e in range(len(edges) - 1, -1, -1):
        gold, pred = edges[e]
        later = (n for n in range(e, len(edges)) if edges[n][0] > gold and edges[n][1] > pred)
        after = next(later, len(edges))
        best[e] = max(best[e + 1], weights[edges[e]] + best[after])
    return best[0]


def test_chain_and_assignment_agree_on_flat_spans():
    """Dynamic programming finds matchings of the same weight, also in components larger than can be enumerated."""
    rng = random.Random(5)
    for _ in range(300):
        cuts = [sorted(rng.sample(range(120), 24)) for _ in range(2)]
        golds, preds = ([(a, b, "A") for a, b in pairwise(c)] for c in cuts)
        weights = {edge[:2]: rng.randint(1, 5) for edge in ner_eval.overlapping(golds, preds)}
        chosen = ner_eval.best_assignment(weights)
        assert len(set(chosen.values())) == len(chosen)
        assert sum(weights[pair] for pair in chosen.items()) == best_chain(weights)


# ---------------------------------------------------------------------------- properties

ENTITY = st.tuples(st.integers(0, 12), st.integers(1, 6), st.sampled_from("ABC")).map(
    lambda x: (x[0], x[0] + x[1], x[2])
)
SPANS = st.lists(ENTITY, max_size=6, unique=True)


@settings(max_examples=300, deadline=None)
@given(SPANS, SPANS)
def test_swapping_the_sides_swaps_precision_and_recall(gold, pred):
    one = score([(record(*gold), record(*pred))])
    two = score([(record(*pred), record(*gold))])
    for a, b in [(one["entity"]["micro"], two["entity"]["micro"])] + [
        (one["semeval"][scheme], two["semeval"][scheme]) for scheme in one["semeval"]
    ]:
        assert (a["precision"], a["recall"], a["f1"]) == (b["recall"], b["precision"], b["f1"])
    for scheme, part in one["semeval"].items():
        other = two["semeval"][scheme]
        assert [part[k] for k in ("COR", "INC", "PAR", "MIS", "SPU")] == [
            other[k] for k in ("COR", "INC", "PAR", "SPU", "MIS")
        ]


@settings(max_examples=300, deadline=None)
@given(SPANS, SPANS, st.randoms())
def test_counts_add_up_in_any_order(gold, pred, rng):
    scores = score([(record(*gold), record(*pred))])
    shuffled = [rng.sample(side, len(side)) for side in (gold, pred)]
    assert figures(score([(record(*shuffled[0]), record(*shuffled[1]))])) == figures(scores)
    semeval = scores["semeval"]
    for part in semeval.values():
        assert part["POS"] == len(gold) == part["COR"] + part["INC"] + part["PAR"] + part["MIS"]
        assert part["ACT"] == len(pred) == part["COR"] + part["INC"] + part["PAR"] + part["SPU"]
        assert sum(row["POS"] for row in part["types"].values()) == part["POS"]
        credit = part["COR"] + 0.5 * part["PAR"]
        assert sum(row["recall"] * row["POS"] for row in part["types"].values()) == pytest.approx(credit)
        assert sum(row["precision"] * row["ACT"] for row in part["types"].values()) == pytest.approx(credit)
    assert semeval["strict"]["COR"] == scores["entity"]["micro"]["tp"] <= semeval["exact"]["COR"]
    assert semeval["exact"]["COR"] == semeval["partial"]["COR"] and semeval["exact"]["INC"] == semeval["partial"]["PAR"]
    assert semeval["strict"]["COR"] <= semeval["type"]["COR"]


@settings(max_examples=200, deadline=None)
@given(SPANS)
def test_a_perfect_prediction_is_perfect(gold):
    scores = score([(record(*gold), record(*gold))])
    wanted = float(bool(gold))
    for part in (scores["entity"]["micro"], scores["entity"]["macro"], scores["entity"]["weighted"],
                 scores["token"]["by_type"]["micro"], scores["token"]["by_tag"]["macro"],
                 *scores["semeval"].values()):  # fmt: skip
        assert part["precision"] == part["recall"] == part["f1"] == wanted
    assert scores["token"]["accuracy"] == 1.0


def test_the_corpus_twice_and_records_in_any_order_score_the_same():
    pairs = random_records(random.Random(1), 60)
    once, twice = score(pairs), score(pairs * 2)
    assert figures(score(pairs[::-1])) == figures(once)
    for level in ("entity", "token", "semeval"):
        assert rates(once[level]) == pytest.approx(rates(twice[level]), abs=1e-15)
    assert twice["semeval"]["type"]["INC"] == 2 * once["semeval"]["type"]["INC"] > 0


def rates(node, path=""):
    """All floats below a node, by path."""
    found = {path: node} if isinstance(node, float) else {}
    for key in node if isinstance(node, dict) else ():
        found |= rates(node[key], f"{path}.{key}")
    return found


def test_renaming_types_keeps_micro():
    rng = random.Random(2)
    pairs = random_records(rng, 60)
    renamed = json.loads(json.dumps(pairs))
    for pair in renamed:
        for entity in [*pair[0]["entities"], *pair[1]["entities"]]:
            entity["type"] = {"A": "Z", "B": "M-x", "C": "tp"}[entity["type"]]
    before, after = score(pairs), score(renamed)
    assert before["entity"]["micro"] == after["entity"]["micro"]
    for scheme, part in before["semeval"].items():
        assert {k: part[k] for k in part if k != "types"} == {
            k: after["semeval"][scheme][k] for k in part if k != "types"
        }


def test_duplicates_count_once_and_are_counted():
    """Also where fragments with nothing, or white space alone, between them make one and the same entity."""
    text = "joint pain knees"
    gold = record((0, 10, "A"), text=text)
    pred = record(
        (0, 10, "A"), (0, 10, "A"), (0, 10, "A", [[0, 5], [6, 10]]), (0, 10, "A", [[0, 3], [3, 10]]), text=text
    )
    scores = score([(gold, pred)])
    assert scores["entity"]["micro"]["fp"] == 0 and scores["entity"]["micro"]["tp"] == 1
    assert scores["semeval"]["strict"]["ACT"] == 1 and scores["input"]["duplicates"] == 3
    assert fragments(pred["entities"][2]) == [[0, 5], [6, 10]]  # the record itself is as it was


def test_token_level_is_the_flat_view_on_golds_tokens():
    """The longest wins on both sides; a prediction that starts within a token takes the token."""
    text = "rare disease of skin"
    gold = {"id": "a", "doc_id": "a", "text": text, "offsets": [[0, 4], [5, 12], [13, 15], [16, 20]],
            "entities": [{"start": 5, "end": 12, "type": "D"}, {"start": 0, "end": 12, "type": "R"}]}  # fmt: skip
    pred = {"id": "a", "doc_id": "a", "text": text, "entities": [{"start": 6, "end": 12, "type": "R"}]}
    token = score([(gold, pred)])["token"]
    assert [token["by_type"]["types"]["R"][key] for key in ("tp", "fp", "fn")] == [1, 0, 1]
    assert set(token["by_type"]["types"]) == {"R"} and token["accuracy"] == 0.5


# ---------------------------------------------------------------------------- cost


def long_document(copies):
    """Entities of a sentence, and predictions (some nested, some a chain), as spans at `copies` places."""
    gold, pred = [], []
    for n in range(copies):
        at = 100 * n
        gold += [(at, at + 10, "A"), (at + 20, at + 30, "B"), (at + 22, at + 25, "A"), (at + 40, at + 50, "A")]
        pred += [(at, at + 10, "A"), (at + 5, at + 21, "B"), (at + 22, at + 29, "A"), (at + 50, at + 60, "A")]
    return gold, pred


def test_cost_is_linear_in_the_length_of_a_document():
    def cost(documents):
        best = []
        for _ in range(3):
            counts, start = defaultdict(Counter), time.process_time()
            for gold, pred in documents:
                count_alignments(counts, gold, pred)
            best.append(time.process_time() - start)
        return min(best), counts

    one = [tuple(map(frozenset, long_document(2000)))]
    many = [tuple(map(frozenset, long_document(1)))] * 2000
    (long, joined), (short, apart) = cost(one), cost(many)
    assert joined == apart and long < 2 * short + 0.1


@pytest.mark.parametrize("nested", [False, True])
def test_one_component_as_long_as_the_document(nested):
    """8,000 entities that all hang together, and a document-wide gold and predicted entity around 1,000."""
    if nested:
        gold = [(0, 10_000, "A")] + [(10 * n, 10 * n + 6, "A") for n in range(1000)]
        pred = [(0, 10_000, "A")] + [(10 * n + n % 3, 10 * n + 6, "AB"[n % 2]) for n in range(1000) if n % 5]
    else:
        gold = [(10 * n, 10 * n + 10, "AB"[n % 2]) for n in range(4000)]
        pred = [(10 * n + 5, 10 * n + 15, "AAB"[n % 3]) for n in range(4000)]
    counts, start = defaultdict(Counter), time.process_time()
    count_alignments(counts, gold, pred)
    assert time.process_time() - start < 5
    for name in ner_eval.RULES:
        keys = counts["any"] + counts[name]
        assert sum(n for key, n in keys.items() if key[1]) == len(gold)
        assert sum(n for key, n in keys.items() if key[2]) == len(pred)


# ---------------------------------------------------------------------------- command line

TEXT = "Fever and joint pain in both knees."
GOLD = [
    {"id": "a", "doc_id": "d", "text": TEXT, "entities": [
        {"start": 0, "end": 5, "type": "SIGN"},
        {"start": 10, "end": 34, "type": "SYMPTOM", "fragments": [[10, 20], [29, 34]]},
        {"start": 10, "end": 20, "type": "SYMPTOM"}]},
    {"id": "b", "doc_id": "d", "text": "No cough here.", "entities": []},
]  # fmt: skip
PRED = [
    {"id": "b", "text": "No cough here.", "entities": [{"start": 3, "end": 8, "type": "SIGN"}]},
    {"id": "a", "text": TEXT, "entities": [{"start": 0, "end": 5, "type": "SYMPTOM"}] * 2 + GOLD[0]["entities"][1:2]},
]


@pytest.fixture
def file(tmp_path):
    """Write a list of records as JSONL, or a text as it is; return the path."""

    def write(name, content):
        path = tmp_path / name
        lines = content if isinstance(content, str) else "".join(json.dumps(item) + "\n" for item in content)
        path.write_text(lines, encoding="utf-8")
        return path

    return write


def evaluate(cli, *args):
    done = cli("ner_eval.py", *args, "--format", "json")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def words(block):
    """The lines of a block, each gap one space."""
    return [" ".join(line.split()) for line in block.splitlines()]


def test_table(cli, file, tmp_path):
    gold, one, two = file("gold.jsonl", GOLD), file("one.jsonl", PRED), file("two.jsonl", GOLD)
    file("one.jsonl.run.json", '{"seconds": 3, "counts": {"records": 2}}')
    file("two.jsonl.run.json", "not JSON")
    done = cli("ner_eval.py", "--gold", gold, "--pred", one, two, "--names", "X", "Y", "--output_file", tmp_path / "m")
    assert done.returncode == 0, done.stderr
    blocks = done.stdout.rstrip("\n").split("\n\n")
    assert words(blocks[0]) == [
        "system F1 95 % P R macro F1 SE-strict SE-exact SE-partial SE-type token F1 s/1k p",
        # gold 3, predicted 3: tp 1; exact 2 of 3; no overlap is left for the nested SYMPTOM; no token is right
        "X 0.3333 0.3333-0.3333 0.3333 0.3333 0.2500 0.3333 0.6667 0.6667 0.3333 0.0000 1500.0000 -",
        "Y 1.0000 1.0000-1.0000 1.0000 1.0000 1.0000 1.0000 1.0000 1.0000 1.0000 1.0000 - 1.0000",
    ]
    assert words(blocks[1]) == [
        "X: entity P R F1 tp fp fn support",
        "SIGN 0.0000 0.0000 0.0000 0 1 1 1",
        "SYMPTOM 0.5000 0.5000 0.5000 1 1 1 2",
        "micro 0.3333 0.3333 0.3333 1 2 2 3",
        "macro 0.2500 0.2500 0.2500 - - - -",
        "weighted 0.3333 0.3333 0.3333 - - - -",
    ]
    assert "X: SemEval-2013  COR  INC  PAR  MIS  SPU  POS  ACT       P       R      F1" in done.stdout
    assert "exact              2    0    0    1    1    3    3  0.6667  0.6667  0.6667" in done.stdout
    assert blocks[-3].startswith("undefined, shown as 0.0000: X token.by_tag.tags.")
    assert blocks[-1] == ("signature: scheme:spans|unit:character|macro:gold+pred|records:2|documents:1|"
                          "entities:3|version:1.0")  # fmt: skip
    assert done.stderr.splitlines() == [
        f"warning: {tmp_path / 'two.jsonl'}.run.json: not JSON; without it there are no seconds and no cost",
        "warning: 1 documents: intervals and tests by document say little below 20",
        "X: 3 entities, 1 duplicates left out, 0 records without a prediction",
        "Y: 3 entities, 0 duplicates left out, 0 records without a prediction",
        f"{gold}: 2 records, 1 documents, 3 entities, 0 duplicates left out",
    ]
    assert all(line == line.rstrip() for line in done.stdout.splitlines())


def test_columns_have_one_order_whichever_system_has_them(cli, file):
    """Answers of one system, tags of another: no row has all columns."""
    gold, tags = (
        file("g.jsonl", GOLD),
        "".join(f"{word}\tO\n" for word in TEXT.split()) + "\nNo\tO\ncough\tO\nhere.\tO\n",
    )
    answers = file("a.jsonl", [record | {"status": "ok"} for record in GOLD])
    head = words(cli("ner_eval.py", "--gold", gold, "--pred", gold, answers, file("t.iob", tags)).stdout)[0]
    assert head == ("system F1 95 % P R macro F1 lenient F1 SE-strict SE-exact SE-partial SE-type token F1 F1+dropped "
                    "parsed halluc. p")  # fmt: skip


def test_json_keys_and_order(cli, file, tmp_path):
    gold, pred, out = file("gold.jsonl", GOLD), file("pred.jsonl", PRED), tmp_path / "new" / "metrics.json"
    done = cli("ner_eval.py", "--gold", gold, "--pred", pred, "--format", "json", "--output_file", out)
    assert done.stdout == out.read_text(encoding="utf-8")
    report = json.loads(done.stdout)
    assert done.stdout.startswith('{\n  "signature": "')
    assert list(report) == ["signature", "systems", "tests", "options"] and report["tests"] == []
    scores = report["systems"]["pred.jsonl"]
    assert list(scores) == ["entity", "semeval", "token", "errors", "intervals", "input", "undefined"]
    assert list(scores["entity"]) == ["micro", "macro", "weighted", "types"]
    assert list(scores["entity"]["micro"]) == ["f1", "precision", "recall", "tp", "fp", "fn", "support"]
    assert list(scores["entity"]["types"]) == ["SIGN", "SYMPTOM"]
    assert list(scores["semeval"]) == ["strict", "exact", "partial", "type"]
    assert list(scores["semeval"]["partial"]) == ["COR", "INC", "PAR", "MIS", "SPU", "POS", "ACT", "precision",
                                                  "recall", "f1", "types"]  # fmt: skip
    assert list(scores["token"]) == ["accuracy", "by_type", "by_tag"]
    assert scores["input"] == {"missing": 0, "duplicates": 1, "filtered": 0}
    lines = "".join(f"{tag}\t{tag}\n" for tag in ("B-A", "I-A", "O"))
    iob = evaluate(cli, "--gold", file("g.iob", lines), "--pred", file("p.iob", lines), "--scheme", "lenient")
    assert list(iob["systems"]["p.iob"])[:2] == ["entity", "entity_other_scheme"]
    assert "scheme:iob-lenient|unit:token" in iob["signature"]


@pytest.mark.parametrize("level", LEVELS)
def test_one_level_alone(cli, file, level):
    report = evaluate(cli, "--gold", file("g.jsonl", GOLD), "--pred", file("p.jsonl", PRED), "--level", level)
    more = ["errors", "intervals"] if level == "entity" else []
    assert list(report["systems"]["p.jsonl"]) == [level, *more, "input", "undefined"]
    done = cli("ner_eval.py", "--gold", file("g.jsonl", GOLD), "--pred", file("p.jsonl", PRED), "--level", level)
    assert done.returncode == 0 and ("SemEval" in done.stdout) == (level == "semeval")


def test_missing_predictions(cli, file):
    """An omitted record costs its recall (PharmaCoNER's script leaves it out: 1.0), and only if asked to."""
    gold, pred = file("gold.jsonl", GOLD), file("pred.jsonl", PRED[:1])
    done = cli("ner_eval.py", "--gold", gold, "--pred", pred)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {pred}: no prediction for record 'a' of {gold}:1; ")
    command = f"'{sys.executable}' '{ROOT}/ner_eval.py' --gold <(cat '{gold}') --pred '{pred}'"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)  # a pipe is not read again
    assert done.returncode == 1 and re.search("no prediction for record 'a' of /dev/fd/[0-9]+; ", done.stderr)
    report = evaluate(cli, "--gold", gold, "--pred", pred, "--allow_missing")
    scores = report["systems"]["pred.jsonl"]
    assert scores["entity"]["micro"]["fn"] == 3 and scores["semeval"]["type"]["MIS"] == 3
    assert scores["token"]["by_type"]["micro"]["support"] == 3 and scores["input"]["missing"] == 1
    done = cli("ner_eval.py", "--gold", gold, "--pred", pred, "--allow_missing")
    assert "pred.jsonl: 1 entities, 0 duplicates left out, 1 records without a prediction" in done.stderr


IOB = "Fever\tB-S\nand\tO\njoint\tB-S\npain\tI-S\n\nNo\tO\ncough\tB-S\n"
OTHER_TEXT = [PRED[0], {"id": "a", "text": "Another text, which is no one's.", "entities": []}]


@pytest.mark.parametrize(
    ("gold", "pred", "message"),
    [
        (GOLD, [*PRED, {"id": "z", "text": "q"}], "pred.jsonl:3: record 'z' is not in "),
        (GOLD, [*PRED, {"id": "a", "text": TEXT}], "pred.jsonl:3: id 'a' stands twice"),
        (GOLD, OTHER_TEXT, "pred.jsonl:2: record 'a': its characters (32) are not those (35) of record 'a' in "),
        (GOLD, PRED[1:], "pred.jsonl: no prediction for record 'b' of "),
        (GOLD, "", "pred.jsonl: holds no record"),
        ([], PRED, "gold.jsonl: holds no record"),
        (GOLD, [*PRED[:1], {"id": "a"}], 'pred.jsonl:2: no "text"'),
        (GOLD, json.dumps(PRED[0]) + "\noops\n", "pred.jsonl:2: not JSON"),
        (GOLD, IOB, "pred.iob:1: record '#0:0': its characters (17) are not those (29) of record 'a' in "),
        (IOB, GOLD, "pred.jsonl:1: record 'a': its characters (29) are not those (17) of record '#0:0' in "),
        (IOB, IOB.replace("pain\tI-S\n", ""), "pred.iob:1: record '#0:0': its tokens (3) are not those (4) of record "),
        (IOB, IOB.replace("cough", "fever"), "pred.iob:6: record '#1:0': its tokens (2) are not those (2) of record "),
        (IOB, IOB.split("\n\n")[0], "pred.iob: no prediction for record '#1:0' of "),
        (IOB, IOB + "\nx\tO\n", "pred.iob:9: record '#2:0' is not in "),
        (IOB, IOB.replace("B-S", "X-S"), "pred.iob:1: unknown tag"),
    ],
)
def test_wrong_input_is_one_line(cli, file, tmp_path, gold, pred, message):
    paths = [
        file(f"{name}.{'iob' if isinstance(data, str) and chr(9) in data else 'jsonl'}", data)
        for name, data in (("gold", gold), ("pred", pred))
    ]
    out = tmp_path / "metrics.json"
    done = cli("ner_eval.py", "--gold", paths[0], "--pred", paths[1], "--output_file", out)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith(f"error: {tmp_path}/{message}") and done.stderr.count("\n") == 1
    assert TEXT not in done.stderr
    assert not out.exists() and not list(tmp_path.glob("*.part"))


def test_unreadable_and_unwritable_files(cli, file, tmp_path):
    gold = file("gold.jsonl", GOLD)
    done = cli("ner_eval.py", "--gold", tmp_path / "none.jsonl", "--pred", gold)
    assert done.returncode == 1 and done.stderr == f"error: {tmp_path}/none.jsonl: No such file or directory\n"
    done = cli("ner_eval.py", "--gold", gold, "--pred", gold, "--output_file", gold / "metrics.json")
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 1 and last.startswith("error: ") and done.stdout == ""


@pytest.mark.parametrize(
    "args",
    [
        [],
        ["--gold", "g.jsonl"],
        ["--gold", "g.jsonl", "--pred", "p.jsonl", "q.jsonl", "--names", "one"],
        ["--gold", "g.jsonl", "--pred", "p.jsonl", "p.jsonl"],
        ["--pred", "p.jsonl"],
        ["--pred", "p.iob", "q.iob"],
        ["--gold", "g.jsonl", "--pred", "p.jsonl", "--by", "seen"],
        ["--gold", "g.jsonl", "--pred", "p.jsonl", "--html", "x", "--errors", "x"],
        ["--gold", "g.jsonl", "--pred", "p.jsonl", "--errors", "g.jsonl"],
        ["--gold", "g.jsonl", "--pred", "p.jsonl", "--level", "token", "--min_f1", "0.5"],
        ["--gold", "g.jsonl", "--pred", "p.jsonl", "--level", "token", "--by", "length"],
        ["--gold", "g.jsonl", "--pred", "p.jsonl", "--min_f1", "nan"],
        ["--gold", "g.jsonl", "--pred", "p.jsonl", "--min_f1", "90"],
        ["--gold", "g.jsonl", "--pred", "p.jsonl", "--resamples", "-1"],
        ["--gold", "g.jsonl", "--pred", "p.jsonl", "--output_file", "./g.jsonl"],
        ["--gold", "g.jsonl", "--pred", "p.jsonl", "--output_file", "p.jsonl"],
        ["--gold", "g.jsonl", "--pred", "p.jsonl", "--level", "words"],
        ["--gol", "g.jsonl", "--pred", "p.jsonl"],
        ["g.jsonl", "p.jsonl"],
    ],
)
def test_usage_errors(cli, args):
    done = cli("ner_eval.py", *args)
    assert done.returncode == 2 and "Traceback" not in done.stderr and done.stdout == ""


def test_help_says_every_default(cli):
    done = cli("ner_eval.py", "--help")
    assert done.returncode == 0 and done.stdout.count("(default") == 16
    assert "Differs" in done.stdout and "python ner_eval.py --gold" in done.stdout


def test_names_without_names(cli, file, tmp_path):
    (tmp_path / "x").mkdir()
    gold, one, two = file("gold.jsonl", GOLD), file("p.jsonl", GOLD), file("x/p.jsonl", GOLD)
    assert list(evaluate(cli, "--gold", gold, "--pred", one, gold)["systems"]) == ["p.jsonl", "gold.jsonl"]
    repeated = evaluate(cli, "--gold", gold, "--pred", one, "--pred", two)  # not only the last --pred
    assert list(repeated["systems"]) == [str(one), str(two)]


def test_gz_and_rare_en(cli, rare_en, tmp_path):
    """The docstring's commands: spans against themselves are 1.0, the flat view lacks what it can't hold."""
    packed = tmp_path / "test.jsonl.gz"
    packed.write_bytes(gzip.compress((rare_en / "test.jsonl").read_bytes()))
    gold = rare_en / "test.jsonl"
    report = evaluate(cli, "--gold", gold, "--pred", packed, rare_en / "test.iob", "--names", "all", "flat")
    whole, flat = report["systems"]["all"], report["systems"]["flat"]
    assert (
        whole["entity"]["micro"]["f1"] == whole["semeval"]["type"]["f1"] == whole["token"]["by_tag"]["micro"]["f1"] == 1
    )
    assert flat["entity"]["micro"]["precision"] == flat["token"]["accuracy"] == 1.0  # gold's cuts are in the tokens
    records = [json.loads(line) for line in gold.read_text(encoding="utf-8").splitlines()]
    assert flat["entity"]["micro"]["support"] == sum(len(item["entities"]) for item in records)
    assert "scheme:spans+iob-strict|unit:character" in report["signature"]
    table = cli("ner_eval.py", "--gold", gold, "--pred", gold, rare_en / "test.iob").stdout
    head, first, second = words(table.split("\n\n")[0])
    assert head == "system F1 95 % P R macro F1 lenient F1 SE-strict SE-exact SE-partial SE-type token F1 p"
    assert first.split()[6] == "-" and second.split()[6] == second.split()[1]  # and no s/1k from a conversion
    back = evaluate(cli, "--gold", rare_en / "test.iob", "--pred", gold)["systems"]["test.jsonl"]
    assert back["entity"]["micro"]["recall"] == 1.0
    assert back["entity"]["micro"]["tp"] == flat["entity"]["micro"]["tp"]
    same = evaluate(cli, "--gold", rare_en / "test.iob", "--pred", rare_en / "test.iob", "--scheme", "lenient")
    assert same["systems"]["test.iob"]["entity"]["micro"]["f1"] == 1.0


def test_iob_against_jsonl_by_position(cli, file):
    """Other white space, another tokenization and a record of white space alone do not matter; characters do."""
    entities = [{"start": 0, "end": 10, "type": "S"}, {"start": 16, "end": 21, "type": "S"}]
    gold = [{"id": "a", "text": "joint-pain  and\tfever", "entities": entities}]
    gold += [{"id": "w", "text": " \n"}, {"id": "b", "text": "No cough"}]
    iob = "joint\tB-S\n-\tI-S\npain\tI-S\nand\tO\nfever\tI-S\n\nNo\tO\ncough\tO\n"
    args = ("--gold", file("g.jsonl", gold), "--pred", file("p.iob", iob))
    scores = evaluate(cli, *args)["systems"]["p.iob"]
    assert scores["entity"]["micro"]["tp"] == 1  # strict: the I-S after O is no entity
    assert scores["entity_other_scheme"]["micro"]["f1"] == scores["token"]["by_type"]["micro"]["f1"] == 1.0
    assert scores["input"]["missing"] == 0
    assert evaluate(cli, *args, "--scheme", "lenient")["systems"]["p.iob"]["entity"]["micro"]["f1"] == 1.0
    whole = [{"id": "a", "text": "joint-pain and fever", "entities": [{"start": 0, "end": 10, "type": "S"}]},
             {"id": "b", "text": "No cough"}]  # fmt: skip
    scores = evaluate(cli, "--gold", file("g.iob", iob), "--pred", file("q.jsonl", whole))["systems"]["q.jsonl"]
    assert scores["entity"]["micro"]["f1"] == 1.0 and scores["entity_other_scheme"]["micro"]["recall"] == 0.5


def test_a_copy_in_an_empty_folder_works(file, tmp_path):
    for name in ("ner_eval.py", "utils.py"):
        shutil.copy(ROOT / name, tmp_path)
    path = file("g.jsonl", GOLD)
    done = subprocess.run([sys.executable, "-S", tmp_path / "ner_eval.py", "--gold", path, "--pred", path],
                          capture_output=True, text=True, cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0 and "1.0000" in done.stdout, done.stderr  # -S: no installed package


# ---------------------------------------------------------------------------- conlleval

TAGS = st.lists(st.sampled_from([*PREFIXED, "B-A", "I-D", "B", "I"]), min_size=1, max_size=10)


def conlleval_chunks(tags):
    """The chunks by conlleval.pl's two tables: whether one ends before a tag, and whether one begins at it."""
    chunks, start, before, kind = set(), None, "O", ""
    for i, tag in enumerate([*tags, "O"]):
        now, _, type_ = tag.partition("-")
        ends = (before, now) in {("B", "B"), ("B", "O"), ("I", "B"), ("I", "O")} or (before != "O" and kind != type_)
        begins = (before, now) in {("B", "B"), ("I", "B"), ("O", "B"), ("O", "I")} or (now != "O" and kind != type_)
        if ends:
            chunks.add((start, i, kind))
        if begins:
            start = i
        before, kind = now, type_
    return chunks


@settings(max_examples=2000, deadline=None)
@given(st.lists(st.tuples(TAGS, TAGS), min_size=1, max_size=3))
def test_lenient_is_conlleval_count_for_count(pairs):
    pairs = [(gold, (pred + ["O"] * 10)[: len(gold)]) for gold, pred in pairs]
    sides = [[conlleval_chunks(tags) for tags in side] for side in zip(*pairs, strict=True)]
    micro = score_tags(*zip(*pairs, strict=True), "lenient")["entity"]["micro"]
    assert micro["support"] == sum(map(len, sides[0])) and micro["tp"] + micro["fp"] == sum(map(len, sides[1]))
    assert micro["tp"] == sum(len(gold & pred) for gold, pred in zip(*sides, strict=True))


def test_peers_small_bugs():
    """nereval: P 1.5 for one prediction over three of gold; bratutils: R 1.0 with one missed; eval4ner: ulcers."""
    three = [(0, 4, "A"), (5, 9, "A"), (10, 14, "A")]
    scores = score([(record(*three), record((0, 14, "A")))])["semeval"]
    assert scores["type"]["precision"] == 1.0 and scores["type"]["recall"] == pytest.approx(1 / 3)
    missed = score([(record((0, 4, "A"), (5, 9, "A")), record((0, 4, "A")))])
    assert missed["semeval"]["strict"]["MIS"] == 1 and missed["entity"]["micro"]["recall"] == 0.5
    text = "ulcer ; an ulcer" + "x" * 40
    assert (
        score([(record((8, 16, "A"), text=text), record((11, 16, "A"), text=text))])["semeval"]["partial"]["PAR"] == 1
    )
    same = score([(record((0, 4, "A")), record((0, 4, "A")))] + [(record(id="e"), record(id="e"))] * 9)
    assert same["semeval"]["strict"]["INC"] == same["semeval"]["strict"]["MIS"] == 0
    inner = score([(record((0, 9, "A")), record((0, 4, "A"), (5, 9, "A")))])["entity"]["micro"]
    assert (inner["tp"], inner["fp"], inner["fn"]) == (0, 2, 1)  # n2c2's lenient rule has P = R = 1 here
    part = (0, 9, "A", [[0, 3], [6, 9]])
    assert score([(record(part), record((0, 3, "A"), (6, 9, "A")))])["entity"]["micro"]["tp"] == 0  # brateval: subset


def rows_of(name):
    with gzip.open(name, "rt", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def published_answers(folder):
    """(gold tokens and tags, [(token, tag)] of GPT-4's reply) of each sentence, parsed as the paper's code does."""
    gold = {}
    for row in rows_of(folder / "test_combined_IOB_data.csv.gz"):
        gold.setdefault(row["Sentence_Num_Global"], []).append((row["Token"], row["Tag"]))
    with gzip.open(folder / "answers_test.txt.gz", "rt", encoding="utf-8") as file:
        answers = re.split(r"^######\n", file.read(), flags=re.M)[1:]
    for sentence, answer in zip(gold.values(), answers, strict=True):
        lines = [re.sub(r"[\[\]]", "", line).split(": ") for line in answer.split("\n") if line.strip()]
        yield sentence, [(line[0].strip(), line[1].strip() if len(line) == 2 else "O") for line in lines]


TABLE_3 = {  # Lu et al. 2024 (arXiv 2407.00731), GPT-4, few-shot: P, R, F1
    "DISEASE": (0.2254, 0.2977, 0.2566), "RAREDISEASE": (0.6011, 0.5901, 0.5955),
    "SKINRAREDISEASE": (0.2953, 0.3958, 0.3383), "SIGN": (0.2749, 0.2500, 0.2619), "SYMPTOM": (0.0900, 0.5490, 0.1547),
}  # fmt: skip


def test_table_3_of_the_raredis_paper(cli, corpus, tmp_path):
    """Answers laid on gold by position give the printed figures; laid on it by token they give others."""
    folder = corpus("raredis") / "gpt4-5shot"
    lines = {"gold": [], "position": [], "token": []}
    for sentence, answer in published_answers(folder):
        words, tags = [word for word, _ in sentence], [tag for _, tag in answer]
        by_token = ["O"] * len(words)
        for i, j, n in SequenceMatcher(None, words, [word for word, _ in answer], False).get_matching_blocks():
            by_token[i : i + n] = tags[j : j + n]
        columns = [tag for _, tag in sentence], (tags + ["O"] * len(words))[: len(words)], by_token
        for name, column in zip(lines, columns, strict=True):
            lines[name] += [f"{word}\t{tag}\n" for word, tag in zip(words, column, strict=True)] + ["\n"]
    for name, content in lines.items():
        (tmp_path / f"{name}.iob").write_text("".join(content), encoding="utf-8")
    sides = ("--gold", tmp_path / "gold.iob", "--pred", tmp_path / "position.iob", tmp_path / "token.iob")
    args = (*sides, "--names", "position", "token", "--scheme", "lenient", "--resamples", 0)
    systems = evaluate(cli, *args)["systems"]
    rounded = [tuple(round(part[key], 4) for key in ("precision", "recall", "f1"))
               for part in systems["position"]["entity"]["types"].values()]  # fmt: skip
    assert dict(zip(systems["position"]["entity"]["types"], rounded, strict=True)).items() >= TABLE_3.items()
    micro = systems["position"]["entity"]["micro"]
    assert [round(micro[key], 4) for key in ("precision", "recall", "f1")] == [0.3516, 0.3592, 0.3554]
    assert round(systems["token"]["entity"]["micro"]["f1"], 4) == 0.3659
    # Its "average" is the mean of the five printed figures; the macro of the five types is that of the exact ones.
    assert [round(numpy.mean(column), 4) for column in zip(*TABLE_3.values(), strict=True)] == [0.2973, 0.4165, 0.3214]
    five = evaluate(cli, *args, "--types", *TABLE_3)["systems"]["position"]["entity"]["macro"]
    assert [round(five[key], 4) for key in ("precision", "recall", "f1")] == [0.2974, 0.4165, 0.3214]


# ---------------------------------------------------------------------------- errors and facets


@settings(max_examples=300, deadline=None)
@given(SPANS, SPANS)
def test_f1_if_repaired_is_the_f1_after_the_repair(gold, pred):
    """Every gold and predicted entity stands in one class; repairing a class for real gives the figure foretold."""
    scores = score([(record(*gold), record(*pred))])
    errors, pairs = scores["errors"], list(ner_eval.error_pairs(frozenset(gold), frozenset(pred)))
    assert Counter(kind for kind, *_ in pairs) == Counter({k: n for k, n in errors["classes"].items() if n})
    assert sorted(one for _, one, _, _ in pairs if one) == sorted(gold)
    assert sorted(other for _, _, other, _ in pairs if other) == sorted(pred)
    assert errors["classes"]["correct"] == scores["entity"]["micro"]["tp"]
    for name, foretold in errors["f1_if_repaired"].items():
        after = [one if kind == name else other for kind, one, other, _ in pairs]
        repaired = score([(record(*gold), record(*filter(None, after)))])["entity"]["micro"]["f1"]
        assert foretold == pytest.approx(repaired, abs=1e-12)
    table = errors["confusion"]
    assert sum(sum(row.values()) for row in table.values()) == len(pairs)
    assert sum(table.get("(spurious)", {}).values()) == errors["classes"]["spurious"]


def test_classes_flags_and_boundaries(cli, file, tmp_path):
    text = "Fever, dry cough and severe joint pain in both knees."
    spans = ("0 5 S", "7 16 S", "28 38 S", "47 52 B"), ("0 5 B", "7 10 S", "11 16 S", "21 38 B", "42 46 S")
    gold, pred = (
        [{"id": "a", "doc_id": "d", "text": text, "entities": [
            {"start": int(start), "end": int(end), "type": type_} for start, end, type_ in map(str.split, side)]}]
        for side in spans
    )  # fmt: skip
    out = tmp_path / "errors.jsonl"
    scores = evaluate(cli, "--gold", file("g.jsonl", gold), "--pred", file("p.jsonl", pred), "--errors", out)
    lines = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    assert [line["class"] for line in lines] == ["type", "boundary", "spurious", "type_boundary", "spurious", "missed"]
    assert [line["flags"] for line in lines] == [[], ["split"], [], [], [], []]
    assert lines[1]["boundary"] == ["left too short"] and lines[1]["pred"]["text"] == "cough"  # the greater overlap
    assert lines[3]["boundary"] == ["left too long"] and lines[3]["gold"]["text"] == "joint pain"
    assert lines[5]["pred"] is None and lines[5]["gold"] == {"start": 47, "end": 52, "type": "B", "text": "knees"}
    assert text[7:16] in lines[1]["context"] and lines[0]["system"] == "p.jsonl" and lines[0]["doc_id"] == "d"
    errors = scores["systems"]["p.jsonl"]["errors"]
    assert errors["confusion"] == {"B": {"(missed)": 1}, "S": {"B": 2, "S": 1}, "(spurious)": {"S": 2}}


def test_facets_add_up_and_say_what_they_mean(cli, file):
    train = [{"id": "t", "text": "fever ,  joint\npain", "entities": [
        {"start": 0, "end": 5, "type": "SIGN"}, {"start": 9, "end": 19, "type": "X"}]}]  # fmt: skip
    gold, pred = file("gold.jsonl", GOLD), file("pred.jsonl", PRED)
    facets = ("--by", "length", "seen", "document", "--train_file", file("train.jsonl", train))
    scores = evaluate(cli, "--gold", gold, "--pred", pred, *facets)["systems"]["pred.jsonl"]
    for groups in scores["by"].values():
        for number in ("tp", "fp", "fn", "support"):
            assert sum(group[number] for group in groups.values()) == scores["entity"]["micro"][number]
    length, seen = scores["by"]["length"], scores["by"]["seen"]
    assert list(length) == ["1 word", "2 words", "3 words"] and length["3 words"]["f1"] == 1.0
    assert length["1 word"]["support"] == 1 and length["1 word"]["fp"] == 2  # the length of each side's own mention
    assert (seen["seen"]["support"], seen["seen with other type"]["support"], seen["unseen"]["support"]) == (1, 1, 1)
    assert seen["seen with other type"]["fp"] == 1 and list(scores["by"]["document"]) == ["d"]
    table = cli("ner_eval.py", "--gold", gold, "--pred", pred, *facets).stdout
    assert "pred.jsonl: by length" in table and "seen with other type" in table


# ---------------------------------------------------------------------------- several systems


def noisy(seed, documents=12, share=0.7):
    """Gold and a prediction of it, as records of one document each."""
    rng, gold, pred = random.Random(seed), [], []
    base = random.Random(1)
    for n in range(documents):
        entities = [{"start": 10 * i, "end": 10 * i + 5, "type": base.choice("AB")} for i in range(base.randint(0, 5))]
        found = [e | ({} if rng.random() < share else {"end": e["end"] + 1}) for e in entities if rng.random() < 0.9]
        common = {"id": str(n), "doc_id": f"d{n}", "text": "x" * 60}
        gold.append(common | {"entities": entities})
        pred.append(common | {"entities": found})
    return gold, pred


def document_triples(gold, pred):
    triples = []
    for one, other in zip(gold, pred, strict=True):
        sides = [{(e["start"], e["end"], e["type"]) for e in side["entities"]} for side in (one, other)]
        triples.append((len(sides[0] & sides[1]), len(sides[1] - sides[0]), len(sides[0] - sides[1])))
    return triples


def f1(triples):
    tp, fp, fn = map(sum, zip(*triples, strict=True))
    return 2 * tp / (2 * tp + fp + fn) if tp else 0.0


def test_all_swaps_are_tried_where_they_are_few(cli, file):
    """p by hand over the 2^n swaps of two systems against the first, and Holm's correction of the two."""
    gold, first = noisy(1, 9)
    others = [noisy(2, 9, 0.2)[1], noisy(3, 9)[1]]
    paths = [
        file(f"{name}.jsonl", side) for name, side in (("gold", gold), ("a", first), ("b", others[0]), ("c", others[1]))
    ]
    report = evaluate(cli, "--gold", paths[0], "--pred", *paths[1:])
    wanted, ours = [], document_triples(gold, first)
    for other in others:
        theirs = document_triples(gold, other)
        apart, hits = abs(f1(ours) - f1(theirs)), 0
        for swaps in product((0, 1), repeat=9):
            mixed = [[(a, b)[swap], (a, b)[1 - swap]] for a, b, swap in zip(ours, theirs, swaps, strict=True)]
            hits += abs(f1([a for a, _ in mixed]) - f1([b for _, b in mixed])) >= apart - 1e-12
        wanted.append(hits / 2**9)
    tests = report["tests"]
    assert [test["p"] for test in tests] == pytest.approx(wanted) and "all swaps" in tests[0]["method"]
    small, large = sorted(wanted)
    assert sorted(test["p_holm"] for test in tests) == pytest.approx([min(1, 2 * small), max(min(1, 2 * small), large)])
    assert tests[0]["difference"] == pytest.approx(f1(document_triples(gold, others[0])) - f1(ours))
    marked = cli("ner_eval.py", "--gold", paths[0], "--pred", *paths[1:]).stdout.split("\n\n")[0].splitlines()
    assert [line.endswith("*") for line in marked[1:]] == [False, *(test["p_holm"] < 0.05 for test in tests)]


def test_random_swaps_come_near_all_swaps():
    gold, first = noisy(1, 16)
    args = options("--resamples", "4000")
    tables = []
    for pred in (first, noisy(2, 16, 0.3)[1]):
        tables.append(numpy.array(document_triples(gold, pred), float)[None, :, None, :])
    difference, p, exact = ner_eval.swap_test(*tables, args)
    args.resamples = 2**16
    same, all_p, all_exact = ner_eval.swap_test(*tables, args)
    assert (exact, all_exact) == (False, True) and difference == same and abs(p - all_p) < 0.03
    assert ner_eval.swap_test(tables[0], tables[0], args) == (0.0, 1.0, True)
    far = [numpy.tile([float(tp), 0, 3.0 - tp], (1, 40, 1, 1)) for tp in (0, 3)]
    args.resamples = 99
    assert ner_eval.swap_test(*far, args) == (1.0, 0.01, False)  # never 0: the observed swap counts as one


def test_intervals_are_percentiles_over_documents(cli, file):
    """By hand, from the same draws of documents; and the seed alone decides."""
    gold, pred = noisy(5, 30)
    args = ("--gold", file("g.jsonl", gold), "--pred", file("p.jsonl", pred), "--resamples", 500, "--seed", 3)
    found = evaluate(cli, *args)["systems"]["p.jsonl"]["intervals"]
    triples, rng = document_triples(gold, pred), numpy.random.default_rng(3)
    values = [f1([triples[i] for i in rng.integers(30, size=30)]) for _ in range(500)]
    assert found["f1"] == pytest.approx(numpy.percentile(values, (2.5, 97.5)))
    assert found["f1"][0] < f1(triples) < found["f1"][1] and not found["degenerate"]
    assert {key: found[key] for key in ("documents", "resamples", "seed")} == {
        "documents": 30,
        "resamples": 500,
        "seed": 3,
    }
    other = evaluate(cli, *args[:-1], 4)["systems"]["p.jsonl"]["intervals"]
    assert other["f1"] != found["f1"] and other["f1"] == pytest.approx(found["f1"], abs=0.03)
    perfect = evaluate(cli, "--gold", args[1], "--pred", args[1])["systems"]["g.jsonl"]["intervals"]
    assert perfect["f1"] == perfect["macro_f1"] == perfect["recall"] == [1.0, 1.0]


def test_files_of_one_name_are_runs(cli, file):
    """Mean and sd are those of the runs scored alone; a draw of documents is scored by each run, and a swap, too."""
    gold, _ = noisy(1, 25)
    path, runs = file("g.jsonl", gold), [file(f"{seed}.jsonl", noisy(seed, 25)[1]) for seed in (2, 3, 4)]
    alone = [evaluate(cli, "--gold", path, "--pred", run)["systems"][run.name] for run in runs]
    args = ("--gold", path, "--pred", *runs, runs[0], "--names", "A", "A", "A", "B")
    report = evaluate(cli, *args)
    both = report["systems"]["A"]
    values = [scores["entity"]["micro"]["f1"] for scores in alone]
    assert both["entity"]["micro"]["f1"] == pytest.approx(numpy.mean(values))
    assert (
        both["runs"]["sd"]["micro"]["f1"] == pytest.approx(numpy.std(values, ddof=1)) and both["runs"]["f1"] == values
    )
    means = [scores["errors"]["classes"]["boundary"] for scores in alone]
    assert both["errors"]["classes"]["boundary"] == pytest.approx(numpy.mean(means))
    assert both["intervals"]["f1"][0] < both["entity"]["micro"]["f1"] < both["intervals"]["f1"][1]
    assert list(report["systems"]) == ["A", "B"] and len(report["tests"]) == 1
    best = report["systems"]["B"]["entity"]["micro"]["f1"]
    assert report["tests"][0]["difference"] == pytest.approx(best - numpy.mean(values))  # the one that is shown
    draws = numpy.random.default_rng(42)
    sides = [document_triples(gold, noisy(seed, 25)[1]) for seed in (2, 3, 4)]
    means = []
    for _ in range(1000):
        drawn = draws.integers(25, size=25)
        means.append(numpy.mean([f1([side[i] for i in drawn]) for side in sides]))
    assert both["intervals"]["f1"] == pytest.approx(numpy.percentile(means, (2.5, 97.5)))
    head, first, second = words(cli("ner_eval.py", *args).stdout.split("\n\n")[0])
    assert head.startswith("system F1 95 % sd runs P R") and first.split()[4] == "3" and second.split()[4] == "-"


# ---------------------------------------------------------------------------- inputs, types, formats


@pytest.mark.parametrize("text", [
    "a\tB-S\tB-S\nb\tI-S\tO\n\nc\tO\tB-S\n",
    "\ufeff-DOCSTART- O O\r\n\r\na  B-S  B-S\r\nb I-S O\r\n\r\nc O B-S \r\n",
    "a\tNN\tB-S\tB-S\nb\tNN\tI-S\tO\n\nc\tNN\tO\tB-S\n",
])  # fmt: skip
def test_one_file_with_gold_and_predicted_columns(cli, file, text):
    """Any white space, CRLF, byte order mark, more columns: conlleval.pl and nervaluate's loader misread these."""
    one = evaluate(cli, "--pred", file("x.conll", text))["systems"]["x.conll"]
    two = evaluate(cli, "--gold", file("g.iob", "a\tB-S\nb\tI-S\n\nc\tO\n"),
                   "--pred", file("p.iob", "a\tB-S\nb\tO\n\nc\tB-S\n"))["systems"]["p.iob"]  # fmt: skip
    assert one["entity"] == two["entity"] and one["token"] == two["token"] and one["entity"]["micro"]["fp"] == 2


def test_too_few_columns_is_one_line(cli, file):
    path = file("x.iob", "a\tB-S\n")
    done = cli("ner_eval.py", "--pred", path)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith(
        f"error: {path}:1: too few columns where token, gold tag and predicted tag are expected"
    )


def test_types_are_renamed_and_left_out_on_both_sides(cli, file):
    gold, pred = file("gold.jsonl", GOLD), file("pred.jsonl", PRED)
    only = evaluate(cli, "--gold", gold, "--pred", pred, "--types", "SIGN")
    scores = only["systems"]["pred.jsonl"]
    assert list(scores["entity"]["types"]) == ["SIGN"] and scores["input"]["filtered"] == 3
    assert list(scores["token"]["by_type"]["types"]) == ["SIGN"] and "|types:SIGN|" in only["signature"]
    done = cli("ner_eval.py", "--gold", gold, "--pred", pred, "--types", "SIGN")
    assert "pred.jsonl: 1 entities, 0 duplicates left out, 3 of types left out" in done.stderr
    both = file("map.tsv", "SIGN\tFINDING\nSYMPTOM\tFINDING\n")
    one = evaluate(cli, "--gold", gold, "--pred", pred, "--map_types", both)
    merged = one["systems"]["pred.jsonl"]["entity"]
    assert list(merged["types"]) == ["FINDING"] and merged["micro"]["tp"] == 2 and "|map:map.tsv:" in one["signature"]
    lines = "a\tB-SIGN\nb\tI-SIGN\nc\tB-OTHER\n"
    iob = file("g.iob", lines), file("p.iob", lines.replace("SIGN", "SYMPTOM"))
    token = evaluate(cli, "--gold", iob[0], "--pred", iob[1], "--map_types", both, "--types", "FINDING")
    tags = token["systems"]["p.iob"]["token"]["by_tag"]["tags"]
    assert list(tags) == ["B-FINDING", "I-FINDING"] and token["systems"]["p.iob"]["token"]["accuracy"] == 1.0


def test_the_same_bytes_whatever_the_hash_seed(cli, rare_en):
    """Sets of strings have another order in each process; no figure and no line may hang on it."""
    args = (
        "--gold",
        rare_en / "test.jsonl",
        "--pred",
        rare_en / "test.iob",
        rare_en / "test.jsonl",
        "--names",
        "a",
        "b",
    )
    args += ("--by", "length", "seen", "document", "--train_file", rare_en / "train.jsonl", "--format", "json")
    first, second = (cli("ner_eval.py", *args, PYTHONHASHSEED=seed) for seed in ("1", "2"))
    assert first.returncode == 0 and first.stdout == second.stdout


def test_head_ends_it_quietly(rare_en):
    command = f'"{sys.executable}" ner_eval.py --gold "$G" --pred "$G" --by document | head -1'
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True,
                          env={**os.environ, "G": str(rare_en / "test.jsonl")})  # fmt: skip
    assert done.stdout.count("\n") == 1 and not re.search("(?i)error|exception|traceback", done.stderr)


def test_markdown(cli, file):
    gold = file("g.jsonl", [GOLD[0] | {"entities": [{"start": 0, "end": 5, "type": "A|B"}]}])
    lines = cli("ner_eval.py", "--gold", gold, "--pred", gold, "--format", "markdown").stdout.splitlines()
    assert lines[0].startswith("| system | F1 | 95 % | P | R |") and lines[1].startswith("| --- | --: | --: |")
    assert "| A\\|B | 1.0000 | 1.0000 | 1.0000 | 1 | 0 | 0 | 1 |" in lines


def test_min_f1_is_for_ci(cli, file):
    gold, pred = file("gold.jsonl", GOLD), file("pred.jsonl", PRED)
    for least, code in ((0.33, 0), (0.34, 1)):
        done = cli("ner_eval.py", "--gold", gold, "--pred", gold, pred, "--min_f1", least)
        assert done.returncode == code and "micro" in done.stdout
    assert done.stderr.splitlines()[-1] == "error: pred.jsonl: micro F1 is below --min_f1 0.34"


# ---------------------------------------------------------------------------- answers


def test_answers(cli, file):
    """Statuses, what could not be placed, the answers' own offsets, and F1 with every invented mention as wrong."""
    text = "Fever and joint pain in both knees."
    span = {"start": 0, "end": 5, "type": "S"}
    gold = [{"id": str(i), "text": text, "entities": [span] if i < 4 else []} for i in range(6)]
    items = [{"text": "Fever", "type": "S", "start": 0, "end": 5}, {"text": "pain", "type": "S", "start": 3, "end": 7}]
    dropped = [{"text": "cough", "type": "S", "reason": "not_in_text"}, {"text": "x", "type": "S", "reason": "leaked"},
               {"text": "pain", "type": "Q", "reason": "unknown_type"}]  # fmt: skip
    answers = [
        {"status": "ok", "answer": json.dumps([*items, items[0]]), "entities": [span]},
        {
            "status": "ok",
            "answer": json.dumps([{"text": "Fever", "type": "S"}]),
            "entities": [span],
            "dropped": dropped,
        },
        {"status": "salvaged", "answer": json.dumps(items)[:-5], "entities": [span]},
        {"status": "truncated", "answer": "", "entities": []},
        {"status": "empty", "answer": "", "entities": []},  # nothing to say about a text without entities: complies
        {"status": "refused", "answer": "I can't help with that.", "entities": []},
    ]
    pred = [{"id": str(i), "text": text} | answer for i, answer in enumerate(answers)]
    report = evaluate(cli, "--gold", file("g.jsonl", gold), "--pred", file("p.jsonl", pred))
    found = report["systems"]["p.jsonl"]["generation"]
    assert found["records"] == 6 and found["parse_rate"] == 3 / 6 and found["parse_rate_repaired"] == 5 / 6
    assert found["compliance_rate"] == 2 / 6  # one parsed answer has a type that is none
    assert (
        found["truncated_rate"] == found["refused_rate"] == 1 / 6 and found["empty_rate"] == found["failed_rate"] == 0
    )
    assert found["items"] == 6 and found["hallucination_rate"] == 2 / 6 and found["leaked_rate"] == 1 / 6
    assert found["hallucination_rate_macro"] == pytest.approx((0 + 2 / 4 + 0) / 3)
    assert found["own_offsets"] == 3 and found["boundary_accuracy"] == pytest.approx(2 / 3)  # repeats count once
    assert found["f1_with_dropped"] == pytest.approx(2 * 3 / (2 * 3 + 3 + 1)) and found[
        "f1_of_parsed"
    ] == pytest.approx(6 / 7)
    assert report["systems"]["p.jsonl"]["entity"]["micro"]["f1"] == pytest.approx(6 / 7)
    paths = file("g.jsonl", gold), file("p.jsonl", pred)
    head = words(cli("ner_eval.py", "--gold", paths[0], "--pred", *paths).stdout)[0]
    assert head.endswith("token F1 F1+dropped parsed halluc. p")
    assert "generation" not in evaluate(cli, "--gold", paths[0], "--pred", paths[0])["systems"]["g.jsonl"]


# ---------------------------------------------------------------------------- the report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
EVIL = '</script><script>alert(1)</script><img src=x onerror=alert(2)> & "quotes" \u2028 \U0001f600 fever'


def browsed(cli, file, tmp_path, count=60):
    """A report of two systems over evil texts, nested and discontinuous mentions; its path."""
    gold, pred = [], []
    for n in range(count):
        end = len(EVIL)
        entities = [{"start": end - 5, "end": end, "type": "<b>S</b>"}, {"start": 0, "end": end, "type": "ALL"},
                    {"start": 2, "end": end - 6, "type": "D", "fragments": [[2, 8], [end - 7, end - 6]]}]  # fmt: skip
        gold.append({"id": f"<i>{n}</i>", "doc_id": f"d{n // 2}", "text": EVIL + "\n\n", "entities": entities})
        kept = entities if n % 3 else [entities[1], entities[0] | {"type": "D"}]
        pred.append(gold[-1] | {"entities": kept})
    info = {"seconds": 6, "cost": 3, "counts": {"records": count}, "history": [
        {"step": 10, "loss": 0.5}, {"step": 10, "f1": 0.4}, {"step": 20, "loss": 0.3, "f1": 0.6}]}  # fmt: skip
    paths = file("g.jsonl", gold), file("p.jsonl", pred)
    file("p.jsonl.run.json", json.dumps(info))
    out = tmp_path / "report.html"
    done = cli("ner_eval.py", "--gold", paths[0], "--pred", paths[1], paths[0], "--names", "<u>one</u>", "two",
               "--train_file", paths[0], "--html", out)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return out


def test_the_report_holds_no_markup_of_the_corpus_and_no_address(cli, file, tmp_path):
    page = browsed(cli, file, tmp_path).read_text(encoding="utf-8")
    assert page.count("</script>") == 2 and "<script>alert" not in page and "<img" not in page and "<u>" not in page
    assert set(re.findall(r"\w+://[^\"'\s]+", page)) == {"http://www.w3.org/2000/svg"}
    data = json.loads(re.search(r'<script id="data"[^>]*>(.*?)</script>', page, re.S)[1])
    assert data["records"][0][2] == EVIL + "\n\n" and len(data["records"]) == 60


@pytest.fixture(scope="module")
def browser():
    if not CHROMIUM:
        pytest.skip("no Chromium is installed (Debian: apt-get install chromium); the report was not opened")
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


def opened(browser, path, **options):
    """The page, and what went wrong on it: errors, dialogs, requests of anything but the file."""
    page, wrong = browser.new_context(**options).new_page(), []
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
    page.on("dialog", lambda dialog: (wrong.append(dialog.message), dialog.dismiss()))
    page.on("request", lambda request: None if request.url == path.as_uri() else wrong.append(request.url))
    page.goto(path.as_uri())
    return page, wrong


def test_the_report_in_a_browser(browser, cli, file, tmp_path):
    path = browsed(cli, file, tmp_path)
    page, wrong = opened(browser, path)
    text = page.inner_text("body")
    for title in ("Comparison", "By type", "Errors", "By length", "Mentions seen in training", "Training", "Texts"):
        assert title in page.locator("h2").all_inner_texts()
    assert "<u>one</u>" in text and "<b>S</b>" in text and page.locator("u, i, img").count() == 0
    assert "100.0000" in text and "50.0000" in text  # seconds and cost per 1,000
    drawn = page.locator("article .text").first.evaluate(
        "node => [...node.querySelectorAll('span:not(.tag)')].map(part => part.textContent).join('')"
    )
    assert drawn == EVIL  # without the line ends behind it
    assert page.locator("article").count() == 10  # a page, not all 60 texts
    status = page.locator("[aria-live]")
    assert status.inner_text() == "1 of 60 texts (60 in all)"
    for _ in range(12):
        page.keyboard.press("ArrowRight")
    assert status.inner_text().startswith("13 of 60") and "<i>12</i>" in page.locator("article.now").inner_text()
    page.keyboard.press("p")
    assert status.inner_text().startswith("12 of 60")
    page.select_option("select[aria-label=classes]", "any error")
    assert status.inner_text().startswith("1 of 20 ")  # every third text
    page.select_option("select[aria-label=classes]", "type")
    page.select_option("select[aria-label=types]", "<b>S</b>")
    assert status.inner_text().startswith("1 of 20 ")
    page.select_option("select[aria-label=systems]", "two")
    assert status.inner_text() == "no text is like that"
    page.select_option("select[aria-label=classes]", "")
    page.fill("input", "d7")
    assert status.inner_text().startswith("1 of 2 ") and page.locator("article").first.locator(".side").count() == 2
    assert not wrong, wrong


def test_the_report_on_a_phone_in_the_dark_and_on_paper(browser, cli, file, tmp_path):
    path = browsed(cli, file, tmp_path, 4)
    phone, wrong = opened(browser, path, viewport={"width": 360, "height": 740}, color_scheme="dark")
    assert phone.evaluate("document.documentElement.scrollWidth") <= 360 and not wrong
    assert phone.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 26)"
    phone.emulate_media(media="print", color_scheme="light")
    assert phone.evaluate("getComputedStyle(document.querySelector('.controls')).display") == "none"


def test_a_large_report_stays_quick(browser, cli, file, tmp_path):
    """Five systems, 5,000 records: paged, so few nodes; filtered in well under a second."""
    gold = [{"id": str(n), "text": "Fever and joint pain in both knees. " * 3,
             "entities": [{"start": 36 * k + 10, "end": 36 * k + 20, "type": "AB"[n % 2]} for k in range(3)]}
            for n in range(5000)]  # fmt: skip
    path, out = file("g.jsonl", gold), tmp_path / "report.html"
    preds = [
        file(f"{i}.jsonl", [r | {"entities": r["entities"][: (n + i) % 4]} for n, r in enumerate(gold)])
        for i in range(5)
    ]
    done = cli("ner_eval.py", "--gold", path, "--pred", *preds, "--html", out, "--resamples", 0)
    assert done.returncode == 0, done.stderr
    page, wrong = opened(browser, out)
    assert page.evaluate("document.querySelectorAll('*').length") < 4000
    started = time.time()
    page.select_option("select[aria-label=classes]", "missed")
    assert "of 5000" in page.locator("[aria-live]").inner_text() and time.time() - started < 5 and not wrong


# ---------------------------------------------------------------------------- what the review of this script found


def test_runs_with_and_without_answers_or_seconds(cli, file):
    """A mean is over the runs that have the figure; what they lack is not 0."""
    gold = file("g.jsonl", GOLD)
    first, second = file("1.jsonl", [r | {"status": "ok"} for r in GOLD]), file("2.jsonl", GOLD)
    file("1.jsonl.run.json", '{"counts": {"records": 1000}, "seconds": 100, "cost": 2}')
    scores = evaluate(cli, "--gold", gold, "--pred", first, second, "--names", "a", "a")["systems"]["a"]
    assert scores["seconds_per_1000"] == 100 and scores["cost_per_1000"] == 2
    assert scores["generation"]["parse_rate"] == 1.0 and scores["runs"]["sd"]["micro"]["f1"] == 0.0


@pytest.mark.parametrize("content", [
    '{"counts": {"records": "5"}, "seconds": 3}', '{"counts": [1], "seconds": 3}', '{"counts": {"records": -5}}',
    '{"counts": {"records": 2}, "seconds": true}', '{"counts": {"records": 2}, "seconds": NaN}', "[" * 100_000, "[1]",
])  # fmt: skip
def test_a_sidecar_of_another_kind_costs_only_its_column(cli, file, content):
    gold = file("g.jsonl", GOLD)
    file("g.jsonl.run.json", content)
    scores = evaluate(cli, "--gold", gold, "--pred", gold)["systems"]["g.jsonl"]
    assert scores["entity"]["micro"]["f1"] == 1.0 and "seconds_per_1000" not in scores


@pytest.mark.parametrize("field, value, says", [
    ("status", "fine", '"status" must be one of ok'), ("status", ["ok"], '"status" must be'),
    ("answer", 3, '"answer" must be'), ("dropped", None, '"dropped" must hold'), ("dropped", "ok", '"dropped" must'),
    ("dropped", ["x"], '"dropped" must'), ("dropped", [{"type": "A", "reason": "ok"}], '"dropped" must'),
])  # fmt: skip
def test_answers_of_another_kind_are_one_line(cli, file, field, value, says):
    pred = file("p.jsonl", [GOLD[0], GOLD[1] | {field: value}])
    done = cli("ner_eval.py", "--gold", file("g.jsonl", GOLD), "--pred", pred)
    assert done.returncode == 1 and done.stderr.startswith(f"error: {pred}:2: {says}") and done.stderr.count("\n") == 1


def test_the_answers_own_offsets():
    answer = (
        'Here: ```json\n{"entities": [{"text": "a}b", "start": 0, "end": 3}, {"text": "", "start": -3, "end": -1}]}'
    )
    assert ner_eval.own_offsets(answer) == {(0, 3, "a}b"), (-3, -1, "")}
    assert ner_eval.own_offsets('[{"text": "x", "start": 1, "end": 2}, {"text": "y", "st') == {(1, 2, "x")}
    nested = '[{"text": "x", "start": 1, "end": 2, "in": {"text": "y", "start": 5, "end": 6}}]'
    assert ner_eval.own_offsets(nested) == {(1, 2, "x")}
    assert ner_eval.own_offsets("{" * 5000) == ner_eval.own_offsets('{"start": ' + "[" * 100_000) == set()


def test_answers_and_types(cli, file):
    """F1 with what was dropped is never above F1; --types leaves out the other types' items, and no parse."""
    text, entities = "fever and rash", [{"start": 0, "end": 5, "type": "A"}, {"start": 10, "end": 14, "type": "B"}]
    gold = [{"id": str(i), "text": text, "entities": entities} for i in range(3)]
    gold[1]["entities"] = entities[1:]  # an empty answer is wrong here, also where B is not looked at
    gold = file("g.jsonl", gold)
    dropped = [{"text": "x", "type": "B", "reason": "not_in_text"}]
    pred = [{"id": "0", "text": text, "entities": entities, "status": "ok", "dropped": dropped},
            {"id": "1", "text": text, "entities": [], "status": "empty"}, {"id": "2", "text": text}]  # fmt: skip
    args = ("--gold", gold, "--pred", file("p.jsonl", pred))
    whole, only = (evaluate(cli, *args, *flags)["systems"]["p.jsonl"] for flags in ((), ("--types", "A")))
    assert whole["generation"]["f1_with_dropped"] == 0.5 and whole["entity"]["micro"]["f1"] == pytest.approx(4 / 7)
    assert only["generation"]["f1_with_dropped"] == only["entity"]["micro"]["f1"] == pytest.approx(2 / 3)
    assert only["generation"]["hallucination_rate"] == 0 and whole["generation"]["hallucination_rate"] == 1 / 3
    for scores in (whole, only):
        assert (scores["generation"]["parse_rate"], scores["generation"]["empty_rate"]) == (0.5, 0.5)
    cut = file("cut.jsonl", [pred[0] | {"status": "truncated"}, *pred[1:]])
    scores = evaluate(cli, "--gold", gold, "--pred", cut)["systems"]["cut.jsonl"]["generation"]
    assert scores["parse_rate_repaired"] == 0.5 and scores["f1_of_parsed"] == 1.0  # truncated counts as parsed in both
    done = cli("ner_eval.py", "--gold", gold, "--pred", gold, "--level", "generation")
    assert done.returncode == 1 and "holds no answers of an LLM" in done.stderr


def test_seen_mentions_are_renamed_and_know_no_white_space(cli, file):
    gold = [{"id": "a", "text": "IL-2 rose", "entities": [{"start": 0, "end": 4, "type": "P"}]}]
    train = file("t.iob", "il\tB-X\n-\tI-X\n2\tI-X\n")
    args = ("--gold", file("g.jsonl", gold), "--pred", file("p.jsonl", gold), "--train_file", train, "--by", "seen")
    renamed = evaluate(cli, *args, "--map_types", file("m.json", '{"X": "Q", "P": "Q"}'))["systems"]["p.jsonl"]
    assert list(renamed["by"]["seen"]) == ["seen"]
    assert list(evaluate(cli, *args)["systems"]["p.jsonl"]["by"]["seen"]) == ["seen with other type"]


def test_white_space_that_iob_can_not_hold(cli, file):
    spans = [{"start": start, "end": end, "type": "D"} for start, end in ((5, 13), (12, 14), (12, 13))]
    gold = [{"id": "a", "text": "took aspirin  now", "entities": spans}]
    iob = file("p.iob", "took\tO\naspirin\tB-D\nnow\tO\n")
    scores = evaluate(cli, "--gold", file("g.jsonl", gold), "--pred", iob)["systems"]["p.iob"]
    assert scores["entity"]["micro"]["tp"] == 1 and scores["entity"]["micro"]["fp"] == 0
    out = file("e.jsonl", "")
    done = cli("ner_eval.py", "--gold", iob, "--pred", file("g.jsonl", gold), "--errors", out)
    assert done.returncode == 0 and out.read_text(encoding="utf-8") == ""  # white space alone is nothing there


def test_strict_warns_of_predictions_that_are_no_iob2(cli, file):
    gold, pred = file("g.iob", "a\tB-S\n\nb\tO\n"), file("p.iob", "a\tS-S\n\nb\tO\n")
    done = cli("ner_eval.py", "--gold", gold, "--pred", pred)
    assert f"warning: {pred}: 1 entities are none in strict IOB2 (IOB1, IOBES?)" in done.stderr
    for level in "entity", "token":
        assert "warning: --types: neither gold nor a prediction has 'T'" in cli(
            "ner_eval.py", "--gold", gold, "--pred", gold, "--types", "S", "T", "--level", level).stderr  # fmt: skip


def test_own_offsets_of_a_mention_in_fragments_are_right(cli, file):
    entity = {"start": 0, "end": 24, "type": "S", "text": "joint pain knees", "fragments": [[0, 10], [19, 24]]}
    record = {"id": "a", "text": "joint pain in both knees", "entities": [entity]}
    answer = render_answer(record, ["S"], "spans")
    pred = record | {"answer": answer, "status": "ok", "dropped": []}
    report = evaluate(cli, "--gold", file("g.jsonl", [record]), "--pred", file("p.jsonl", [pred]))
    found = report["systems"]["p.jsonl"]["generation"]
    assert (found["own_offsets"], found["boundary_accuracy"], found["f1_of_parsed"]) == (1, 1.0, 1.0)


def test_a_sidecar_that_is_absurd_is_none(cli, file):
    gold = file("g.jsonl", GOLD)
    for seconds in ("1e308", "1" + 400 * "0"):
        file("g.jsonl.run.json", f'{{"seconds": {seconds}, "counts": {{"records": 2}}}}')
        done = cli("ner_eval.py", "--gold", gold, "--pred", gold, "--format", "json")
        assert done.returncode == 0 and "seconds_per_1000" not in done.stdout, done.stderr


def test_types_named_as_the_margins_the_means_or_an_escape(cli, file):
    names = ["micro", "missed", "spurious", "constructor", "__proto__", "\x1b[31mred", "a\nb"]
    gold = [{"id": "a", "text": "x" * 60, "entities": [
        {"start": 5 * i, "end": 5 * i + 3, "type": name} for i, name in enumerate(names)]}]  # fmt: skip
    pred = [gold[0] | {"entities": [gold[0]["entities"][0] | {"type": "missed"}, *gold[0]["entities"][2:]]}]
    args = ("--gold", file("g.jsonl", gold), "--pred", file("p.jsonl", pred))
    confusion = evaluate(cli, *args)["systems"]["p.jsonl"]["errors"]["confusion"]
    assert confusion["micro"] == {"missed": 1} and confusion["missed"] == {"(missed)": 1}
    table = cli("ner_eval.py", *args).stdout
    assert "\x1b" not in table and len(re.findall("(?m)^micro ", table)) == 5 and "a\ufffdb" in table


def test_a_map_is_part_of_the_signature_and_never_written_over(cli, file):
    gold, one = file("g.jsonl", GOLD), file("m.tsv", "SIGN\tA\n")
    first = evaluate(cli, "--gold", gold, "--pred", gold, "--map_types", one)["signature"]
    file("m.tsv", "SIGN\tB\n")
    assert first != evaluate(cli, "--gold", gold, "--pred", gold, "--map_types", one)["signature"]
    done = cli("ner_eval.py", "--gold", gold, "--pred", gold, "--map_types", one, "--output_file", one)
    assert done.returncode == 2 and one.read_text(encoding="utf-8") == "SIGN\tB\n"


def test_json_is_utf_8_and_a_file_name_need_not_be(cli, file, tmp_path):
    gold = file("g.jsonl", GOLD)
    done = cli(
        "ner_eval.py", "--gold", gold, "--pred", gold, "--names", "é", "--format", "json", PYTHONIOENCODING="ascii"
    )
    assert list(json.loads(done.stdout)["systems"]) == ["é"]
    odd = os.fsencode(tmp_path) + b"/p\xff.jsonl"
    with open(odd, "wb") as out:
        out.write(gold.read_bytes())
    report, errors = tmp_path / "r.html", tmp_path / "e.jsonl"
    done = cli("ner_eval.py", "--gold", gold, "--pred", os.fsdecode(odd), "--html", report, "--errors", errors,
               "--output_file", tmp_path / "m.json")  # fmt: skip
    assert done.returncode == 0 and report.exists() and (tmp_path / "m.json").exists(), done.stderr


def test_the_report_keeps_the_order_of_systems_named_by_numbers(browser, cli, file, tmp_path):
    """JavaScript sorts such keys; types may be named as what objects inherit; and a loss may be NaN."""
    gold = [{"id": "a", "text": "fever now", "entities": [{"start": 0, "end": 5, "type": "constructor"}]}]
    none = [gold[0] | {"entities": [{"start": 6, "end": 9, "type": "__proto__"}]}]
    path, bad = file("g.jsonl", gold), file("p.jsonl", none)
    file(
        "p.jsonl.run.json",
        '{"history": [1, {"step": 1, "loss": NaN}, {"step": 2, "loss": null}, {"step": 3, "f1": "x"}]}',
    )
    out = tmp_path / "r.html"
    assert cli("ner_eval.py", "--gold", path, "--pred", path, bad, "--names", "2", "1", "--html", out).returncode == 0
    page, wrong = opened(browser, out)
    assert not wrong, wrong
    sides = page.locator("article .side").all_inner_texts()
    assert (
        [side.split()[0] for side in sides] == ["gold", "2", "1"] and "missed" in sides[2] and "missed" not in sides[1]
    )
    assert "Texts" in page.locator("h2").all_inner_texts() and "[object" not in page.inner_text("body")

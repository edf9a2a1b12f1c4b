"""ner_eval.py against seqeval, nervaluate and enumeration, its properties, peers' bugs, and its command line.

pytest tests/test_ner_eval.py
"""

import gzip
import json
import random
import shutil
import subprocess
import sys
import time
import warnings
from argparse import Namespace
from collections import Counter, defaultdict
from itertools import combinations, pairwise, permutations

import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from nervaluate import Evaluator
from seqeval.metrics import classification_report
from seqeval.scheme import IOB2

import ner_eval
from utils import fragments, iob_record

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
        truth = ner_eval.read_side(gold, gold, iob, iob, args)
        guess = ner_eval.read_side(pred, gold, iob, iob, args, truth)
        ner_eval.count(system, truth, guess, 0, args)
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


def enumerated(gold, pred, rule):
    """All the best alignments by brute force, as sorted lists of (same span, gold type, predicted type)."""
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
                keys = [(s, g[2], p[2]) for s, (g, p) in zip(same, pairs, strict=True)]
                keys += [(False, g[2], None) for g in gold if g not in golds]
                keys += [(False, None, p[2]) for p in pred if p not in preds]
                if best is None or rank > best:
                    best, found = rank, []
                if rank == best:
                    found.append(Counter(keys))
    return found


@pytest.mark.parametrize("flat", [False, True])
def test_alignment_is_the_best_of_all(flat):
    """2,400 small span sets, nested, crossing and discontinuous ones too: counts, and ties, as by enumeration."""
    rng = random.Random(11)
    for _ in range(1200):
        gold, pred = random_spans(rng, flat, 4), random_spans(rng, flat, 4)
        counts = defaultdict(Counter)
        ner_eval.count_alignments(counts, frozenset(gold), frozenset(pred), ner_eval.RULES)
        for name, rule in ner_eval.RULES.items():
            assert counts["any"] + counts[name] in enumerated(gold, pred, rule), (gold, pred)


def test_chain_and_assignment_agree_on_flat_spans():
    """Both solvers find matchings of one weight, also in components larger than can be enumerated."""
    rng = random.Random(5)
    for _ in range(300):
        cuts = [sorted(rng.sample(range(120), 24)) for _ in range(2)]
        golds, preds = ([(a, b, "A") for a, b in pairwise(c)] for c in cuts)
        edges = ner_eval.overlapping(golds, preds)
        weights = [rng.randint(1, 5) for _ in edges]
        found = [solve(edges, weights) for solve in (ner_eval.best_chain, ner_eval.best_assignment)]
        for chosen in found:
            for side in (0, 1):
                assert len({edges[e][side] for e in chosen}) == len(chosen)
        assert len({sum(weights[e] for e in chosen) for chosen in found}) == 1


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
                ner_eval.count_alignments(counts, gold, pred, ner_eval.RULES)
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
    ner_eval.count_alignments(counts, frozenset(gold), frozenset(pred), ner_eval.RULES)
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
        "system F1 P R macro F1 SE-strict SE-exact SE-partial SE-type token F1 s/1k",
        # gold 3, predicted 3: tp 1; exact 2 of 3; no overlap is left for the nested SYMPTOM; no token is right
        "X 0.3333 0.3333 0.3333 0.2500 0.3333 0.6667 0.6667 0.3333 0.0000 1500.0000",
        "Y 1.0000 1.0000 1.0000 1.0000 1.0000 1.0000 1.0000 1.0000 1.0000 -",
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
    assert blocks[-2].startswith("undefined, shown as 0.0000: X token.by_tag.tags.")
    assert blocks[-1] == ("signature: scheme:spans|unit:character|macro:gold+pred|records:2|documents:1|"
                          "entities:3|version:1.0")  # fmt: skip
    assert done.stderr.splitlines() == [
        "X: 3 entities, 1 duplicates left out, 0 records without a prediction",
        "Y: 3 entities, 0 duplicates left out, 0 records without a prediction",
        f"{gold}: 2 records, 1 documents, 3 entities, 0 duplicates left out",
    ]
    assert all(line == line.rstrip() for line in done.stdout.splitlines())


def test_json_keys_and_order(cli, file, tmp_path):
    gold, pred, out = file("gold.jsonl", GOLD), file("pred.jsonl", PRED), tmp_path / "new" / "metrics.json"
    done = cli("ner_eval.py", "--gold", gold, "--pred", pred, "--format", "json", "--output_file", out)
    assert done.stdout == out.read_text(encoding="utf-8")
    report = json.loads(done.stdout)
    assert done.stdout.startswith('{\n  "signature": "')
    assert list(report) == ["signature", "systems", "tests"] and report["tests"] == []
    scores = report["systems"]["pred.jsonl"]
    assert list(scores) == ["entity", "semeval", "token", "input", "undefined"]
    assert list(scores["entity"]) == ["micro", "macro", "weighted", "types"]
    assert list(scores["entity"]["micro"]) == ["f1", "precision", "recall", "tp", "fp", "fn", "support"]
    assert list(scores["entity"]["types"]) == ["SIGN", "SYMPTOM"]
    assert list(scores["semeval"]) == ["strict", "exact", "partial", "type"]
    assert list(scores["semeval"]["partial"]) == ["COR", "INC", "PAR", "MIS", "SPU", "POS", "ACT", "precision",
                                                  "recall", "f1", "types"]  # fmt: skip
    assert list(scores["token"]) == ["accuracy", "by_type", "by_tag"]
    assert scores["input"] == {"missing": 0, "duplicates": 1}
    lines = "".join(f"{tag}\t{tag}\n" for tag in ("B-A", "I-A", "O"))
    iob = evaluate(cli, "--gold", file("g.iob", lines), "--pred", file("p.iob", lines), "--scheme", "lenient")
    assert list(iob["systems"]["p.iob"])[:2] == ["entity", "entity_other_scheme"]
    assert "scheme:iob-lenient|unit:token" in iob["signature"]


@pytest.mark.parametrize("level", LEVELS)
def test_one_level_alone(cli, file, level):
    report = evaluate(cli, "--gold", file("g.jsonl", GOLD), "--pred", file("p.jsonl", PRED), "--level", level)
    assert list(report["systems"]["p.jsonl"]) == [level, "input", "undefined"]
    done = cli("ner_eval.py", "--gold", file("g.jsonl", GOLD), "--pred", file("p.jsonl", PRED), "--level", level)
    assert done.returncode == 0 and ("SemEval" in done.stdout) == (level == "semeval")


def test_missing_predictions(cli, file):
    """An omitted record costs its recall (PharmaCoNER's script leaves it out: 1.0), and only if asked to."""
    gold, pred = file("gold.jsonl", GOLD), file("pred.jsonl", PRED[:1])
    done = cli("ner_eval.py", "--gold", gold, "--pred", pred)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {pred}: no prediction for record 'a' of {gold}; ")
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
        (GOLD, [*PRED, {"id": "z", "text": "q"}], "pred.jsonl: record 'z' is not in "),
        (GOLD, [*PRED, {"id": "a", "text": TEXT}], "pred.jsonl:3: id 'a' stands twice"),
        (GOLD, OTHER_TEXT, "pred.jsonl: record 'a': its text is not that of record 'a' in "),
        (GOLD, PRED[1:], "pred.jsonl: no prediction for record 'b' of "),
        (GOLD, "", "pred.jsonl: holds no record"),
        ([], PRED, "gold.jsonl: holds no record"),
        (GOLD, [*PRED[:1], {"id": "a"}], 'pred.jsonl:2: no "text"'),
        (GOLD, json.dumps(PRED[0]) + "\noops\n", "pred.jsonl:2: not JSON"),
        (GOLD, IOB, "pred.iob: record '0:0': its tokens are not those of record 'a' in "),
        (IOB, GOLD, "pred.jsonl: record 'a': its tokens are not those of record '0:0' in "),
        (IOB, IOB.replace("pain\tI-S\n", ""), "pred.iob: record '0:0': its tokens (3) are not those (4) of record "),
        (IOB, IOB.replace("cough", "fever"), "pred.iob: record '1:0': its tokens (2) are not those (2) of record "),
        (IOB, IOB.split("\n\n")[0], "pred.iob: no prediction for record '1:0' of "),
        (IOB, IOB + "\nx\tO\n", "pred.iob: record '2:0' is not in "),
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
    assert done.returncode == 1 and done.stderr.startswith("error: ") and done.stdout == ""


@pytest.mark.parametrize(
    "args",
    [
        [],
        ["--gold", "g.jsonl"],
        ["--gold", "g.jsonl", "--pred", "p.jsonl", "q.jsonl", "--names", "one"],
        ["--gold", "g.jsonl", "--pred", "p.jsonl", "q.jsonl", "--names", "one", "one"],
        ["--gold", "g.jsonl", "--pred", "p.jsonl", "p.jsonl"],
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
    assert done.returncode == 0 and done.stdout.count("(default: ") == 6
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
    assert head == "system F1 P R macro F1 lenient F1 SE-strict SE-exact SE-partial SE-type token F1"
    assert first.split()[5] == "-" and second.split()[5] == second.split()[1]  # and no s/1k from a conversion
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

"""ner_rag.py: what is shown to which text, what never is, where vectors are kept, and how votes label."""

import hashlib
import itertools
import json
import random
import re
import shutil
import sqlite3
import subprocess
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ner_rag
from utils import read_records, sentence_starts, write_jsonl

SCRIPT = "ner_rag.py"


def record(id, text, *mentions, doc_id=None):
    """A record whose (mention, type) pairs are marked where they first stand."""
    entities = [{"start": text.index(m), "end": text.index(m) + len(m), "type": t} for m, t in mentions]
    return {"id": id, "doc_id": doc_id or f"doc of {id}", "text": text, "entities": entities}


TRAIN = [
    record("t1", "Fever rose on the second day after the flight.", ("Fever", "SIGN")),
    record("t2", "Joint pain in both knees since the flight.", ("Joint pain", "SYMPTOM")),
    record("t3", "The family was told about the diagnosis."),
    record("t4", "Fever and joint pain came together in spring.", ("Fever", "SIGN"), ("joint pain", "SYMPTOM")),
    record("t5", "At work he sat; AT was found in his sister.", ("AT", "DISEASE")),
    record("t6", "No fever today, and he was at home.", ("fever", "SIGN")),
]
TEST = [
    record("q1", "Fever on the second day of the trip.", ("Fever", "SIGN")),
    record("q2", "He was at the house with joint pain and AT.", ("joint pain", "SYMPTOM"), ("AT", "DISEASE")),
]


@pytest.fixture
def files(tmp_path):
    write_jsonl(tmp_path / "train.jsonl", TRAIN)
    write_jsonl(tmp_path / "test.jsonl", TEST)
    return tmp_path


def rag(cli, folder, *args, out="out.jsonl", **environment):
    given = (
        "--train_file",
        folder / "train.jsonl",
        "--test_file",
        folder / "test.jsonl",
        "--output_file",
        folder / out,
    )
    return cli(SCRIPT, *given, *args, **environment)


def made(folder, out="out.jsonl"):
    return {each["id"]: each for each in read_records(folder / out)}


def shown(folder, out="out.jsonl"):
    return {name: [shot["id"] for shot in each.get("shots", ())] for name, each in made(folder, out).items()}


# ---------------------------------------------------------------------------- the methods, against plain ones


@given(st.integers(1, 9000), st.integers(0, 2**32 - 1), st.booleans())
@settings(max_examples=200, deadline=None)
def test_ranked_is_a_whole_stable_sort(n, seed, ties):
    row = np.random.default_rng(seed).random(n, np.float32)
    row = np.round(row, 1) if ties else row
    assert list(ner_rag.ranked(row)) == np.argsort(-row, kind="stable").tolist()


VOTES = st.lists(st.dictionaries(st.integers(0, 7), st.integers(1, 9).map(float), max_size=5), max_size=5)


@given(VOTES, st.integers(0, 6), st.sets(st.integers(0, 7), max_size=3))
@settings(max_examples=300, deadline=None)
def test_elect_is_sequential_proportional_approval_voting(votes, k, barred):
    winners = ner_rag.elect(votes, k, lambda example: example not in barred)
    names = sorted(set().union(*votes) - barred)
    assert len(winners) == min(k, len(names)) == len(set(winners))
    for place, winner in enumerate(winners):
        held = [sum(other in voter for other in winners[:place]) for voter in votes]
        worth = {name: sum(voter.get(name, 0) / (1 + has) for voter, has in zip(votes, held, strict=True))
                 for name in names if name not in winners[:place]}  # fmt: skip
        assert worth[winner] == pytest.approx(max(worth.values()))


def test_no_voter_takes_all_places():
    assert ner_rag.elect([{1: 2.0, 2: 2.0, 3: 2.0}, {9: 1.5}], 2, lambda example: True) == [1, 9]


@given(st.integers(1, 12), st.integers(1, 12), st.floats(0, 1), st.integers(0, 2**32 - 1))
@settings(max_examples=200, deadline=None)
def test_diverse_is_maximal_marginal_relevance(n, k, balance, seed):
    vectors = np.random.default_rng(seed).standard_normal((n + 1, 4))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    likeness, vectors = vectors[1:] @ vectors[0], vectors[1:]
    chosen = ner_rag.diverse(likeness, vectors, k, balance)
    assert len(chosen) == len(set(chosen)) == min(k, n)
    for place, row in enumerate(chosen):
        rest = [i for i in range(n) if i not in chosen[:place]]
        near = {i: max([0, *(vectors[i] @ vectors[j] for j in chosen[:place])]) for i in rest}
        value = {i: balance * likeness[i] - (1 - balance) * near[i] for i in rest}
        assert value[row] == pytest.approx(max(value.values()))


@pytest.mark.parametrize("one, other, same", [
    ("La niña tenía fiebre según su médico.", "La nin\u0303a tenía fiebre segu\u0301n su médico.", True),
    ("El para\u00adcetamol alivia.", "El paracetamol alivia.", True),
    ("患者今天早上出现发烧和关节疼痛的症状", "患者今天早上出现发烧和关节疼痛的病状", True),
    ("患者今天早上出现发烧", "病历:患者今天早上出现发烧,并有关节疼痛", True),
    ("患者发烧", "患者头痛", False), ("***", "---", False), ("***", "*** ", True),
])  # fmt: skip
def test_near_copies_in_other_forms_and_scripts(one, other, same):
    assert ner_rag.near_copies(one, other) == ner_rag.near_copies(other, one) == same


WORDS = st.lists(st.sampled_from(["fever", "joint", "pain", "knee", "day", "of", "the", "in", "no"]), max_size=30)


@given(WORDS, WORDS)
@settings(max_examples=300, deadline=None)
def test_near_copies_share_nine_words_in_ten_or_eight_in_order(one, other):
    same = 2 * (Counter(one) & Counter(other)).total() >= 0.9 * (len(one) + len(other))
    short, long = sorted((one, other), key=len)
    inside = len(short) >= 8 and any(long[i : i + len(short)] == short for i in range(len(long)))
    assert ner_rag.near_copies(" ".join(one), " ".join(other)) == (same or inside)
    assert ner_rag.near_copies(" ".join(other), " ".join(one)) == (same or inside)
    assert not one or ner_rag.near_copies(" ".join(one).title() + ".", "\n".join(one))


@given(st.lists(st.sampled_from(["Fever rose. ", "No pain.\n", "x" * 1500 + " ", "word " * 300, "\n\n", "A b c "])))
@settings(max_examples=200, deadline=None)
def test_passages_hold_the_whole_text_and_end_with_sentences(pieces):
    text = "".join(pieces)
    spans, ends = list(ner_rag.cut(text)), {*sentence_starts(text), len(text)}
    assert "".join("".join(text[start:end].split()) for start, end in spans) == "".join(text.split())
    assert all(start < end <= start + ner_rag.PASSAGE for start, end in spans)
    for (_, end), (_, following) in itertools.pairwise(spans):
        longest = max([b - a for a, b in itertools.pairwise(sorted({0, *ends}))])
        assert end in ends or longest > ner_rag.PASSAGE
        assert following > end


# ---------------------------------------------------------------------------- examples


def test_the_most_like_comes_last_and_nothing_leaks(cli, files):
    write_jsonl(files / "train.jsonl", [
        *TRAIN,
        record("copy", "Fever on the second day of the TRIP", ("Fever", "SIGN")),
        record("longer", "It says: fever on the second day of the trip; and that was all.", ("fever", "SIGN")),
        record("own", "Fever on the third day of the trip at home.", ("Fever", "SIGN"), doc_id="doc of q1"),
        record("again", TRAIN[0]["text"], ("Fever", "SIGN")),
    ])  # fmt: skip
    done = rag(cli, files, "--retriever", "bm25", "--num_shots", 3)
    assert done.returncode == 0, done.stderr
    assert shown(files)["q1"][-1] == "t1" and not {"copy", "longer", "own", "again"} & set(shown(files)["q1"])
    assert "kept away: 1 of a text's own document, 2 near copies; 1 copies within the training file" in done.stderr
    for each in made(files).values():
        scores = [shot["score"] for shot in each["shots"]]
        assert scores == sorted(scores) and len(scores) == 3
    first = made(files)["q1"]["shots"][-1]
    assert first == TRAIN[0] | {"score": first["score"], "entities": [TRAIN[0]["entities"][0] | {"text": "Fever"}]}
    assert {name: made(files)["q1"][name] for name in TEST[0]} == TEST[0] | {
        "entities": [TEST[0]["entities"][0] | {"text": "Fever"}]
    }


def test_entities_choose_examples_that_hold_them(cli, files):
    for args in ((), ("--retriever", "bm25")):
        done = rag(cli, files, "--retrieval_unit", "entity", "--num_shots", 2, *args)
        assert done.returncode == 0, done.stderr
        assert set(shown(files)["q2"]) == {"t5", "t2"} or set(shown(files)["q2"]) == {"t5", "t4"}
        assert "the examples hold: mentions 1.0000, types 1.0000" in done.stderr


def test_candidates_come_from_a_file_of_predictions(cli, files):
    (files / "test.jsonl").write_text(json.dumps({"id": "q1", "text": "He complains of aching joints."}) + "\n")
    write_jsonl(files / "pred.jsonl", [record("q1", "He complains of aching joints.", ("aching joints", "SYMPTOM"))])
    args = ("--retrieval_unit", "entity", "--num_shots", 2, "--candidate_file", files / "pred.jsonl")
    done = rag(cli, files, *args)
    assert done.returncode == 0 and set(shown(files)["q1"]) == {"t2", "t4"}, done.stderr
    assert "the examples hold" not in done.stderr  # there is no gold
    for name, said in (("other", "has none of the records of"), ("q1", "record 'q1' has another text than in")):
        write_jsonl(files / "pred.jsonl", [record(name, "He complains of pain.", ("pain", "SYMPTOM"))])
        done = rag(cli, files, *args, "--retriever", "bm25")
        assert done.returncode == 1 and said in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr


def test_candidates_vote_for_nothing_where_training_has_no_continuous_mention(cli, files):
    train = record("t", "Pain in both knees.") | {
        "entities": [{"start": 0, "end": 18, "type": "SYMPTOM", "fragments": [[0, 4], [13, 18]]}]
    }
    write_jsonl(files / "train.jsonl", [train, TRAIN[2]])
    write_jsonl(files / "pred.jsonl", [TEST[0]])
    for args in ((), ("--retriever", "bm25")):
        done = rag(cli, files, "--retrieval_unit", "entity", "--candidate_file", files / "pred.jsonl", *args)
        assert done.returncode == 0 and set(shown(files)["q1"]) == {"t", "t3"}, done.stderr


def test_static_examples_come_first_and_are_the_same(cli, files):
    done = rag(cli, files, "--retriever", "bm25", "--num_shots", 4, "--static_shots", 2)
    assert done.returncode == 0, done.stderr
    first = [ids[:2] for ids in shown(files).values()]
    assert first[0] == first[1] and all(len(set(ids)) == 4 for ids in shown(files).values())
    assert all("score" not in shot for each in made(files).values() for shot in each["shots"][:2])
    types = {entity["type"] for shot in made(files)["q1"]["shots"][:2] for entity in shot["entities"]}
    assert len(types) >= 2  # elected by types
    write_jsonl(files / "test.jsonl", TRAIN)  # a static example of the text itself gives its place to another
    done = rag(cli, files, "--retriever", "bm25", "--num_shots", 2, "--static_shots", 2)
    assert done.returncode == 0 and all(name not in ids and len(ids) == 2 for name, ids in shown(files).items())


def test_static_examples_do_not_hang_on_the_order_of_a_set(cli, files):
    """Eight types with equal votes: the last bit of their sum decides, which the order of summing changes."""
    rng, train = random.Random(5), []
    for i in range(60):
        words, entities, at = [f"w{rng.randint(0, 10**6)}" for _ in range(12)], [], 0
        marked = set(rng.sample(range(12), n := rng.randint(0, 5)))
        for place, word in enumerate(words):
            if place in marked:
                entities.append({"start": at, "end": at + len(word)})
            at += len(word) + 1
        types = rng.sample([f"TYPE{number}" for number in range(8)], n)
        entities = [entity | {"type": type_} for entity, type_ in zip(entities, types, strict=True)]
        train.append({"id": f"d{i}", "text": " ".join(words), "entities": entities})
    write_jsonl(files / "train.jsonl", train)
    outputs = set()
    for seed in range(4):
        done = cli(SCRIPT, "--train_file", files / "train.jsonl", "--test_file", files / "test.jsonl", "--output_file",
                   files / "out.jsonl", "--retriever", "random", "--num_shots", 12, "--static_shots", 12,
                   PYTHONHASHSEED=str(seed))  # fmt: skip
        assert done.returncode == 0, done.stderr
        outputs.add((files / "out.jsonl").read_bytes())
    assert len(outputs) == 1


def test_a_file_may_be_searched_for_itself(cli, files, rare_en):
    done = cli(SCRIPT, "--train_file", rare_en / "train.jsonl", "--test_file", rare_en / "train.jsonl",
               "--output_file", files / "out.jsonl", "--retriever", "bm25")  # fmt: skip
    assert done.returncode == 0, done.stderr
    for each in made(files).values():
        assert len(each["shots"]) == 5 and all(shot["doc_id"] != each["doc_id"] for shot in each["shots"])
    iob = cli(SCRIPT, "--train_file", rare_en / "train.iob", "--test_file", rare_en / "train.iob",
              "--output_file", files / "iob.jsonl", "--retriever", "bm25")  # fmt: skip
    assert iob.returncode == 0, iob.stderr
    for each in made(files, "iob.jsonl").values():
        assert all(shot["doc_id"] != each["doc_id"] for shot in each["shots"])
        assert all(shot["pretokenized"] and len(shot["tokens"]) == len(shot["offsets"]) for shot in each["shots"])
    other = cli(SCRIPT, "--train_file", rare_en / "train.iob", "--test_file", rare_en / "test.iob",
                "--output_file", files / "iob.jsonl", "--retriever", "bm25")  # fmt: skip
    assert "kept away: 0 of a text's own document" in other.stderr  # both files have a document "#0"


def test_a_texts_own_mentions_choose_nothing_when_it_is_searched_for_itself(cli, tmp_path):
    """Its "severe joint pain" is no candidate, so it hides no "joint pain", which another document has."""
    own = record("q1", "He had severe joint pain at night.", ("severe joint pain", "SYMPTOM"))
    others = [record("e1", "Then joint pain came.", ("joint pain", "SYMPTOM")), record("e2", "At night a severe fall."),
              record("e3", "Fever rose.", ("Fever", "SIGN"))]  # fmt: skip
    found = []
    for name, first in (("gold", own), ("blind", own | {"entities": []})):
        write_jsonl(tmp_path / f"{name}.jsonl", [first, *others])
        done = cli(SCRIPT, "--train_file", tmp_path / f"{name}.jsonl", "--test_file", tmp_path / f"{name}.jsonl",
                   "--output_file", tmp_path / "out.jsonl", "--retriever", "bm25", "--retrieval_unit", "entity",
                   "--num_shots", 1)  # fmt: skip
        assert done.returncode == 0, done.stderr
        found.append(shown(tmp_path)["q1"])
    assert found == [["e1"], ["e1"]]


@pytest.mark.parametrize("args", [
    ("--retriever", "random"), ("--retriever", "bm25"), ("--retriever", "dense"), ("--retriever", "hybrid"),
    ("--mmr_lambda", 0.5), ("--retrieval_unit", "entity"), ("--static_shots", 2),
])  # fmt: skip
def test_twice_the_same_bytes(args, cli, tmp_path, rare_en, vectors):
    out = []
    for name in ("a", "b"):
        done = cli(SCRIPT, "--train_file", rare_en / "train.jsonl", "--test_file", rare_en / "dev.jsonl",
                   "--output_file", tmp_path / name, "--cache_dir", vectors, *args)  # fmt: skip
        assert done.returncode == 0 and "0 texts embedded" in done.stderr, done.stderr
        out.append((tmp_path / name).read_bytes())
    assert out[0] == out[1]


@pytest.fixture(scope="session")
def vectors(cli, rare_en, tmp_path_factory):
    """A folder of the embeddings of data/rare_en."""
    folder = tmp_path_factory.mktemp("vectors")
    for name in ("dev", "test"):
        done = cli(SCRIPT, "--train_file", rare_en / "train.jsonl", "--test_file", rare_en / f"{name}.jsonl",
                   "--output_file", folder / "out.jsonl", "--cache_dir", folder)  # fmt: skip
        assert done.returncode == 0, done.stderr
    return folder


def test_chance_is_seeded_and_knows_no_order_of_texts(cli, tmp_path, rare_en):
    files = ("--train_file", rare_en / "train.jsonl", "--retriever", "random", "--output_file", tmp_path / "o.jsonl")
    found = []
    for seed, test in ((1, rare_en / "test.jsonl"), (2, rare_en / "test.jsonl"), (1, tmp_path / "turned.jsonl")):
        write_jsonl(tmp_path / "turned.jsonl", list(read_records(rare_en / "test.jsonl"))[::-1])
        assert cli(SCRIPT, *files, "--test_file", test, "--seed", seed).returncode == 0
        found.append(shown(tmp_path, "o.jsonl"))
    assert found[0] == found[2] != found[1]
    assert not any("score" in shot for each in made(tmp_path, "o.jsonl").values() for shot in each["shots"])


def test_dense_finds_what_cosines_find(cli, tmp_path, rare_en, vectors):
    """Against the plain way: encode in float32, sort all cosines."""
    from sentence_transformers import SentenceTransformer

    folder = ner_rag.model_folder(ner_rag.argparse.Namespace(embedding_model="minilm"))
    train, test = (list(read_records(rare_en / f"{name}.jsonl")) for name in ("train", "test"))
    done = cli(SCRIPT, "--train_file", rare_en / "train.jsonl", "--test_file", rare_en / "test.jsonl", "--output_file",
               tmp_path / "o.jsonl", "--cache_dir", vectors, "--num_shots", 1)  # fmt: skip
    assert done.returncode == 0, done.stderr
    model = SentenceTransformer(folder)
    sides = [model.encode([r["text"] for r in side], normalize_embeddings=True) for side in (test, train)]
    cosines, wrong = sides[0] @ sides[1].T, 0
    places = {r["text"].strip(): i for i, r in enumerate(train)}
    for row, each in zip(cosines, test, strict=True):
        (shot,) = made(tmp_path, "o.jsonl")[each["id"]]["shots"]
        allowed = [i for i, r in enumerate(train) if not ner_rag.leak(each, r, False)]
        at = places[shot["text"].strip()]
        assert row[at] == pytest.approx(shot["score"], abs=0.01)
        wrong += row[allowed].max() - row[at] > 0.003  # bf16 may turn near ties
    assert wrong == 0
    counted = json.loads((tmp_path / "o.jsonl.run.json").read_text())["shares"]
    held = []
    for each in made(tmp_path, "o.jsonl").values():
        mentions = {(e["type"], e["text"].lower()) for shot in each["shots"] for e in shot["entities"]}
        held += [(e["type"], e["text"].lower()) in mentions for e in each["entities"]]
    assert counted["mentions"] == pytest.approx(sum(held) / len(held))


# ---------------------------------------------------------------------------- votes


def test_votes_label_the_longest_first_and_count_what_was_no_mention(cli, files):
    write_jsonl(files / "train.jsonl", [
        record("a", "Severe joint pain in the morning.", ("Severe joint pain", "SYMPTOM")),
        record("b", "Joint pain since the flight.", ("Joint pain", "SIGN")),
        record("c", "He slept well at night."),
        record("d", "The night was cold.", ("night", "TIME")),
        record("e", "AT was found.", ("AT", "DISEASE")),
    ])  # fmt: skip
    twice = files / "twice.jsonl"
    write_jsonl(twice, [record("t", "Cough and cough.", ("Cough", "SIGN"), ("cough", "SIGN")),
                        record("u", "The cough was none."), record("v", "A cough of no kind.")])  # fmt: skip
    done = cli(SCRIPT, "--train_file", twice, "--test_file", twice, "--output_file", files / "out.jsonl", "--vote",
               "--retriever", "random")  # fmt: skip
    assert done.returncode == 0 and not made(files)["u"]["entities"], done.stderr  # one of two: t has it, v has not
    write_jsonl(files / "test.jsonl", [
        record("q1", "severe joint pain at night, then joint pain, and AT."), record("q2", "Nothing of the kind."),
    ])  # fmt: skip
    done = rag(cli, files, "--vote", "--retriever", "random", "--num_shots", 5)
    assert done.returncode == 0 and "3 entities" in done.stderr, done.stderr
    preds = made(files)
    assert [(e["text"], e["type"], e["score"]) for e in preds["q1"]["entities"]] == [
        ("severe joint pain", "SYMPTOM", 1.0), ("joint pain", "SIGN", 1.0), ("AT", "DISEASE", 1.0),
    ]  # fmt: skip
    assert preds["q2"]["entities"] == [] and "shots" not in preds["q1"] and len(preds["q1"]["tags"]) == 13


def test_votes_are_a_floor_on_real_texts(corpus, cli, tmp_path):
    """NCBI-disease: entity retrieval covers more than text retrieval, and that more than chance; votes are no zero."""
    done = cli("brat2iob.py", "--input", corpus("ncbi-disease") / "pubtator", "--output_dir", tmp_path, "--to", "jsonl")
    assert done.returncode == 0, done.stderr
    train, test = (tmp_path / f"NCBI{name}set_corpus.jsonl" for name in ("train", "test"))
    shares = {}
    for name, args in {"chance": ("--retriever", "random"), "text": ("--retriever", "bm25"),
                       "entity": ("--retriever", "bm25", "--retrieval_unit", "entity"),
                       "vote": ("--retriever", "bm25", "--retrieval_unit", "entity", "--vote", "--num_shots", 20),
                       }.items():  # fmt: skip
        out = tmp_path / f"{name}.jsonl"
        done = cli(SCRIPT, "--train_file", train, "--test_file", test, "--output_file", out, *args)
        assert done.returncode == 0, done.stderr
        shares[name] = json.loads((tmp_path / f"{name}.jsonl.run.json").read_text())["shares"]["mentions"]
    assert shares["chance"] < 0.1 < 0.3 < shares["text"] < shares["entity"] - 0.1
    scored = cli("ner_eval.py", "--gold", test, "--pred", tmp_path / "vote.jsonl", "--format", "json", "--resamples", 0)
    assert json.loads(scored.stdout)["systems"]["vote.jsonl"]["entity"]["micro"]["f1"] > 0.45


# ---------------------------------------------------------------------------- knowledge


def test_passages_are_found_cut_and_kept_from_the_text_itself(cli, files):
    (files / "kb").mkdir()
    (files / "kb" / "fever.md").write_text(
        "# Fever\n\nFever on the second day is a sign of malaria in travellers. " * 3
    )
    (files / "kb" / "joints.txt").write_text("Joint pain in the house of a patient with AT is rare.\n")
    (files / "kb" / "own.txt").write_text("We quote: Fever on the second day of the trip. End.\n")
    (files / "kb" / "skipped.pdf").write_bytes(b"\x00")
    write_jsonl(files / "more.jsonl", [record("note", "The trip: fever is seen on a day of rain.", doc_id="doc of q1")])
    args = ("--knowledge", files / "kb", files / "more.jsonl", "--num_passages", 2, "--retriever", "bm25")
    done = rag(cli, files, *args, "--num_shots", 0)
    assert done.returncode == 0, done.stderr
    found = {name: each["passages"] for name, each in made(files).items()}
    assert [p["id"] for p in found["q1"]] == ["joints.txt@0", "fever.md@0"]
    assert found["q1"][1]["score"] >= found["q1"][0]["score"] and "shots" not in made(files)["q1"]
    assert "1 of a text's own document, 1 near copies" in done.stderr and "4 passages" in done.stderr
    dense = rag(cli, files, *args[:-1], "dense", "--num_shots", 2)
    assert dense.returncode == 0 and len(made(files)["q2"]["passages"]) == 2 == len(made(files)["q2"]["shots"])
    assert made(files)["q2"]["passages"][-1]["id"] == "joints.txt@0"


# ---------------------------------------------------------------------------- embeddings: cache and server


def test_vectors_are_kept_and_a_broken_cache_is_one_line(cli, files):
    assert rag(cli, files).returncode == 0
    whole = (files / "out.jsonl").read_bytes()
    again = rag(cli, files)
    assert "0 texts embedded" in again.stderr and (files / "out.jsonl").read_bytes() == whole
    (path,) = (files / "embeddings").iterdir()
    with sqlite3.connect(path) as cache:
        kept = cache.execute("SELECT text, vector FROM vectors").fetchall()
    vectors = np.array([np.frombuffer(vector, np.float32) for _, vector in kept])
    assert len({text for text, _ in kept}) == 8 and np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-5)
    raw = path.read_bytes()
    assert not any(r["text"][:12].encode() in raw for r in TRAIN + TEST)  # hashes alone
    for broken in (raw[:5000], b"PK\3\4" + raw, b"no database"):
        path.write_bytes(broken)
        (files / "out.jsonl").unlink(missing_ok=True)
        done = rag(cli, files)
        assert done.returncode == 1 and done.stderr.startswith(f"error: {files / 'embeddings'}: "), done.stderr
        assert "delete the model's .sqlite file" in done.stderr and len(done.stderr.splitlines()) == 1
        assert not (files / "out.jsonl").exists()
    path.write_bytes(b"")
    assert rag(cli, files).returncode == 0 and (files / "out.jsonl").read_bytes() == whole
    with sqlite3.connect(path) as cache:
        cache.execute("UPDATE vectors SET vector = ?", [np.array([1, 0, 0], np.float32).tobytes()])
    write_jsonl(files / "test.jsonl", [*TEST, record("q3", "A new text.")])
    done = rag(cli, files)
    assert done.returncode == 1 and done.stderr.splitlines()[-1].startswith("error: "), done.stderr
    assert f"vectors of {vectors.shape[1]} and of 3 numbers" in done.stderr
    assert not list(files.glob("*.part"))


def test_another_version_of_a_model_finds_nothing(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    args = ner_rag.argparse.Namespace(
        embedding_model=str(tmp_path / "model"), cache_dir=tmp_path / "kept", batch_size=2
    )

    def embedded(role):
        embeddings = ner_rag.Embeddings(args)
        embeddings.encode = lambda texts, role: np.eye(3)[: len(texts)] + len(texts[0])
        embeddings(["one", "two", "one", "three"], role)
        return embeddings.counts["embedded"]

    assert [embedded("like"), embedded("like"), embedded("query")] == [3, 0, 3]
    (tmp_path / "model" / "model.safetensors").write_bytes(b"other weights")
    assert [embedded("like"), embedded("like")] == [3, 0]
    shutil.copytree(tmp_path / "model", tmp_path / "twin" / "model")  # of the same times, as in wheels
    args.embedding_model = str(tmp_path / "twin" / "model")
    assert [embedded("like"), embedded("like")] == [3, 0]


class Vectors(BaseHTTPRequestHandler):
    """/v1/embeddings: a vector for each text, by the hash of its words."""

    size, seen, keys, reply, after = 16, [], set(), None, 0

    def log_message(self, *args):
        """Not on stderr."""

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        type(self).keys.add(self.headers["Authorization"])
        type(self).seen += asked["input"]
        data = []
        for i, text in enumerate(asked["input"]):
            vector = np.zeros(self.size)
            for word in re.findall(r"\w+", text.lower()) or [""]:
                vector[int(hashlib.md5(word.encode()).hexdigest(), 16) % self.size] += 1
            data.insert(0, {"object": "embedding", "index": i, "embedding": vector.tolist()})  # in no order
        type(self).after -= 1
        fails = self.reply if self.after < 0 else None
        raw = fails or json.dumps({"object": "list", "model": "m", "data": data}).encode()
        self.send_response(200 if raw != b"no" else 404)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)


@pytest.fixture
def endpoint():
    handler = type("Fresh", (Vectors,), {"seen": [], "keys": set()})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield handler, f"m@http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()


def test_a_server_embeds_each_text_once(cli, files, endpoint):
    handler, name = endpoint
    done = rag(cli, files, "--embedding_model", name, "--batch_size", 3, OPENAI_API_KEY="sk-secret")
    assert done.returncode == 0 and "texts are sent to 127.0.0.1" in done.stderr, done.stderr
    assert sorted(handler.seen) == sorted(r["text"] for r in TRAIN + TEST) and handler.keys == {"Bearer sk-secret"}
    assert shown(files)["q1"][-1] == "t1"
    assert rag(cli, files, "--embedding_model", name).returncode == 0 and len(handler.seen) == 8
    for path in files.rglob("*"):
        assert path.is_dir() or b"sk-secret" not in path.read_bytes()
    (files / "kb.txt").write_text(TRAIN[2]["text"])  # a passage, a text and an example are all alike to a server
    both = rag(cli, files, "--embedding_model", name, "--knowledge", files / "kb.txt")
    assert both.returncode == 0 and len(handler.seen) == 8 and made(files)["q1"]["passages"], both.stderr
    write_jsonl(files / "test.jsonl", [*TEST, record("q3", "A new text, and the model has changed.")])
    handler.size = 8
    done = rag(cli, files, "--embedding_model", name)
    assert done.returncode == 1 and "vectors of 8 and of 16 numbers" in done.stderr.splitlines()[-1]
    handler.size, handler.reply = 16, b'{"data": [{"index": 0, "embedding": "AAAA"}]}'
    for reply, said in ((handler.reply, "embedding"), (b"<html>", "embedding"), (b"no", "(404)"), (b"{}", "embedding")):
        handler.reply = reply
        done = rag(cli, files, "--embedding_model", name)
        assert done.returncode == 1 and said in done.stderr and "Traceback" not in done.stderr, done.stderr
        assert "A new text" not in done.stderr


def test_what_was_paid_for_is_kept_when_a_server_fails(cli, files, endpoint):
    handler, name = endpoint
    handler.reply, handler.after = b"no", 2
    failed = rag(cli, files, "--embedding_model", name, "--batch_size", 2)
    assert failed.returncode == 1 and "(404)" in failed.stderr, failed.stderr
    handler.reply, paid = None, handler.seen[:4]
    done = rag(cli, files, "--embedding_model", name, "--batch_size", 2)
    assert done.returncode == 0 and "4 texts embedded" in done.stderr, done.stderr
    assert not set(paid) & set(handler.seen[6:])


def test_two_runs_share_a_cache(files, endpoint):
    _, name = endpoint
    command = [ner_rag.sys.executable, ner_rag.__file__, "--train_file", "train.jsonl", "--test_file", "test.jsonl",
               "--embedding_model", name, "--batch_size", "1", "--output_file"]  # fmt: skip
    runs = [subprocess.Popen([*command, out], cwd=files, stderr=subprocess.PIPE, text=True) for out in "abc"]
    for run in runs:
        assert run.communicate()[1].splitlines()[-1].startswith("  -> ") and run.returncode == 0
    assert (files / "a").read_bytes() == (files / "b").read_bytes() == (files / "c").read_bytes()


def test_a_model_that_gives_all_texts_one_vector_is_refused(cli, files, endpoint):
    handler, name = endpoint
    handler.size = 1
    write_jsonl(files / "train.jsonl", [*TRAIN, *(record(f"n{i}", f"Text number {i}.") for i in range(9))])
    done = rag(cli, files, "--embedding_model", name)
    assert done.returncode == 1 and "gave all texts one vector" in done.stderr.splitlines()[-1], done.stderr
    write_jsonl(files / "train.jsonl", TRAIN[:2])  # of a few, all may be alike
    assert rag(cli, files, "--embedding_model", name).returncode == 0


# ---------------------------------------------------------------------------- wrong input


@pytest.mark.parametrize("train, args, said", [
    ("", (), "train.jsonl: holds no record"),
    ('{"id": "a", "text": "Nothing."}\n', (), "train.jsonl: no record has an entity"),
    (None, ("--embedding_model", "no/such-model"), "--embedding_model no/such-model: can't be loaded"),
    (None, ("--embedding_model", "no such model"), "--embedding_model no such model: can't be loaded"),
    (None, ("--embedding_model", "m@http://127.0.0.1:9/v1"), "127.0.0.1: no embeddings (APIConnectionError)"),
    (None, ("--embedding_model", "m@https://example.org/v1"), "example.org: not this machine"),
    (None, ("--knowledge", "nowhere", "--num_shots", "0", "--retriever", "bm25"), "nowhere: No such file"),
    (None, ("--candidate_file", "nowhere.jsonl", "--retrieval_unit", "entity", "--retriever", "bm25"), "nowhere"),
])  # fmt: skip
def test_wrong_input_is_one_line(train, args, said, cli, files):
    if train is not None:
        (files / "train.jsonl").write_text(train)
    done = rag(cli, files, *args)
    assert done.returncode == 1 and done.stderr.splitlines()[-1].startswith("error: "), done.stderr
    assert said in done.stderr and "Traceback" not in done.stderr
    assert len([line for line in done.stderr.splitlines() if "sent to" not in line]) == 1, done.stderr
    assert not (files / "out.jsonl").exists() and not list(files.glob("*.part"))


@pytest.mark.parametrize("args", [
    ("--num_shots", 0), ("--static_shots", 9), ("--mmr_lambda", 2), ("--mmr_lambda", 0.5, "--retriever", "bm25"),
    ("--retrieval_unit", "entity", "--retriever", "random"), ("--candidate_file", "x"), ("--vote", "--knowledge", "x"),
    ("--embedding_model", "m@http://me:secret@127.0.0.1/v1"), ("--embedding_model", "m@http://127.0.0.1/v1?key=secret"),
    ("--embedding_model", "m@http://[bad/v1"), ("--vote", "--static_shots", 2), ("--num_shots", -1),
])  # fmt: skip
def test_flags_that_do_not_fit_are_usage_errors(args, cli, files):
    done = rag(cli, files, *args)
    assert done.returncode == 2 and "secret" not in done.stderr.split("error:")[1], done.stderr


def test_the_test_files_own_entities_choose_nothing(cli, files):
    done = rag(cli, files, "--retrieval_unit", "entity", "--candidate_file", files / "test.jsonl")
    assert done.returncode == 2 and "give predictions" in done.stderr
    write_jsonl(files / "bare.jsonl", ({"id": r["id"], "doc_id": r["doc_id"], "text": r["text"]} for r in TEST))
    assert rag(cli, files, "--retriever", "bm25", "--retrieval_unit", "entity").returncode == 0
    assert rag(cli, files, "--retriever", "bm25", "--retrieval_unit", "entity", "--test_file", files / "bare.jsonl",
               out="bare.out").returncode == 0  # fmt: skip
    assert shown(files) == shown(files, "bare.out")


def test_a_run_that_ends_early_leaves_no_output(files):
    (files / "test.jsonl").write_text((files / "test.jsonl").read_text() + "{broken\n")
    command = [ner_rag.sys.executable, ner_rag.__file__, "--train_file", "train.jsonl", "--test_file", "test.jsonl",
               "--output_file", "out.jsonl", "--retriever", "bm25"]  # fmt: skip
    done = subprocess.run(command, cwd=files, capture_output=True, text=True)
    assert done.returncode == 1 and "test.jsonl:3: not JSON" in done.stderr
    assert sorted(path.name for path in files.iterdir()) == ["test.jsonl", "train.jsonl"]


@pytest.mark.slow
@pytest.mark.parametrize("name, train, test", [
    ("ncbi-disease", "NCBItrainset_corpus", "NCBItestset_corpus"),
    ("bc5cdr", "CDR_TrainingSet.PubTator", "CDR_TestSet.PubTator"),
])  # fmt: skip
def test_entities_cover_more_than_likeness_and_that_more_than_chance(name, train, test, corpus, cli, tmp_path):
    done = cli("brat2iob.py", "--input", corpus(name) / "pubtator", "--output_dir", tmp_path, "--to", "jsonl")
    assert done.returncode == 0, done.stderr
    shares = []
    for args in (("--retriever", "random"), (), ("--retrieval_unit", "entity")):
        done = cli(SCRIPT, "--train_file", tmp_path / f"{train}.jsonl", "--test_file", tmp_path / f"{test}.jsonl",
                   "--output_file", tmp_path / "o.jsonl", *args)  # fmt: skip
        assert done.returncode == 0, done.stderr
        shares.append(json.loads((tmp_path / "o.jsonl.run.json").read_text())["shares"]["mentions"])
    assert shares[0] + 0.3 < shares[1] and shares[1] + 0.1 < shares[2], shares

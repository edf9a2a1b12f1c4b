"""ner_ft_encoder.py: windows that lose no word, legal tags, the best checkpoint really reloaded, predictions that fit.

.venv/bin/python -m pytest tests/test_ner_ft_encoder.py
"""

import itertools
import json
import os
import platform
import random
import re
import shutil
import signal
import subprocess
import sys
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

import ner_ft_encoder as script
from utils import DataError, read_records, tokenize, write_jsonl

TAGS = ["O", "B-A", "I-A", "B-B", "I-B"]


def is_legal(path):
    return all(
        tag[0] != "I" or (before[1:] == tag[1:] and before != "O") for before, tag in itertools.pairwise(["O", *path])
    )


# ---------------------------------------------------------------------------- pure functions


@settings(deadline=None, max_examples=300)
@given(st.integers(0, 2**32 - 1), st.integers(1, 5))
def test_best_path_is_the_best_legal_sequence(seed, length):
    """Equal to trying every sequence, with the labels in any order of ids."""
    rng = np.random.default_rng(seed)
    tags = list(rng.permutation(TAGS))
    scores = rng.normal(size=(length, len(tags)))
    path = script.best_path(scores, tags)
    every = (p for p in itertools.product(range(len(tags)), repeat=length) if is_legal([tags[i] for i in p]))
    best = max(every, key=lambda p: sum(scores[i, tag] for i, tag in enumerate(p)))
    assert tuple(path) == best


def load_tokenizer(folder):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("last", [False, True], ids=["first", "last"])
@pytest.mark.parametrize("kind", ["bert", "bpe"])
def test_every_word_is_labelled_once_on_its_first_or_last_sub_token_where_it_is_most_central(tiny_models, kind, last):
    tokenizer = load_tokenizer(tiny_models[kind])
    rng = random.Random(3)
    vocabulary = [
        "fever",
        "IL-2",
        "p53",
        "hepatosplenomegaly",
        "β-thalassaemia",
        "12.5",
        "(",
        ").",
        "e\u0301",
        "x" * 30,
    ]
    texts = [rng.choice(["", " ", "\n\n"]) + " ".join(rng.choices(vocabulary, k=k)) for k in (1, 7, 90, 400)]
    offsets = [tokenize(text) for text in texts]
    seen = {}
    made = script.windows(texts, offsets, tokenizer, max_length=40, stride=12, last=last)
    for record, inputs, words, positions in made:
        assert len(inputs["input_ids"]) <= 40 and len(words) == len(positions)
        for word, position in zip(words, positions, strict=True):
            assert (record, word) not in seen
            seen[record, word] = position, len(inputs["input_ids"]), inputs["input_ids"][position]
    whole = tokenizer(texts, return_offsets_mapping=True)
    for record, text in enumerate(texts):
        first = {}
        for token_id, (start, end) in zip(whole["input_ids"][record], whole["offset_mapping"][record], strict=True):
            start += len(text[start:end]) - len(text[start:end].lstrip())
            word = next((i for i, (a, b) in enumerate(offsets[record]) if a <= start < b and start < end), None)
            first[word] = token_id if last else first.get(word, token_id)
        owned = {word for word in first if word is not None}
        assert owned == {word for number, word in seen if number == record}
        assert all(seen[record, word][2] == first[word] for word in owned)  # the same sub-token as without windows
        assert len(owned) >= 0.9 * len(offsets[record])
    # Central: no word of a middle window is labelled within a quarter of the stride of a cut edge.
    inner = [(position, size) for (record, _), (position, size, _) in seen.items() if record == 3]
    assert min(min(position, size - position) for position, size in inner[100:-100]) >= 3


def test_training_labels_are_iob2_whatever_the_scheme_of_the_file(tmp_path):
    for scheme, tags in {
        "iob1": "I-A I-A B-A O I-B",
        "iobes": "B-A E-A S-A O S-B",
        "bilou": "B-A L-A U-A O U-B",
    }.items():
        path = tmp_path / f"{scheme}.iob"
        path.write_text("".join(f"w{i}\t{tag}\n" for i, tag in enumerate(tags.split())))
        (record,) = read_records(path)
        assert script.gold_tags(record, ())[1] == [["B-A", "I-A", "B-A", "O", "B-B"]]


def test_a_predictor_never_sees_the_cuts_of_gold():
    record = {"id": "1", "text": "HCV-infections", "entities": [{"start": 0, "end": 2, "type": "A", "text": "HC"}]}
    assert [record["text"][a:b] for a, b in script.words(record)] == ["HCV", "-", "infections"]
    offsets, (tags,) = script.gold_tags(record, ())
    assert [record["text"][a:b] for a, b in offsets] == ["HC", "V", "-", "infections"] and tags[:2] == ["B-A", "O"]


def test_decode_slices_scores_and_tags_agree():
    text = "Acute renal failure and fever"
    scores = np.log(np.full((5, 5), 0.01))
    for word, (tag, probability) in enumerate([(1, 0.9), (2, 0.8), (2, 0.7), (0, 0.96), (3, 0.6)]):
        scores[word, tag] = np.log(probability)
    record = {"id": "d:0", "doc_id": "d", "start": 0, "text": text, "entities": [{"start": 0}], "other": ["x"]}
    found = script.decode(record, tokenize(text), scores, [(TAGS, [[i] for i in range(5)])])
    assert found["entities"] == [
        {"start": 0, "end": 19, "type": "A", "text": "Acute renal failure", "score": 0.8},
        {"start": 24, "end": 29, "type": "B", "text": "fever", "score": 0.6},
    ]
    assert found["tags"] == ["B-A", "I-A", "I-A", "O", "B-B"] and "other" not in found


# ---------------------------------------------------------------------------- the command line


@pytest.fixture(scope="module")
def trained(cli, rare_en, tiny_models, tmp_path_factory):
    """A tiny model trained until it stops early, so its last epoch is not its best."""
    out = tmp_path_factory.mktemp("trained")
    small = out / "small.jsonl"
    write_jsonl(small, list(read_records(rare_en / "train.jsonl", 60)))
    done = cli(
        "ner_ft_encoder.py", "--model", tiny_models["bert"], "--train_file", small, "--validation_file", small,
        "--test_file", small, rare_en / "test.iob", "--output_dir", out / "model", "--max_length", 64, "--stride", 16,
        "--learning_rate", 0.003, "--num_train_epochs", 80, "--early_stopping_patience", 8, "--batch_size", 4,
        "--training_args", "lr_scheduler_type=constant_with_warmup", "max_grad_norm=0.9",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return out, small, done


def micro_f1(cli, gold, pred):
    done = cli("ner_eval.py", "--gold", gold, "--pred", pred, "--format", "json")
    assert done.returncode == 0, done.stderr
    (system,) = json.loads(done.stdout)["systems"].values()
    return system["entity"]["micro"]["f1"]


def test_training_learns_and_the_best_checkpoint_is_the_one_saved(trained, cli, tmp_path):
    out, small, done = trained
    info = json.loads((out / "model" / "run.json").read_text())
    curve = [row["f1"] for row in info["history"] if "f1" in row]
    assert max(curve) > 0.5 and info["arguments"]["training_args"] and info["counts"]["train"] == 60
    assert len(info["inputs"][str(small)]) == 64 and info["versions"]["torch"]
    assert len(curve) == curve.index(max(curve)) + 9 < 80  # 8 epochs of patience: the best is not the last
    assert micro_f1(cli, small, out / "model" / "small.pred.jsonl") == pytest.approx(max(curve), abs=1e-9)
    assert f"{max(curve):.4f}" in done.stderr and not list((out / "model").glob("checkpoint*"))


def test_the_saved_folder_predicts_the_same_again(trained, cli, tmp_path):
    out, small, _ = trained
    done = cli("ner_ft_encoder.py", "--model", out / "model", "--test_file", small, "--output_dir", tmp_path,
               "--max_length", 64, "--stride", 16)  # fmt: skip
    assert done.returncode == 0, done.stderr
    pairs = list(zip(*(read_records(d / "small.pred.jsonl") for d in (out / "model", tmp_path)), strict=True))
    assert all(before["tags"] == after["tags"] for before, after in pairs)
    for before, after in pairs:
        for a, b in zip(before["entities"], after["entities"], strict=True):
            assert abs(a["score"] - b["score"]) < 0.01
    info = json.loads((tmp_path / "small.pred.jsonl.run.json").read_text())
    assert info["counts"]["records"] == 60
    assert info["history"] == json.loads((out / "model" / "run.json").read_text())["history"] != []


def test_predictions_are_records_over_whole_texts(trained):
    out, small, _ = trained
    golds, preds = list(read_records(small)), list(read_records(out / "model" / "small.pred.jsonl"))
    assert [p["id"] for p in preds] == [g["id"] for g in golds] and any(p["entities"] for p in preds)
    for gold, pred in zip(golds, preds, strict=True):
        assert pred["text"] == gold["text"] and pred["offsets"] == tokenize(gold["text"])
        assert is_legal(pred["tags"]) and len(pred["tags"]) == len(pred["tokens"])
        assert all(0 < entity["score"] <= 1 for entity in pred["entities"])


def test_records_from_iob_keep_their_tokens(trained, rare_en):
    golds = list(read_records(rare_en / "test.iob"))
    preds = list(read_records(trained[0] / "model" / "test.pred.jsonl"))
    assert [p["tokens"] for p in preds] == [g["tokens"] for g in golds]


def test_the_saved_folder_loads_with_pipeline(trained):
    from transformers import pipeline

    pipe = pipeline("token-classification", model=str(trained[0] / "model"), aggregation_strategy="first")
    same = total = 0
    for pred in read_records(trained[0] / "model" / "small.pred.jsonl"):
        ours = {(e["start"], e["end"], e["type"]) for e in pred["entities"]}
        same += len(ours & {(e["start"], e["end"], e["entity_group"]) for e in pipe(pred["text"])})
        total += len(ours)
    assert total > 20 and same > 0.8 * total  # the pipeline's tags need not be legal


def test_a_text_of_3000_words_is_predicted_whole(trained, cli, tmp_path):
    texts = itertools.cycle(record["text"].split() for record in read_records(trained[1]))
    words = list(itertools.islice(itertools.chain.from_iterable(texts), 3000))
    odd = " \x07 \u200b fever\u00ad "  # no sub-token, or none of its own
    write_jsonl(tmp_path / "long.jsonl", [{"id": "long", "text": " ".join(words) + odd}, {"id": "none", "text": " \n"}])
    done = cli(
        "ner_ft_encoder.py", "--model", trained[0] / "model", "--test_file", tmp_path / "long.jsonl", "--output_dir",
        tmp_path, "--output_file", tmp_path / "o.jsonl", "--max_length", 64, "--stride", 16,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    long, none = read_records(tmp_path / "o.jsonl")
    assert "".join(long["tokens"]) == "".join(long["text"].split()) and len(long["tags"]) == len(long["tokens"])
    assert none["entities"] == [] and is_legal(long["tags"])
    found = [entity["start"] for entity in long["entities"]]
    assert len(found) > 20 and max(found) > 0.9 * len(long["text"])


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(cli, rare_en, tiny_models, tmp_path):
    made = []
    for number, seed in enumerate((1, 1, 2)):
        done = cli("ner_ft_encoder.py", "--model", tiny_models["bpe"], "--train_file", rare_en / "train.jsonl",
                   "--test_file", rare_en / "dev.jsonl", "--limit", 40, "--num_train_epochs", 1, "--seed", seed,
                   "--max_length", 100, "--output_dir", tmp_path / str(number), "--learning_rate", 0.005)  # fmt: skip
        assert done.returncode == 0, done.stderr
        made.append((tmp_path / str(number) / "model.safetensors").read_bytes())
    assert made[0] == made[1] != made[2]


def test_two_processes_train_and_score_together(cli, rare_en, tiny_models, torchrun, tmp_path):
    """Under torchrun each process evaluates its share of the development records; the sum must be the whole."""
    command = [
        *torchrun, ROOT / "ner_ft_encoder.py", "--model",
        tiny_models["bert"], "--train_file", rare_en / "train.jsonl", "--validation_file", rare_en / "dev.jsonl",
        "--test_file", rare_en / "dev.jsonl", "--output_dir", tmp_path / "m", "--limit", 61, "--num_train_epochs", 16,
        "--learning_rate", 0.003, "--max_length", 64, "--stride", 16, "--batch_size", 2,
        "--early_stopping_patience", 20,
    ]  # fmt: skip
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    curve = [row["f1"] for row in json.loads((tmp_path / "m" / "run.json").read_text())["history"] if "f1" in row]
    assert len(curve) == 16 and max(curve) > 0
    write_jsonl(tmp_path / "dev.jsonl", read_records(rare_en / "dev.jsonl", 61))
    scored = cli(
        "ner_eval.py", "--gold", tmp_path / "dev.jsonl", "--pred", tmp_path / "m" / "dev.pred.jsonl", "--format", "json"
    )
    micro = next(iter(json.loads(scored.stdout)["systems"].values()))["entity"]["micro"]
    assert micro["f1"] == pytest.approx(max(curve), abs=1e-9)


def bad_inputs(tmp_path):
    (tmp_path / "none.jsonl").write_text('{"id": "1", "text": "no entity here"}\n')
    (tmp_path / "broken.jsonl").write_text('{"id": "1", "text": "x"}\n{"id": oops\n')
    (tmp_path / "empty.jsonl").write_text("")
    good = tmp_path / "good.jsonl"
    good.write_text('{"id": "1", "text": "fever", "entities": [{"start": 0, "end": 5, "type": "A"}]}\n')
    return {
        "missing": (["--train_file", tmp_path / "nowhere.jsonl"], "nowhere.jsonl: "),
        "empty": (["--train_file", tmp_path / "empty.jsonl"], "empty.jsonl: holds no record"),
        "broken": (["--test_file", tmp_path / "broken.jsonl"], "broken.jsonl:2: not JSON"),
        "no entity": (["--train_file", tmp_path / "none.jsonl"], "none.jsonl: no entity"),
        "unknown model": (
            ["--test_file", good, "--model", "nobody/no-such-model"],
            "nobody/no-such-model: can't be loaded",
        ),
        "not for NER": (["--test_file", good], "minilm: has no trained head"),
        "too long": (["--train_file", good, "--max_length", 2000], "--max_length 2000: "),
    }


@pytest.mark.parametrize(
    "name", ["missing", "empty", "broken", "no entity", "unknown model", "not for NER", "too long"]
)
def test_bad_input_is_one_line_and_leaves_nothing(cli, tmp_path, name):
    args, message = bad_inputs(tmp_path)[name]
    done = cli("ner_ft_encoder.py", *args, "--output_dir", tmp_path / "out")
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 1 and len(errors) == 1 and message in errors[0], done.stderr
    assert "Traceback" not in done.stderr and done.stdout == ""
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    "args",
    [
        [],
        ["--train", "x"],
        ["--test_file", "a", "b", "--output_file", "c"],
        ["--test_file", "a", "--max_length", 256, "--stride", 300],
        ["--train_file", "a", "--learning_rate", -1],
        ["--train_file", "a", "--seed", 2**32],
        ["--train_file", "a", "--num_train_epochs", "inf"],
        ["--train_file", "a", "--lora_alpha", 7],
        ["--train_file", "a", "--load_in_4bit"],
        ["--train_file", "a", "--bidirectional", "some"],
        ["--train_file", "a", "--early_stopping_patience", 0],
        ["--test_file", "a", "--nested", "per_type"],
        ["--test_file", "a", "--doc_context", 1],
        ["--test_file", "a", "--limit", 0],
        ["--test_file", "a", "--training_args", "noequals"],
        ["--test_file", "a/test.jsonl", "b/test.jsonl"],
        ["--test_file", "a", "--output_file", "./a"],
        ["--train_file", "a", "--batch_size", 0],
        ["--test_file", "a", "--validation_file", "b"],
    ],
)
def test_usage_errors_exit_2(cli, tmp_path, args):
    done = cli("ner_ft_encoder.py", *args, "--output_dir", tmp_path)
    assert done.returncode == 2 and "error: " in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("setting", ["learning_rat=1", "eval_strategy=no"])
def test_a_wrong_training_argument_is_a_usage_error(cli, rare_en, tiny_models, tmp_path, setting):
    done = cli(
        "ner_ft_encoder.py", "--model", tiny_models["bert"], "--train_file", rare_en / "dev.jsonl", "--max_length", 64,
        "--validation_file", rare_en / "dev.jsonl", "--stride", 8, "--output_dir", tmp_path / "x",
        "--training_args", setting,
    )  # fmt: skip
    assert done.returncode == 2 and setting.split("=")[0] in done.stderr and "Traceback" not in done.stderr


def test_patience_starts_with_the_first_entity_found(cli, rare_en, tiny_models, tmp_path):
    """With nothing to be found in the development records F1 stays 0: all epochs are made, and a warning says so."""
    write_jsonl(tmp_path / "dev.jsonl", [{"id": "1", "text": "Nothing to report.", "entities": []}])
    done = cli(
        "ner_ft_encoder.py", "--model", tiny_models["bert"], "--train_file", rare_en / "train.jsonl", "--limit", 20,
        "--validation_file", tmp_path / "dev.jsonl", "--max_length", 64, "--stride", 8, "--output_dir", tmp_path / "m",
        "--early_stopping_patience", 1, "--num_train_epochs", 4,
    )  # fmt: skip
    assert done.returncode == 0 and "no development entity was found" in done.stderr, done.stderr
    history = json.loads((tmp_path / "m" / "run.json").read_text())["history"]
    assert [row["f1"] for row in history if "f1" in row] == [0, 0, 0, 0]


def test_predicting_any_number_of_records_in_any_chunks(trained, monkeypatch):
    options = script.parse_args(["--model", str(trained[0] / "model"), "--test_file", "-", "--output_dir", "-"])
    options.max_length, options.stride = 64, 16
    model, tokenizer = script.load(options)
    records = list(read_records(trained[1], 7))
    whole = list(script.predict(model, tokenizer, records, options))
    assert list(script.predict(model, tokenizer, [], options)) == []
    monkeypatch.setattr(script, "CHUNK", 1)
    assert [p["tags"] for p in script.predict(model, tokenizer, iter(records), options)] == [p["tags"] for p in whole]


def test_a_head_of_the_same_size_for_other_types_is_made_anew(trained):
    options = script.parse_args(["--model", str(trained[0] / "model"), "--train_file", "-", "--output_dir", "-"])
    options.max_length, options.stride = 64, 16
    tags = list(script.load(options)[0].config.id2label.values())
    again, other = (script.load(options, names)[0] for names in (tags, [tag.replace("SIGN", "SINE") for tag in tags]))
    assert again.classifier.weight.equal(script.load(options)[0].classifier.weight)
    assert not again.classifier.weight.equal(other.classifier.weight)


def test_types_never_seen_in_training_are_a_warning_with_their_count(trained, cli, tmp_path):
    entity = {"start": 0, "end": 5, "type": "NEVER"}
    write_jsonl(tmp_path / "t.jsonl", [{"id": "1", "text": "fever now", "entities": [entity]}])
    done = cli("ner_ft_encoder.py", "--model", trained[0] / "model", "--test_file", tmp_path / "t.jsonl",
               "--output_dir", tmp_path, "--max_length", 64, "--stride", 16)  # fmt: skip
    assert done.returncode == 0 and "1 entities of types that the model does not predict: NEVER" in done.stderr


# ---------------------------------------------------------------------------- decoders, heads, context, adapters


def made_up(path, texts):
    """Write texts as records, one document a line of units; {A:word} is a mention of type A."""
    records = []
    for number, units in enumerate(texts):
        for place, marked in enumerate(units):
            text, entities = "", []
            for piece in re.split(r"(\{.*?\})", marked):
                if piece[:1] == "{":
                    type_, word = piece[1:-1].split(":")
                    entities.append({"start": len(text), "end": len(text) + len(word), "type": type_})
                    piece = word
                text += piece
            records.append({"id": f"{number}:{place}", "doc_id": str(number), "text": text, "entities": entities})
    write_jsonl(path, records)
    return path


def fit(cli, out, train, test, model, *more, epochs=12):
    """Train on a file and predict another; return (strict F1, what was said)."""
    done = cli("ner_ft_encoder.py", "--model", model, "--train_file", train, "--test_file", test, "--output_dir", out,
               "--num_train_epochs", epochs, "--batch_size", 8, "--learning_rate", 0.003, "--max_length", 64,
               "--stride", 8, *more)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return micro_f1(cli, test, out / f"{test.stem}.pred.jsonl"), done.stderr


def again(cli, tmp_path, out, test):
    """Predict a file with a saved model; return its predictions, and those made right after training."""
    done = cli("ner_ft_encoder.py", "--model", out, "--test_file", test, "--output_dir", tmp_path / "again",
               "--max_length", 64, "--stride", 8)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [[{(e["start"], e["end"], e["type"]) for e in record["entities"]} for record in read_records(path)]
            for path in (tmp_path / "again" / f"{test.stem}.pred.jsonl", out / f"{test.stem}.pred.jsonl")]  # fmt: skip


@pytest.fixture(scope="module")
def right_context(tmp_path_factory):
    """The type of a mention is what follows it: A before "fever", B before "pain"."""
    folder, rng = tmp_path_factory.mktemp("right"), random.Random(5)
    says = {"A": "fever", "B": "pain"}

    def text():
        types = rng.choices("AB", k=4)
        return [" and ".join(f"{{{t}:{rng.choice(['joint', 'skin', 'hepatic'])}}} {says[t]}" for t in types)]

    return [made_up(folder / f"{name}.jsonl", [text() for _ in range(n)]) for name, n in (("train", 96), ("test", 24))]


@pytest.mark.parametrize("open_layers, low, high", [("none", 0.0, 0.75), ("all", 0.95, 1.0), ("1", 0.95, 1.0)])
def test_a_decoder_uses_what_follows_a_word_only_without_its_mask(
    open_layers, low, high, right_context, tiny_models, cli, tmp_path
):
    train, test = right_context
    f1, _ = fit(cli, tmp_path / "m", train, test, tiny_models["llama"], "--bidirectional", open_layers)
    assert low <= f1 <= high
    saved = json.loads((tmp_path / "m" / "config.json").read_text())
    assert saved["ner"]["last"] == (open_layers != "all")
    assert saved.get("is_causal", True) == (open_layers != "all")
    first, second = again(cli, tmp_path, tmp_path / "m", test)
    assert first == second  # the choice is kept with the model
    if open_layers == "all":
        from transformers import pipeline

        pipe = pipeline("token-classification", model=str(tmp_path / "m"), aggregation_strategy="first")
        piped = [
            {(e["start"] + (r["text"][e["start"]] == " "), e["end"], e["entity_group"]) for e in pipe(r["text"])}
            for r in read_records(test)
        ]  # fmt: skip (this tokenizer counts the blank before a word to it)
        assert sum(a == b for a, b in zip(first, piped, strict=True)) >= len(first) - 2


@pytest.mark.parametrize("more, words, kind", [((), 9, "eager"), (("--lora_r", "2"), 9, "eager"), ((), 400, "sdpa")])
def test_a_cpu_keeps_memory_and_writes_attention_out_on_short_windows(tiny_models, monkeypatch, more, words, kind):
    import transformers

    seen = []
    monkeypatch.setattr(script, "EAGER", 64)
    monkeypatch.setattr(script, "device_and_half", lambda: ("cpu", None))
    monkeypatch.setattr(script, "keep_memory", lambda: seen.append("memory kept"))
    monkeypatch.setattr(transformers.Trainer, "train",
                        lambda self, **_: seen.append(self.model.config._attn_implementation))  # fmt: skip
    text = "fever " * words
    record = {"id": "1", "doc_id": "1", "start": 0, "text": text,
              "entities": [{"start": 0, "end": 5, "type": "A", "text": "fever"}]}  # fmt: skip
    args = script.parse_args(["--model", str(tiny_models["llama"]), "--train_file", "-", "--output_dir", "-",
                              "--max_length", "128", "--stride", "8", *more])  # fmt: skip
    trainer, _ = script.train(args, [record], [], "stamp")
    assert seen == ["memory kept", kind] and trainer.model.config._attn_implementation == "sdpa"


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no mallopt")
def test_the_memory_of_a_large_array_is_used_again():
    """Counted in pages, which the system has to clear for each new array of 50 MB, or for the first one alone."""
    code = """
import resource, numpy, ner_ft_encoder
def pages(times):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(times):
        numpy.ones(50_000_000, numpy.int8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
given_back = pages(9)
ner_ft_encoder.keep_memory()
pages(1)
print(given_back, pages(9))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    given_back, kept = map(int, done.stdout.split())
    assert kept < given_back / 4


def test_without_glibc_memory_is_left_as_it_is(monkeypatch):
    def no_library(name):
        raise OSError(f"{name}: not found")  # macOS, Windows

    for load in (no_library, lambda name: SimpleNamespace()):  # musl has no mallopt
        monkeypatch.setattr(script.ctypes, "CDLL", load)
        script.keep_memory()


@pytest.mark.parametrize("kind", ["sdpa", "eager"])
def test_the_top_layers_see_everything_but_padding(kind, tiny_models):
    import torch

    options = script.parse_args(["--model", str(tiny_models["llama"]), "--train_file", "-", "--output_dir", "-",
                                 "--bidirectional", "1", "--max_length", "64", "--stride", "8"])  # fmt: skip
    model, _ = script.load(options, ["O", "B-A", "I-A"])
    model.set_attn_implementation(kind)
    model.eval()
    ids, mask = torch.tensor([[5, 6, 7, 8, 0, 0]]), torch.tensor([[1, 1, 1, 1, 0, 0]])
    with torch.no_grad():
        alone = model(input_ids=ids[:, :4], attention_mask=mask[:, :4]).logits
        padded = model(input_ids=ids, attention_mask=mask).logits[:, :4]
        other = model(input_ids=ids.where(ids != 8, 9), attention_mask=mask).logits
    assert torch.allclose(alone, padded, atol=1e-5) and (alone[0, 0] - other[0, 0]).abs().max() > 1e-4


def test_labels_stand_on_the_last_sub_token_where_attention_is_causal(tiny_models):
    """The label of a word whose last letter tells its type can be learned: it stands behind that letter."""
    records = [{"id": "1", "text": "hepatosplenomegaly ok", "entities": [{"start": 0, "end": 18, "type": "A",
                                                                          "text": "hepatosplenomegaly"}]}]  # fmt: skip
    for kind, last in (("llama", True), ("bpe", False)):
        options = script.parse_args(["--model", str(tiny_models[kind]), "--train_file", "-", "--output_dir", "-",
                                     "--max_length", "64", "--stride", "8"])  # fmt: skip
        model, tokenizer = script.load(options, ["O", "B-A", "I-A"])
        golds = [script.gold_tags(record, ()) for record in records]
        ((example),) = script.training_windows(records, golds, tokenizer, model.config, options)
        assert model.config.ner["last"] == last
        labelled = [i for i, (label,) in enumerate(example["labels"]) if label != -100]
        pieces = len(tokenizer.tokenize("hepatosplenomegaly"))
        assert pieces > 2 and labelled == ([pieces, len(example["labels"]) - 1] if last else [1, pieces + 1])


def test_a_model_that_names_no_longest_text_takes_any_window(tiny_models):
    from transformers import T5Config

    options = script.parse_args(["--model", "t5", "--train_file", "-", "--output_dir", "-", "--max_length", "100"])
    config = T5Config()
    script.settle(config, load_tokenizer(tiny_models["bert"]), ["O", "B-A", "I-A"], options)
    assert config.ner["max_length"] == 100 and options.stride == 25


def test_roberta_reads_two_positions_less_than_it_has(tiny_models):
    from transformers import RobertaConfig

    config = RobertaConfig(max_position_embeddings=64)
    for length, fits in ((56, True), (64, False)):
        options = script.parse_args(
            ["--model", "r", "--train_file", "-", "--output_dir", "-", "--max_length", f"{length}"]
        )
        with nullcontext() if fits else pytest.raises(DataError, match="reads 56 sub-tokens"):
            script.settle(config, load_tokenizer(tiny_models["bpe"]), ["O", "B-A", "I-A"], options)


@pytest.mark.parametrize("labels, tags", [
    (["O", "DRUG", "PAD"], ["O", "I-DRUG", "B-DRUG", "I-PAD", "B-PAD"]), (["O", "X"], ["O", "I-X", "B-X"]),
    (["O", "B-A", "I-A", "X", "[CLS]"], ["O", "B-A", "I-A"]),
])  # fmt: skip
def test_a_type_may_be_called_as_padding_is_beside_tags(labels, tags):
    ((found, _),) = script.heads(SimpleNamespace(id2label=dict(enumerate(labels)), num_labels=len(labels)))
    assert found == tags


def test_bidirectional_is_refused_where_there_is_no_mask(tiny_models, right_context, cli, tmp_path):
    for model, layers, said in (("bert", "all", "sees both sides already"), ("llama", "9", "2 layers")):
        done = cli("ner_ft_encoder.py", "--model", tiny_models[model], "--train_file", right_context[0],
                   "--output_dir", tmp_path, "--max_length", 64, "--stride", 8, "--bidirectional", layers)  # fmt: skip
        assert done.returncode == 1 and said in done.stderr.splitlines()[-1], done.stderr


def test_a_head_for_each_type_keeps_nested_entities(tiny_models, cli, tmp_path):
    rng, texts = random.Random(2), []
    for _ in range(80):
        inner, outer = rng.choice(["renal", "skin", "joint"]), rng.choice(["failure", "rash", "pain"])
        texts.append(f"{rng.choice(['Acute', 'The', 'No'])} {inner} {outer} was seen")
    records = []
    for number, text in enumerate(texts):
        _, inner, outer = text.split()[:3]
        start = text.index(inner)
        spans = [("SIGN", start, start + len(inner + outer) + 1), ("ORGAN", start, start + len(inner))]
        if number == 0:
            spans.append(("SIGN", start, start + len(inner)))  # nested in one of its own type: can't be kept
        records.append({"id": str(number), "text": text,
                        "entities": [{"type": t, "start": a, "end": b} for t, a, b in spans]})  # fmt: skip
    write_jsonl(tmp_path / "train.jsonl", records)
    write_jsonl(tmp_path / "test.jsonl", records[1:25])
    scores, said = {}, {}
    for kind in ("flat", "per_type"):
        scores[kind], said[kind] = fit(cli, tmp_path / kind, tmp_path / "train.jsonl", tmp_path / "test.jsonl",
                                       tiny_models["bert"], "--nested", kind)  # fmt: skip
    assert scores["per_type"] > 0.98 and scores["flat"] < 0.7
    assert "81 of 161 training entities are nested" in said["flat"] and "1 of 161 training ent" in said["per_type"]
    first, second = again(cli, tmp_path, tmp_path / "per_type", tmp_path / "test.jsonl")
    assert first == second and all(len(entities) == 2 for entities in first[:10])
    flat = next(read_records(tmp_path / "per_type" / "test.pred.jsonl"))
    assert [tag[:2] for tag in flat["tags"]] == ["O", "B-", "I-", "O", "O"] and flat["entities"][0]["score"] > 0.5
    assert [entity["type"] for entity in flat["entities"]] == ["SIGN", "ORGAN"]  # the outer one first


def test_neighbours_of_the_document_are_seen_as_context(tiny_models, cli, tmp_path):
    """What a word is stands in the sentence before it."""
    rng = random.Random(3)
    for name, n in (("train", 120), ("test", 30)):
        made_up(tmp_path / f"{name}.jsonl", [[f"The {said} .", f"Seen : {{{t}:rash}}"] for t, said in
                                             rng.choices([("A", "fever"), ("B", "pain")], k=n)])  # fmt: skip
    files, scores = (tmp_path / "train.jsonl", tmp_path / "test.jsonl"), {}
    for count in (0, 1):
        scores[count], _ = fit(
            cli, tmp_path / str(count), *files, tiny_models["bert"], "--doc_context", count, epochs=25
        )
    assert scores[0] < 0.8 and scores[1] > 0.95
    first, second = again(cli, tmp_path, tmp_path / "1", files[1])
    assert first == second


def test_context_is_of_the_same_document_and_moves_no_offset():
    texts = [("a", "One. ", 0), ("a", "Two.", 5), ("b", "Three", 0), ("b", "Four", 6)]
    records = [{"doc_id": doc, "text": text, "start": start} for doc, text, start in texts]
    assert [(text, begin) for _, text, begin in script.in_context(records, 1)] == [
        ("One. Two. ", 0), ("One. Two. ", 5), ("Three Four ", 0), ("Three Four ", 6)]  # fmt: skip
    assert all(text[begin:].startswith(r["text"]) for r, text, begin in script.in_context(records, 3))
    assert [text for _, text, _ in script.in_context(records, 0)] == [r["text"] for r in records]
    for order in ([1, 0, 2, 3], [0, 2, 1, 3]):
        with pytest.raises(DataError, match="sort the file"):
            list(script.in_context([records[i] for i in order], 1))


@pytest.mark.parametrize("more", [(), ("--load_in_4bit",)], ids=["lora", "qlora"])
def test_adapters_learn_and_are_loaded_again(more, right_context, tiny_models, cli, tmp_path):
    train, test = right_context
    f1, said = fit(cli, tmp_path / "m", train, test, tiny_models["llama"], "--bidirectional", "all", "--lora_r", 16,
                   "--learning_rate", 0.005, "--validation_file", test, "--early_stopping_patience", 9, *more,
                   epochs=40)  # fmt: skip
    assert f1 > 0.9 and "training " in said, said
    saved = json.loads((tmp_path / "m" / "adapter_config.json").read_text())
    assert saved["r"] == 16 and "score" in saved["modules_to_save"] and not list((tmp_path / "m").glob("model*"))
    first, second = again(cli, tmp_path, tmp_path / "m", test)
    assert first == second


def test_a_killed_training_goes_on_and_ends_the_same(right_context, tiny_models, tmp_path):
    def command(out):
        return [sys.executable, ROOT / "ner_ft_encoder.py", "--model", tiny_models["bert"], "--train_file",
                right_context[0], "--validation_file", right_context[1], "--test_file", right_context[1],
                "--output_dir", out, "--num_train_epochs", "5", "--batch_size", "4", "--max_length", "64",
                "--stride", "8", "--learning_rate", "0.001"]  # fmt: skip

    for out in ("whole", "killed"):
        with subprocess.Popen(list(map(str, command(tmp_path / out))), stderr=subprocess.PIPE, text=True) as process:
            for line in process.stderr:
                if out == "killed" and line.startswith("epoch 3"):
                    process.kill()
        assert process.returncode == (0 if out == "whole" else -signal.SIGKILL)
    assert list((tmp_path / "killed" / "checkpoints.part").glob("checkpoint-*"))
    done = subprocess.run(list(map(str, command(tmp_path / "killed"))), capture_output=True, text=True)
    assert done.returncode == 0 and "going on from" in done.stderr and "epoch 1," not in done.stderr, done.stderr
    names = ("model.safetensors", "test.pred.jsonl")
    for name in names:
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes()
    assert not (tmp_path / "killed" / "checkpoints.part").exists()
    done = subprocess.run(list(map(str, command(tmp_path / "killed"))), capture_output=True, text=True)
    assert "trained before" in done.stderr and "epoch" not in done.stderr, done.stderr
    assert (tmp_path / "whole" / names[1]).read_bytes() == (tmp_path / "killed" / names[1]).read_bytes()


def test_a_model_is_another_one_if_base_data_or_flags_are(tiny_models, right_context, tmp_path):
    shutil.copytree(tiny_models["bert"], tmp_path / "base")

    def stamp(*more):
        return script.stamp_of(script.parse_args(["--model", str(tmp_path / "base"), "--train_file",
                                                  str(right_context[0]), "--output_dir", "o", *more]))  # fmt: skip

    first = stamp()
    assert first == stamp("--test_file", str(right_context[1]), "--output_file", "elsewhere")
    assert first != stamp("--seed", "1") and first != stamp("--validation_file", str(right_context[1]))
    os.utime(tmp_path / "base" / "model.safetensors", (1, 1))
    assert first != stamp()


def test_two_processes_or_two_steps_train_as_one_does(right_context, tiny_models, torchrun, tmp_path):
    """The same effective batch, in one step, in two accumulated ones or in two processes: the same scores."""
    config = json.loads((tiny_models["bert"] / "config.json").read_text())
    shutil.copytree(tiny_models["bert"], tmp_path / "calm")
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (tmp_path / "calm" / "config.json").write_text(json.dumps(config))
    ways = {"one": ([sys.executable], 8, 1), "two steps": ([sys.executable], 4, 2), "two processes": (torchrun, 4, 1)}
    scores = {}
    for way, (start, size, steps) in ways.items():
        command = [*start, ROOT / "ner_ft_encoder.py", "--model", tmp_path / "calm", "--train_file", right_context[0],
                   "--test_file", right_context[1], "--output_dir", tmp_path / way, "--batch_size", size,
                   "--num_train_epochs", 3, "--max_length", 64, "--stride", 8, "--learning_rate", 0.003,
                   "--training_args", f"gradient_accumulation_steps={steps}", "train_sampling_strategy=random",
                   "bf16=false"]  # fmt: skip
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        preds = list(read_records(tmp_path / way / "test.pred.jsonl"))
        scores[way] = {(r["id"], e["start"], e["end"], e["type"]): e["score"] for r in preds for e in r["entities"]}
    for way in ("two steps", "two processes"):
        assert scores[way].keys() == scores["one"].keys() and len(scores["one"]) > 50
        assert max(abs(scores[way][key] - score) for key, score in scores["one"].items()) < 0.02


@pytest.mark.parametrize("labels, said", [
    ("O B-A E-A I-A S-A S-B B-B I-B E-B", "O B-A E-A O S-B"), ("O B-A L-A I-A U-A B-B I-B", "O B-A L-A O B-B"),
    ("DIS O SITE", "O DIS DIS O SITE"), ("B I O X [CLS]", "O B I O B"), ("B-A I-A O X B-B I-B", "O B-A I-A O B-B"),
    ("O I-A I-B", "O I-A I-A O I-B"), ("I-B O B-A I-A B-B", "O B-A I-A O B-B"),
], ids=["iobes", "bilou", "types", "bare", "biobert", "io", "iob2"])  # fmt: skip
def test_models_of_other_tools_predict(labels, said):
    """Scores that are sure of their tags come out as the entities that the tags say."""
    import torch
    from transformers import BertConfig

    labels = labels.split()
    layout = script.heads(BertConfig(id2label=dict(enumerate(labels))))
    logits = torch.full((5, len(labels)), -4.0)
    for word, tag in enumerate(said.split()):
        logits[word, labels.index(tag)] = 4.0
    record = {"id": "1", "text": "an acute rash of skin"}
    found = script.decode(record, tokenize(record["text"]), script.log_probabilities(logits, layout).numpy(), layout)
    one, two = {"DIS": ("DIS", "SITE"), "B": ("_", "_")}.get(labels[0], ("A", "B"))
    assert [(e["text"], e["type"]) for e in found["entities"]] == [("acute rash", one), ("skin", two)]
    assert all(e["score"] > 0.99 for e in found["entities"])
    assert found["tags"] == ["O", f"B-{one}", f"I-{one}", "O", f"B-{two}"]


@pytest.mark.parametrize("labels", ["LABEL_0 LABEL_1", "O B_DIS I_DIS", "O DIS-B DIS-I", "A B", "O b-dis i-dis-b"])
def test_labels_that_could_be_misread_are_refused(labels):
    from transformers import BertConfig

    with pytest.raises(DataError, match="no tags of entities"):
        script.heads(BertConfig(id2label=dict(enumerate(labels.split()))))


def test_types_that_look_like_tags_are_types():
    from transformers import BertConfig

    ((tags, _),) = script.heads(BertConfig(id2label=dict(enumerate("O B-cell T-cell E-cadherin".split()))))  # noqa: SIM905
    assert set(tags) == {"O", *(f"{tag}-{type_}" for tag in "BI" for type_ in ("B-cell", "T-cell", "E-cadherin"))}


def test_a_model_that_is_read_is_not_replaced(tiny_models, right_context, cli):
    done = cli("ner_ft_encoder.py", "--model", tiny_models["bert"], "--train_file", right_context[0], "--output_dir",
               tiny_models["bert"])  # fmt: skip
    assert done.returncode == 2 and "would replace --model" in done.stderr


def test_label_smoothing_reaches_the_loss():
    import torch

    logits, labels = torch.tensor([[[2.0, 0.0, -1.0], [0.0, 1.0, 0.0]]]), torch.tensor([[[0], [-100]]])
    outputs = type("Outputs", (), {"logits": logits})
    for smoothing in (0.0, 0.5):
        want = torch.nn.functional.cross_entropy(logits[0, :1], labels[0, :1, 0], label_smoothing=smoothing)
        assert script.loss_of(outputs, labels, smoothing=smoothing) == pytest.approx(want.item(), abs=1e-6)


def test_the_loss_of_heads_is_the_sum_of_theirs():
    """Each head's mean over the words, summed; the number of labels of a whole step counts words times heads."""
    import torch

    torch.manual_seed(1)
    logits, labels = torch.randn(2, 3, 6), torch.tensor([[[0, 1], [2, 0], [-100, -100]], [[1, 1], [0, 2], [0, 0]]])
    outputs = type("Outputs", (), {"logits": logits})
    want = sum(torch.nn.functional.cross_entropy(logits[..., 3 * head : 3 * head + 3].flatten(0, 1),
                                                 labels[..., head].flatten()) for head in (0, 1))  # fmt: skip
    assert script.loss_of(outputs, labels) == pytest.approx(want.item(), abs=1e-6)
    assert script.loss_of(outputs, labels, torch.tensor(20)) == pytest.approx(want.item() / 2, abs=1e-6)


def test_what_an_adapter_trains_is_in_full_precision(tiny_models):
    import torch

    options = script.parse_args(["--model", str(tiny_models["llama"]), "--train_file", "-", "--output_dir", "-",
                                 "--lora_r", "4", "--max_length", "64"])  # fmt: skip
    model, _ = script.load(options, ["O", "B-A", "I-A"])
    model = script.adapted(model.to(torch.bfloat16), options)
    trained = {name: p.dtype for name, p in model.named_parameters() if p.requires_grad}
    assert any("score" in name for name in trained) and set(trained.values()) == {torch.float32}
    saved = model.peft_config["default"].to_dict()  # the same bytes each time: lists, where peft has sets
    assert saved["target_modules"] == sorted(saved["target_modules"]) and isinstance(saved["exclude_modules"], list)


def test_where_only_the_left_is_seen_a_word_goes_to_the_window_with_most_of_it(tiny_models):
    tokenizer, text = load_tokenizer(tiny_models["llama"]), "fever and pain " * 40
    offsets = [tokenize(text)]
    for causal in (False, True):
        made = script.windows([text], offsets, tokenizer, 40, 20, last=True, causal=causal)
        least = min(position for _, _, _, positions in made[1:] for position in positions)
        assert least >= (20 if causal else 9) and least < (22 if causal else 13)
        assert sum(len(words) for _, _, words, _ in made) == len(offsets[0])


def test_a_folder_of_another_tool_predicts(tiny_models, cli, tmp_path, right_context):
    from transformers import AutoModelForTokenClassification, AutoTokenizer

    names = {0: "O", 1: "S-A", 2: "B-A", 3: "E-A"}
    model = AutoModelForTokenClassification.from_pretrained(tiny_models["bert"], id2label=names, num_labels=4)
    model.save_pretrained(tmp_path / "foreign")
    AutoTokenizer.from_pretrained(tiny_models["bert"]).save_pretrained(tmp_path / "foreign")
    done = cli("ner_ft_encoder.py", "--model", tmp_path / "foreign", "--test_file", right_context[1], "--output_dir",
               tmp_path, "--max_length", 64, "--stride", 8)  # fmt: skip
    assert done.returncode == 0, done.stderr
    preds = list(read_records(tmp_path / "test.pred.jsonl"))
    assert len(preds) == 24 and {tag[1:] for record in preds for tag in record["tags"]} <= {"", "-A"}


def test_semantic_types_are_learned_and_groups_reported(tiny_models, cli, corpus, tmp_path):
    """UMLS: training on the 21 types of MedMentions, scores on the 15 groups of the same file that maps them."""
    folder = corpus("medmentions")
    done = cli("brat2iob.py", "--input", folder / "st21pv_sample_3docs.pubtator.txt", "--output_dir", tmp_path,
               "--map_types", folder / "SemGroups_2018.txt")  # fmt: skip
    assert done.returncode == 0, done.stderr
    (gold,) = tmp_path.glob("*.jsonl")
    types = {entity["type"] for record in read_records(gold) for entity in record["entities"]}
    assert len(types) > 8 and all(" " not in type_ and not re.fullmatch(r"T\d{3}", type_) for type_ in types)
    fit(cli, tmp_path / "m", gold, gold, tiny_models["bert"], epochs=60)
    shown = {}
    for name, more in (("types", ()), ("groups", ("--map_types", f"{folder / 'SemGroups_2018.txt'}:group"))):
        done = cli("ner_eval.py", "--gold", gold, "--pred", tmp_path / "m" / f"{gold.stem}.pred.jsonl", "--format",
                   "json", *more)  # fmt: skip
        assert done.returncode == 0, done.stderr
        shown[name] = next(iter(json.loads(done.stdout)["systems"].values()))["entity"]
    groups = set(shown["groups"]["types"])
    assert {"DISO", "CHEM"} <= groups and len(groups) < len(shown["types"]["types"])
    assert shown["groups"]["micro"]["f1"] >= shown["types"]["micro"]["f1"] > 0.3

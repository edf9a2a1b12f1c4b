"""ner_ft_encoder.py: windows that lose no word, legal tags, the best checkpoint really reloaded, predictions that fit.

.venv/bin/python -m pytest tests/test_ner_ft_encoder.py
"""

import itertools
import json
import random

import numpy as np
import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

import ner_ft_encoder as script
from utils import read_records, tokenize, write_jsonl

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


@pytest.mark.parametrize("kind", ["bert", "bpe"])
def test_every_word_is_labelled_once_on_its_first_sub_token_where_it_is_most_central(tiny_models, kind):
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
    records = [{"text": text} for text in texts]
    offsets = [tokenize(text) for text in texts]
    seen = {}
    made = script.windows(records, offsets, tokenizer, max_length=40, stride=12)
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
            first.setdefault(word, token_id)
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
        assert script.words(record, gold=True)[1] == ["B-A", "I-A", "B-A", "O", "B-B"]


def test_a_predictor_never_sees_the_cuts_of_gold():
    record = {"id": "1", "text": "HCV-infections", "entities": [{"start": 0, "end": 2, "type": "A", "text": "HC"}]}
    assert [record["text"][a:b] for a, b in script.words(record)[0]] == ["HCV", "-", "infections"]
    offsets, tags = script.words(record, gold=True)
    assert [record["text"][a:b] for a, b in offsets] == ["HC", "V", "-", "infections"] and tags[:2] == ["B-A", "O"]


def test_decode_slices_scores_and_tags_agree():
    text = "Acute renal failure and fever"
    scores = np.log(np.full((5, 5), 0.01))
    for word, (tag, probability) in enumerate([(1, 0.9), (2, 0.8), (2, 0.7), (0, 0.96), (3, 0.6)]):
        scores[word, tag] = np.log(probability)
    record = {"id": "d:0", "doc_id": "d", "start": 0, "text": text, "entities": [{"start": 0}], "other": ["x"]}
    found = script.decode(record, tokenize(text), scores, TAGS)
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
    same = [(before, after) for before, after in pairs if before["tags"] == after["tags"]]
    assert len(same) >= len(pairs) - 2  # bf16 rounds otherwise in another process, and this model has near ties
    for before, after in same:
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


def test_two_processes_train_and_score_together(cli, rare_en, tiny_models, tmp_path):
    """Under torchrun each process evaluates its share of the development records; the sum must be the whole."""
    from torch.distributed import run as torchrun

    done = cli(
        torchrun.__file__, "--nproc_per_node", 2, "--standalone", ROOT / "ner_ft_encoder.py", "--model",
        tiny_models["bert"], "--train_file", rare_en / "train.jsonl", "--validation_file", rare_en / "dev.jsonl",
        "--test_file", rare_en / "dev.jsonl", "--output_dir", tmp_path / "m", "--limit", 61, "--num_train_epochs", 16,
        "--learning_rate", 0.003, "--max_length", 64, "--stride", 16, "--batch_size", 2,
        "--early_stopping_patience", 20,
    )  # fmt: skip
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
        "not for NER": (["--test_file", good], "its labels are not IOB2 tags"),
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
        ["--test_file", "a", "--stride", 300],
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
    tags = script.label_names(script.load(options)[0])
    again, other = (script.load(options, names)[0] for names in (tags, [tag.replace("SIGN", "SINE") for tag in tags]))
    assert again.classifier.weight.equal(script.load(options)[0].classifier.weight)
    assert not again.classifier.weight.equal(other.classifier.weight)


def test_types_never_seen_in_training_are_a_warning_with_their_count(trained, cli, tmp_path):
    entity = {"start": 0, "end": 5, "type": "NEVER"}
    write_jsonl(tmp_path / "t.jsonl", [{"id": "1", "text": "fever now", "entities": [entity]}])
    done = cli("ner_ft_encoder.py", "--model", trained[0] / "model", "--test_file", tmp_path / "t.jsonl",
               "--output_dir", tmp_path, "--max_length", 64, "--stride", 16)  # fmt: skip
    assert done.returncode == 0 and "1 entities of types never seen in training: NEVER" in done.stderr

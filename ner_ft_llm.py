# /// script
# requires-python = ">=3.10"
# dependencies = ["torch>=2.6", "transformers>=5", "trl>=1", "peft>=0.17", "accelerate>=1.1", "datasets", "safetensors",
#   "bitsandbytes", "tqdm"]
# ///
"""Fine-tune a generative LLM (LoRA, QLoRA, all weights) to write the entities of records, and predict with one.

Prompts and answers are those of ner_prompt_openai.py, in five formats. A prompt is tokenized alone and the answer with
its end of turn behind it, so that prediction asks exactly what training showed; the loss is on the answer and its end.
Nothing is cut: a record that does not fit is an error. Checkpoints are chosen by strict F1 of generated development
answers. --task pretrain trains on plain text instead; without --train_file an untouched or adapted model predicts.

    python ner_ft_llm.py --model M --train_file out/rare_en/train.jsonl --validation_file out/rare_en/dev.jsonl \\
        --test_file out/rare_en/test.jsonl --output_dir out/llm --load_in_4bit --lora_r 64 --lora_alpha 128
    python ner_ft_llm.py --adapter out/llm --test_file new.jsonl --output_dir out/new          # as it was trained
    python ner_ft_llm.py --task pretrain --model M --train_file notes.txt --output_dir out/base

Reads   records as JSONL or IOB (.gz too) with their `shots` and `passages`; for pretrain also .txt, one text a file
Writes  OUTPUT_DIR: adapter or model, tokenizer, run.json; STEM.pred.jsonl (or OUTPUT_FILE) with `answer`, `status`,
        `dropped`, `usage`, `seconds`, as ner_prompt_openai.py; STEM.pred.jsonl.answers.jsonl, the raw answers.
        Killed at any time, the same command goes on: from the last epoch, or the last answer
Needs   a model with a fast tokenizer as a hub id or folder; for --load_in_4bit bitsandbytes. A GPU for real sizes
Source  Lu et al. 2024 (tner), Obeidat et al. 2025, instruct-NER, the PharmaCoNER study; QLoRA (Dettmers et al. 2023)
Differs loss: answer and end of turn (tner, Obeidat: prompt and padding, too); checkpoint: strict F1 of answers
        (loss, or the last); decoding: greedy (sampling or 3-8 beams); too long: an error (cut at 2048 or 512); LoRA on
        all linear layers but the head (q,v; or with lm_head, which SFTTrainer refuses). No seq2seq models: T5 needs
        its own collator, trainer and decoding, some 90 lines more
"""

import argparse
import hashlib
import json
import logging
import math
import os
import random
import re
import shutil
import sys
import time
import warnings
from collections import Counter, deque, namedtuple
from contextlib import suppress
from functools import cache, partial
from itertools import chain, count, groupby, takewhile
from pathlib import Path

from utils import (
    FORMATS,
    INSTRUCTIONS,
    STATUSES,
    DataError,
    answer_graph,
    answered,
    check_predictions,
    clear_model,
    fragments,
    key_value,
    labels_of,
    last_checkpoint,
    lock,
    log,
    model_state,
    parse_answer,
    prediction_path,
    read_lines,
    read_records,
    read_sidecar,
    render_answer,
    render_messages,
    run,
    sha256,
    to_json,
    warn_unseen,
    without_gold,
    write_jsonl,
    write_sidecar,
)

PROMPT = {"format": "json", "one_type_per_prompt": False, "all_types": False, "language": "en"}  # kept with the model
# not in the stamp of a trained model: what is there by its content, and what concerns predictions alone
APART = ("train_file", "validation_file", "labels_file", "instruction_file", "test_file", "output_dir", "output_file",
         "adapter", "merge_to", "max_new_tokens", "constrain", "trust_remote_code")  # fmt: skip
CHECKPOINTS = "checkpoints.part"  # the folder in OUTPUT_DIR
PACKAGES = ("torch", "transformers", "trl", "peft", "bitsandbytes")
BUDGET = 32_768  # tokens of a batch of prompts and answers: 4 GB of keys and values of an 8B model
ANSWER = 256  # tokens of an answer where nothing is known of it
HISTORY = {"loss": "loss", "learning_rate": "rate", "eval_f1": "f1", "eval_loss": "dev_loss",
           "eval_perplexity": "perplexity"}  # fmt: skip
PLAIN = (  # a chat template for models that have none
    "{{ bos_token or '' }}{% for message in messages %}{% if message['role'] == 'assistant' %}{{ message['content'] }}"
    "{{ eos_token }}{{ '\n\n' }}{% elif message['role'] == 'user' %}{{ '### Text\n' + message['content'] + "
    "'\n\n### Entities\n' }}{% else %}{{ message['content'] + '\n\n' }}{% endif %}{% endfor %}"
)
Ask = namedtuple("Ask", "record types prompt room")  # tokens of the prompt; how many tokens the answer may have


# ---------------------------------------------------------------------------- what is asked, and what is the answer


def records_of(paths, limit):
    """Yield the records of several files."""
    return chain.from_iterable(read_records(path, limit) for path in paths)


def asks_of(records, labels, chat, args, longest=None):
    """Yield an Ask for each question about records, one or one for each type; DataError where no answer has a place.

    An answer may have one and a half of the `longest` in training, or what the text itself needs. One of iob, from a
    model that was trained to it, has no more than with a tag at each token: short texts make few, large batches so
    (JNLPBA: 76, not 249).
    """
    for record in records:
        for types in [[type_] for type_ in labels] if args.one_type_per_prompt else [list(labels)]:
            shots, passages = record.get("shots", ()), record.get("passages", ())
            prompt = chat.prompt(render_messages(record, types, args.format, shots, passages, labels, args.instruction,
                                                 args.language, args.all_types))  # fmt: skip
            if len(prompt) >= chat.positions:
                raise DataError(f"record {record['id']!r}: its prompt has {len(prompt):,} tokens, the model reads "
                                f"{chat.positions:,}; cut texts (brat2iob.py --max_tokens) or shots")  # fmt: skip
            room = int(1.5 * (longest or ANSWER)) + 16
            if args.format in ("inline", "iob"):
                bare = render_answer(record | {"entities": []}, types, args.format)
                room = max(room, 2 * len(chat.answer(bare)) + 32)
                if longest and args.format == "iob":
                    full = bare.replace("\tO", f"\t{widest(tuple(types), chat)}")
                    room = min(room, len(chat.answer(full)) + 32)
            yield Ask(record, types, prompt, args.max_new_tokens or room)


@cache
def widest(types, chat):
    """The tag of iob that has most tokens: it may be an I-, and of a type with few letters."""
    tags = [f"{prefix}-{type_}" for type_ in types for prefix in "BI"]
    return max(tags, key=lambda tag: len(chat.answer(f"\t{tag}")))


class Chat:
    """A model's way from messages to tokens and back, the same in training and prediction."""

    def __init__(self, tokenizer, model=None):
        if not tokenizer.eos_token:
            raise DataError("the tokenizer has no end-of-sequence token; no model of it would stop")
        tokenizer.chat_template = tokenizer.chat_template or PLAIN
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
        tokenizer.padding_side = "left"
        self.tokenizer, self.bos = tokenizer, tokenizer.bos_token_id
        self.adds_bos = self.bos is not None and tokenizer("x")["input_ids"][:1] == [self.bos]
        said = {"system": "SYSTEM", "user": "USER", "assistant": "ANSWER"}
        probe = [{"role": role, "content": content} for role, content in said.items()]
        whole = self.rendered(probe)
        self.system = "SYSTEM" in whole  # else, as in Mistral and Gemma, it goes before the text
        whole = whole if self.system else self.rendered(probe[1:])
        if "USER" not in whole or "ANSWER" not in whole:
            raise DataError("the model's chat template does not show a user's message and the answer; mend it")
        after = tokenizer(whole.rpartition("ANSWER")[2], add_special_tokens=False)["input_ids"]
        # the tokens that no text is made of, and the one of them that ends an answer
        self.control = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
        self.end = next((number for number in after if number in self.control), tokenizer.eos_token_id)
        stops = model.generation_config.eos_token_id if model else None
        stops = stops if isinstance(stops, list) else [stops]
        self.ends = sorted({self.end, tokenizer.eos_token_id, *stops} - {None})
        config = model.config.get_text_config() if model else None
        self.positions = getattr(config, "max_position_embeddings", None) or sys.maxsize

    def rendered(self, messages):
        """The text of a conversation; none where the template refuses it, or is broken."""
        try:
            return self.tokenizer.apply_chat_template(messages, tokenize=False)
        except Exception:  # a template raises what it likes
            return ""

    def prompt(self, messages):
        """The tokens of a prompt, with one BOS where the model wants it; control tokens in texts are plain text."""
        if not self.system and messages[0]["role"] == "system":
            content = f"{messages[0]['content']}\n\n{messages[1]['content']}"
            messages = [messages[1] | {"content": content}, *messages[2:]]
        ids = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True,
                                                 sanitize_control_tokens=True)["input_ids"]  # fmt: skip
        return [self.bos, *ids] if self.adds_bos and ids[:1] != [self.bos] else list(ids)

    def answer(self, text):
        """The tokens of an answer, and its end."""
        return [*self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"], self.end]

    def read(self, ids):
        """(text of the tokens before the end, how many tokens, whether there is an end)."""
        kept = list(takewhile(lambda each: each not in self.ends, ids))
        text = self.tokenizer.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        ended = len(kept) < len(ids)
        return text, len(kept) + ended, ended


def examples_of(records, labels, chat, args):
    """Return [{"input_ids", "labels"}]: prompt without, answer with loss; DataError where one is too long."""
    examples, lengths, shown = [], [], 0
    for ask in asks_of(records, labels, chat, args):
        text = render_answer(ask.record, ask.types, args.format, args.all_types)
        answer, found = chat.answer(text), parse_answer(text, ask.record, ask.types, args.format)["entities"]
        shown += len(spans_of(ask.record["entities"]) & spans_of(found))
        examples.append({"input_ids": ask.prompt + answer, "labels": [-100] * len(ask.prompt) + answer})
        lengths.append((len(ask.prompt + answer), ask.record["id"]))
    lengths.sort()
    (longest, name), most = lengths[-1], min(args.max_length or chat.positions, chat.positions)
    if longest > most:
        raise DataError(f"{args.train_file[0]}: record {name!r} takes {longest:,} tokens, more than --max_length "
                        f"{most}; --max_length {longest} would do, where the model reads as many, or shorter texts "
                        "(brat2iob.py --max_tokens)")  # fmt: skip
    args.max_length = args.max_length or longest
    if not shown:
        raise DataError(f"{args.train_file[0]}: no mention of the types {', '.join(labels)}; nothing to learn")
    gold = [span for record in records for span in spans_of(record["entities"])]
    if shown < len(gold):
        other = sum(type_ not in labels for type_, *_ in gold)
        say(f"warning: {shown:,} of {len(gold):,} mentions come back from {args.format} answers; {other:,} are of "
            "other types, the others nested, crossing, discontinuous or repeated")  # fmt: skip
    half, most = (lengths[int(len(lengths) * share)][0] for share in (0.5, 0.95))
    say(f"{len(records):,} records in {len(examples):,} examples; tokens: p50 {half:,}, p95 {most:,}, max {longest:,}")
    return examples


def spans_of(entities):
    """What must agree with gold: type and all fragments."""
    return {(entity["type"], *map(tuple, fragments(entity))) for entity in entities}


def show_example(labels, chat, args):
    """Print an example as training has it, of no patient's text; what bears no loss in [[...]]."""
    example = {"start": 3, "end": 10, "type": next(iter(labels)), "text": "example"}
    ask = next(asks_of([{"id": "example", "text": "An example.", "entities": [example]}], labels, chat, args))
    answer = chat.answer(render_answer(ask.record, ask.types, args.format, args.all_types))
    say(f"[[{chat.tokenizer.decode(ask.prompt)}]]{chat.tokenizer.decode(answer)}")


# ---------------------------------------------------------------------------- model and processes


def has_bf16():
    """Whether this machine has bf16 units; without them autocast to bf16 costs time on a CPU."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    known = getattr(torch.cpu, "get_capabilities", dict)()  # torch 2.7 and later
    return bool(known.get("avx512_bf16") or known.get("amx_bf16"))


@cache
def here():
    """This process among those that torchrun or accelerate launched."""
    import torch
    from accelerate import PartialState

    return PartialState(cpu=not torch.cuda.is_available())


def say(fact):
    """Log a fact once, however many processes know it."""
    if here().is_main_process:
        log(fact)


def shares(items):
    """Yield (item, whether it is this process's own): all make the same number of turns, as sharded models need it."""
    rank, world = here().process_index, here().num_processes
    for turn in range(0, len(items), world):
        yield items[min(turn + rank, len(items) - 1)], turn + rank < len(items)


def load(args, adapter=None, quantize=False, training=False):
    """Return (model, chat): the base, in 4 bits where asked (QLoRA's nf4, double), with an adapter where given.

    Weights that are trained are float32, all others the GPU's half precision. It generates greedily: no temperatures
    and penalties of the base's maker count, here or where what is trained or merged is served.
    """
    import torch
    from safetensors import safe_open
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, GenerationConfig

    cuda = torch.cuda.is_available()
    half = torch.bfloat16 if has_bf16() else torch.float16 if cuda else torch.float32
    options = {"device_map": {"": torch.cuda.current_device()}} if cuda else {}
    options["dtype"] = half if cuda and not training else torch.float32
    if quantize:
        try:
            import bitsandbytes  # noqa: F401 (transformers says less when it is missing)
        except ImportError:
            raise DataError("--load_in_4bit: the package bitsandbytes is not installed; pip install it") from None
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=half
        )
    trust = {"trust_remote_code": args.trust_remote_code}
    try:
        config = AutoConfig.from_pretrained(args.model, **trust)
        tokenizer = AutoTokenizer.from_pretrained(adapter or args.model, **trust)
        if config.is_encoder_decoder or not tokenizer.is_fast:
            raise ValueError("a decoder with a fast tokenizer is wanted, no seq2seq model")
        model = AutoModelForCausalLM.from_pretrained(args.model, **options, **trust)
        chat = Chat(tokenizer, model)
        tokens = {"bos_token_id": chat.bos, "eos_token_id": chat.ends, "pad_token_id": tokenizer.pad_token_id}
        model.generation_config = GenerationConfig(do_sample=False, use_cache=True, **tokens)
        if adapter:
            from peft import PeftModel, get_peft_model_state_dict

            model = PeftModel.from_pretrained(model, adapter)
            with safe_open(os.path.join(adapter, "adapter_model.safetensors"), "numpy") as file:
                if set(file.keys()) != set(get_peft_model_state_dict(model)):
                    raise ValueError(f"it was trained on {model.peft_config['default'].base_model_name_or_path}")
    except Exception as error:  # a folder of anything raises anything
        what = f"--adapter {adapter} on {args.model}" if adapter else f"--model {args.model}"
        raise DataError(f"{what}: can't be loaded: {' '.join(str(error).split())[:200]}") from None
    return model, chat


# ---------------------------------------------------------------------------- training


def training_arguments(args):
    """trl's SFTConfig; --training_args come last and win, but over what is this script's business."""
    import torch
    from trl import SFTConfig

    cuda, dev = torch.cuda.is_available(), bool(args.validation_file)
    ours = {
        "output_dir": os.path.join(args.output_dir, CHECKPOINTS), "resume_from_checkpoint": None, "seed": args.seed,
        "learning_rate": args.learning_rate, "num_train_epochs": args.num_train_epochs,
        "per_device_train_batch_size": args.batch_size, "max_length": args.max_length, "load_best_model_at_end": dev,
        "dataset_kwargs": {"skip_prepare_dataset": args.task == "sft"},
    }  # fmt: skip
    usual = {
        "lr_scheduler_type": "cosine", "warmup_steps": 0.1, "logging_steps": 0.02, "report_to": "none",
        "bf16": has_bf16(), "fp16": cuda and not has_bf16(), "use_cpu": not cuda, "dataloader_pin_memory": cuda,
        "activation_checkpointing": cuda, "restore_callback_states_from_checkpoint": True,
        "eval_strategy": "epoch" if dev else "no", "save_strategy": "epoch", "save_total_limit": 2,
        "metric_for_best_model": "loss" if args.task == "pretrain" else "f1",
        "disable_tqdm": not sys.stderr.isatty(), "ddp_find_unused_parameters": False,
    }  # fmt: skip
    packing = {"packing": True, "packing_strategy": "bfd_split"}
    usual |= packing if args.task == "pretrain" else {"train_sampling_strategy": "group_by_length"}
    try:
        for key, value in args.training_args:
            if key in ours:
                raise ValueError(f"{key}: has a flag of its own, or is this script's business")
            known = usual.get(key, getattr(SFTConfig, key, None))
            if isinstance(known, (int, float)) and not isinstance(value, (int, float)):
                raise ValueError(f"{key}={value}: a number, true or false is wanted")
        made = SFTConfig(**usual | dict(args.training_args) | ours)
        made._n_gpu = min(1, made.n_gpu)  # several GPUs are for torchrun, not for DataParallel
        return made
    except Exception as error:  # wrong kinds of values fail where they are first used
        log(f"error: --training_args {str(error).splitlines()[0]}")
        raise SystemExit(2) from None


def answers_to_learn(args, labels, chat):
    """Return (examples, score(model), tokens of the longest answer) of --task sft."""
    dev = [record for path in args.validation_file
           for record in warn_unseen(path, read_records(path, args.limit), labels, say)]  # fmt: skip
    chosen = random.Random(args.seed).sample(range(len(dev)), min(args.eval_samples, len(dev)))
    dev = [dev[i] for i in sorted(chosen)]
    if dev and not any(record["entities"] for record in dev):
        raise DataError(f"{args.validation_file[0]}: no entity in the {len(dev):,} records to answer; there is nothing "
                        "to choose a checkpoint by")  # fmt: skip
    show_example(labels, chat, args)
    examples = examples_of(list(records_of(args.train_file, args.limit)), labels, chat, args)
    longest = max(sum(label != -100 for label in example["labels"]) for example in examples)
    tests = records_of(args.test_file, args.limit)
    deque(asks_of(tests, labels, chat, args, longest), maxlen=0)  # an error in them is worth knowing before training
    asks = list(asks_of(dev, labels, chat, args, longest))
    return examples, partial(answers_f1, chat=chat, asks=asks, args=args), longest


def texts_to_learn(args, labels, chat):
    """Return (examples, score(model), None) of --task pretrain."""
    texts, held_out = (list(texts_of(paths, args.limit)) for paths in (args.train_file, args.validation_file))
    for paths, found in ((args.train_file, texts), (args.validation_file, held_out)):
        if paths and not any(map(str.strip, found)):
            raise DataError(f"{paths[0]}: no text; give records or .txt files that hold some")
    args.max_length = args.max_length or min(2048, chat.positions)
    if args.max_length > chat.positions:
        raise DataError(f"--max_length {args.max_length}: {args.model} reads {chat.positions:,} tokens")
    held_out = [tokens_of(text, chat) for text in held_out]
    return [{"text": text} for text in texts], partial(held_out_loss, texts=held_out, length=args.max_length), None


def trainer_of(settings, model, chat, examples, score, args):
    """trl's trainer of examples, which chooses checkpoints, and the moment to stop, by score(model)."""
    import transformers
    from datasets import Dataset, disable_progress_bars
    from peft import LoraConfig
    from trl import SFTTrainer

    disable_progress_bars()
    data, dev = Dataset.from_list(examples), settings.load_best_model_at_end
    targets = args.lora_target_modules if args.lora_target_modules != ["all-linear"] else "all-linear"
    adapter = LoraConfig(r=args.lora_r, lora_alpha=args.lora_alpha or 2 * args.lora_r, lora_dropout=args.lora_dropout,
                         target_modules=targets, task_type="CAUSAL_LM") if args.lora_r else None  # fmt: skip
    patience = [transformers.EarlyStoppingCallback(args.early_stopping_patience)] if dev else []
    try:
        trainer = SFTTrainer(model, settings, train_dataset=data, eval_dataset=data.select([0]) if dev else None,
                             processing_class=chat.tokenizer, peft_config=adapter, callbacks=patience)  # fmt: skip
    except Exception as error:  # no such layer, an impossible combination of settings
        raise DataError(f"{args.model}: can't be trained so: {' '.join(str(error).split())[:200]}") from None
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.evaluate = partial(evaluate, trainer, score)
    return trainer


def train(args, labels, stamp):
    """Train, and save adapter or model with tokenizer in OUTPUT_DIR; return facts for its run.json."""
    import torch
    import transformers
    from accelerate.utils import broadcast_object_list

    transformers.set_seed(args.seed)
    settings, sft = training_arguments(args), args.task == "sft"
    model, chat = load(args, quantize=args.load_in_4bit, training=not args.lora_r)
    examples, score, longest = (answers_to_learn if sft else texts_to_learn)(args, labels, chat)
    settings.max_length = args.max_length  # as the examples have it
    resume = [last_checkpoint(settings.output_dir, stamp) if here().is_main_process else None]
    trainer = trainer_of(settings, model, chat, examples, score, args)
    given = sum(len(each["input_ids"] if sft else tokens_of(each["text"], chat)) for each in examples)
    if (kept := sum(map(len, trainer.train_dataset["input_ids"]))) != given:
        say(f"warning: trl trains on {kept:,} of {given:,} tokens (packing_strategy={settings.packing_strategy})")
    weights, trained = model.num_parameters(), model.num_parameters(only_trainable=True)
    kind = "bf16" if settings.bf16 else "fp16" if settings.fp16 else "fp32"
    say(f"training {trained:,} of {weights:,} weights, {kind} on {settings.device.type}")
    try:
        trainer.train(resume_from_checkpoint=broadcast_object_list(resume)[0])
    except torch.cuda.OutOfMemoryError:
        raise DataError(f"the GPU's memory does not hold a step of --batch_size {args.batch_size}; a smaller one with "
                        "--training_args gradient_accumulation_steps=N, or --load_in_4bit") from None  # fmt: skip
    if here().is_main_process:
        clear_model(args.output_dir)  # what another run left there would be taken for this one's
    here().wait_for_everyone()
    trainer.model.create_or_update_model_card = lambda *_: None  # a README.md in OUTPUT_DIR is the user's
    trainer.save_model(args.output_dir)
    if settings.load_best_model_at_end and not trainer.state.best_metric:
        say("warning: no development entity was found at any time; train longer, or at another rate")
    history = [{"step": entry["step"], **{new: entry[old] for old, new in HISTORY.items() if old in entry}}
               for entry in trainer.state.log_history if HISTORY.keys() & entry.keys()]  # fmt: skip
    counts = {"train": len(examples), "tokens": kept, "weights": weights, "trained": trained}
    return {"history": history, "counts": counts, "longest_answer": longest}


def evaluate(trainer, score, **_):
    """In place of trainer.evaluate: score(model) -> {"eval_...": value} chooses checkpoints, and the moment to stop."""
    metrics = score(trainer.model)
    trainer.log(dict(metrics))
    told = [f"loss {entry['loss']:.4f}" for entry in trainer.state.log_history if "loss" in entry][-1:]
    told += [f"development {name[5:]} {value:.4f}" for name, value in metrics.items()]
    say(f"epoch {trainer.state.epoch:g}, step {trainer.state.global_step}: {', '.join(told)}")
    trainer.control = trainer.callback_handler.on_evaluate(trainer.args, trainer.state, trainer.control, metrics)
    return metrics


def answers_f1(model, chat, asks, args):
    """Strict F1 of generated answers: type and all fragments must agree; each process answers its share."""
    from accelerate.utils import gather_object

    right = pred = 0
    gold = sum(entity["type"] in ask.types for ask in asks for entity in ask.record["entities"])
    for number, (ids, _) in generate(model, chat, asks, args):
        record, types = asks[number][:2]
        found = spans_of(parse_answer(chat.read(ids)[0], record, types, args.format)["entities"])
        right += len(spans_of(record["entities"]) & found)
        pred += len(found)
    right, pred = sum(gather_object([right])), sum(gather_object([pred]))
    return {"eval_f1": 2 * right / max(1, pred + gold)}


# ---------------------------------------------------------------------------- continual pre-training


def text_of(path):
    return "\n".join(line for _, line in read_lines(path))


def texts_of(paths, limit):
    """Yield the texts of records, and of .txt files one each."""
    for path in paths:
        if path.endswith((".txt", ".txt.gz")):
            yield text_of(path)
        else:
            yield from (record["text"] for record in read_records(path, limit))


def tokens_of(text, chat):
    """A text's tokens as trl makes them for training: with the end behind."""
    return [*chat.tokenizer(text)["input_ids"], chat.tokenizer.eos_token_id]


def held_out_loss(model, texts, length):
    """Mean loss per token, and its exponential: each token but the first of a text is predicted once."""
    import torch
    from accelerate.utils import gather_object

    parts = [ids[start : start + length] for ids in texts for start in range(0, len(ids) - 1, length - 1)]
    model.eval()
    total = tokens = 0.0
    for part, own in shares(parts):
        ids = torch.tensor([part], device=model.device)
        with torch.no_grad():
            logits = model(input_ids=ids).logits[0, :-1].float()
        if own:
            total += torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum").item()
            tokens += len(part) - 1
    loss = sum(gather_object([total])) / max(1, sum(gather_object([tokens])))
    return {"eval_loss": loss, "eval_perplexity": math.exp(min(loss, 700))}


# ---------------------------------------------------------------------------- generation


def generate(model, chat, asks, args, done=frozenset()):
    """Yield (number, (tokens of the answer, seconds)) of asks but those `done`, greedily, batch by batch.

    A batch holds BUDGET tokens with its padding, the longest asks first. The batches are the same whatever is done, so
    that answers are, too; each process takes its share of them.
    """
    model.eval()
    batches, width, room = [], 0, 0
    for i in sorted(range(len(asks)), key=lambda i: (-len(asks[i].prompt) - asks[i].room, i)):
        width, room = max(width, len(asks[i].prompt)), max(room, asks[i].room)
        if not batches or (len(batches[-1]) + 1) * (width + room) > BUDGET:
            batches.append([])
            width, room = len(asks[i].prompt), asks[i].room
        batches[-1].append(i)
    for batch, own in shares([batch for batch in batches if not done.issuperset(batch)]):
        started = time.monotonic()
        answers = generate_batch(model, chat, [asks[i] for i in batch], args)
        seconds = (time.monotonic() - started) / len(batch)
        if own:
            yield from ((number, (ids, seconds)) for number, ids in zip(batch, answers, strict=True))


def generate_batch(model, chat, asks, args):
    """The tokens of the answers of one batch, left padded; halved where memory does not do."""
    import torch

    given = chat.tokenizer.pad({"input_ids": [ask.prompt for ask in asks]}, return_tensors="pt").to(model.device)
    width, new = given["input_ids"].shape[1], max(ask.room for ask in asks)
    walks = [copying(chat, ask.record, ask.types, new, args.format) for ask in asks] if args.constrain else []
    new = chat.positions - width if walks else min(new, chat.positions - width)  # they come to their end

    def only(row, ids):
        return walks[row].send(int(ids[-1]) if len(ids) > width else None)

    try:
        found = model.generate(**given, max_new_tokens=new, prefix_allowed_tokens_fn=only if walks else None)
        return found[:, width:].tolist()
    except torch.cuda.OutOfMemoryError:
        if len(asks) == 1:
            raise DataError("the GPU's memory does not hold one answer; --load_in_4bit, or a smaller model") from None
    torch.cuda.empty_cache()
    half = len(asks) // 2
    return [each for part in (asks[:half], asks[half:]) for each in generate_batch(model, chat, part, args)]


# ---------------------------------------------------------------------------- answers that can only copy


def copying(chat, record, types, room, format):
    """For inline and iob: yield the tokens that may follow, so that an answer copies its text and marks known types.

    What was chosen is sent back. An answer is a path in utils.answer_graph; a state is the literals under way, as
    [(their rest, the node behind)], and whether the answer may end. Tokens are found by walking a trie of the
    vocabulary's bytes along it, so they may run over the ends of literals, as the tokens of training do. After `room`
    tokens nothing is opened any more, so that an answer comes to its end; so it does at a letter that the vocabulary
    can't write. It takes 0.2 ms a token and answer.
    """
    arcs, (spelled, trie) = answer_graph(record, types, format), vocabulary(chat)

    def step(state, byte, opening):
        pairs, end = [], False
        for literal, node in state[0]:
            if literal[0] == byte and len(literal) > 1:
                pairs.append((literal[1:], node))
            elif literal[0] == byte:
                following, end = arcs(node, opening)
                pairs += following
        return pairs, end

    def allowed(state, opening):
        found, todo = list(chat.ends) if state[1] else [], [(trie, state)]
        while todo:
            branch, state = todo.pop()
            for byte in {literal[0] for literal, _ in state[0]} & branch.keys():
                found += branch[byte].get(None, ())
                todo.append((branch[byte], step(state, byte, opening)))
        return found or chat.ends

    pairs, end = arcs(None, True)
    state = [*pairs, *((b" " + literal, node) for literal, node in pairs)], end
    for written in count():
        token = yield allowed(state, written < room)
        state = ([], True) if token in chat.ends else state
        for byte in spelled[token]:
            state = step(state, byte, written < room)


@cache
def vocabulary(chat):
    """({token: its bytes}, a trie {byte: trie, None: [tokens]} of them); control tokens have none."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = {letter: byte for byte, letter in bytes_to_unicode().items()}  # how byte-level BPE writes bytes
    byte_level = "ByteLevel" in repr(chat.tokenizer.backend_tokenizer.decoder)
    spelled, trie = {}, {}
    for text, token in chat.tokenizer.get_vocab().items():
        if token in chat.control:
            spelled[token] = b""
        elif byte_level and token not in chat.tokenizer.added_tokens_decoder:
            spelled[token] = bytes(letters[letter] for letter in text)
        elif re.fullmatch(r"<0x[0-9A-F]{2}>", text):
            spelled[token] = bytes.fromhex(text[3:5])
        else:
            spelled[token] = text.replace("\u2581", " ").encode("utf-8")
        node = trie
        for byte in spelled[token]:
            node = node.setdefault(byte, {})
        node.setdefault(None, []).append(token)
    return spelled, trie


# ---------------------------------------------------------------------------- prediction


def predict_file(path, model, chat, labels, stored, identity, args):
    """Answer a test file, going on where a killed run was, and write its predictions."""
    begun, output, found, used = time.time(), prediction_path(args, path), Counter(), Counter()
    gold = warn_unseen(path, read_records(path, args.limit), labels, say)
    records = (without_gold(record, "shots", "passages") for record in gold)
    asks = list(asks_of(records, labels, chat, args, stored.get("longest_answer")))
    lines, before = answer(asks, model, chat, identity, f"{output}.answers.jsonl", args)
    begun -= before  # so that a killed run's time is counted, too
    if not here().is_main_process:
        return

    def predictions():
        for _, group in groupby(zip(asks, lines, strict=True), key=lambda pair: pair[0].record["id"]):
            pred = prediction(list(group), args)
            found.update({"records": 1, "entities": len(pred["entities"]), pred["status"]: 1})
            found.update(f"dropped: {item['reason']}" for item in pred["dropped"])
            used.update(pred["usage"])
            yield pred

    write_jsonl(output, predictions())
    write_sidecar(output, args, [path], begun, PACKAGES, counts=found, tokens=used, history=stored.get("history"),
                  model=args.adapter or (args.output_dir if args.train_file else args.model))  # fmt: skip
    told = ", ".join(f"{n:,} {name}" for name, n in found.items() if name not in ("records", "entities"))
    log(f"{path}: {found['records']:,} records ({told}), {found['entities']:,} entities; {used['completion_tokens']:,} "
        f"tokens written in {time.time() - begun:.1f} s\n  -> {output}")  # fmt: skip


def answer(asks, model, chat, identity, path, args):
    """Return the lines of the log of raw answers, one for each ask, and the seconds that those there before took.

    What is missing is asked and appended.
    Each process appends its share; the first one holds a lock, so that no second run writes there.
    """
    from tqdm import tqdm

    asked = [to_json([identity, ask.prompt, ask.room, args.constrain and args.format]).encode() for ask in asks]
    keys = [hashlib.sha256(each).hexdigest()[:32] for each in asked]
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab", buffering=0) as file, tqdm(total=len(asks), unit="answer", disable=None) as bar:
        if here().is_main_process:
            lock(file, path)
            file.truncate(Path(path).read_bytes().rfind(b"\n") + 1)  # without the line that a kill cut
        here().wait_for_everyone()
        lines = read_answers(path)
        here().wait_for_everyone()  # until nobody reads any more
        done = {number for number, key in enumerate(keys) if key in lines}
        bar.update(len(done))
        for number, (ids, seconds) in generate(model, chat, asks, args, done):
            text, tokens, ended = chat.read(ids)
            line = {"request": keys[number], "id": asks[number].record["id"], "answer": text, "ended": ended,
                    "usage": {"prompt_tokens": len(asks[number].prompt), "completion_tokens": tokens},
                    "seconds": round(seconds, 4)}  # fmt: skip
            file.write(to_json(line).encode("utf-8") + b"\n")
            bar.update()
        here().wait_for_everyone()
    lines = read_answers(path)
    before = sum(lines[keys[number]].get("seconds", 0) for number in done)
    return [lines[key] for key in keys], before / here().num_processes


def read_answers(path):
    """{request: line} of the log of raw answers, without what is no such line."""
    lines = {}
    with open(path, "rb") as file:
        for raw in file:
            with suppress(ValueError, TypeError, KeyError):
                line = json.loads(raw)
                lines[line["request"]] = line
    return lines


def prediction(parts, args):
    """The prediction record of a record's answers [(ask, line of the log)]."""
    record, parsed = parts[0][0].record, []
    for ask, line in parts:
        each = parse_answer(line["answer"], record, ask.types, args.format, shots=record.get("shots", ()))
        parsed.append(each if line["ended"] else each | {"status": "truncated"})
    entities, dropped = (list(chain.from_iterable(each[name] for each in parsed)) for name in ("entities", "dropped"))
    status = max((each["status"] for each in parsed), key=STATUSES.index)
    return answered(record, entities, status, dropped, [line for _, line in parts])


# ---------------------------------------------------------------------------- command line


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument_group("data").add_argument
    add("--task", choices=("sft", "pretrain"), default="sft", help="answers, or plain text (default: %(default)s)")
    add("--train_file", nargs="+", default=[], metavar="FILE", help="records, or texts; without it: predict only")
    add("--validation_file", nargs="+", default=[], metavar="FILE", help="chooses the checkpoint, and when to stop")
    add("--test_file", nargs="+", default=[], metavar="FILE", help="records to predict")
    add("--output_dir", metavar="DIR", help="the model and STEM.pred.jsonl go here")
    add("--output_file", metavar="FILE", help="the predictions instead, for one test file")
    add("--limit", type=int, metavar="N", help="only the first N records of each file")
    add = parser.add_argument_group("prompt (default: as the model was trained, else json and en)").add_argument
    add("--format", choices=FORMATS, help="of the answers")
    add("--labels_file", metavar="JSON", help="type to description; its types are asked for")
    add("--instruction_file", metavar="FILE", help="in place of the task and its format")
    add("--language", choices=tuple(INSTRUCTIONS), help="of the task")
    add("--one_type_per_prompt", action="store_true", default=None, help="a prompt for each type")
    add("--all_types", action="store_true", default=None, help="answers name types without a mention, too")
    add = parser.add_argument_group("model").add_argument
    add("--model", metavar="NAME", help="a hub id or a folder (default: the base of --adapter)")
    add("--adapter", metavar="DIR", help="a LoRA adapter to predict with, or to merge")
    add("--load_in_4bit", action="store_true", default=None, help="QLoRA: the base in nf4, quantized twice")
    add("--lora_r", type=int, metavar="N", help="0: train all weights (default: 16; pretrain: 0)")
    add("--lora_alpha", type=float, metavar="X", help="default: twice --lora_r")
    add("--lora_dropout", type=float, default=0.05, metavar="X", help="default: %(default)s")
    add("--lora_target_modules", nargs="+", default=["all-linear"], metavar="NAME", help="default: all-linear")
    add("--trust_remote_code", action="store_true", help="run code that comes with the model")
    add("--merge_to", metavar="DIR", help="write base and adapter as one model, for servers")
    add = parser.add_argument_group("training").add_argument
    add("--learning_rate", type=float, default=2e-4, help="default: %(default)s")
    add("--num_train_epochs", type=float, default=3, help="default: %(default)s")
    add("--batch_size", type=int, default=8, metavar="N", help="examples a step and process (default: %(default)s)")
    add("--max_length", type=int, metavar="N", help="tokens of an example (default: the longest; pretrain: 2048)")
    add("--eval_samples", type=int, default=200, metavar="N",
        help="development records to answer after each epoch (default: %(default)s)")  # fmt: skip
    add("--early_stopping_patience", type=int, default=3, metavar="N",
        help="stop after N epochs without a better score (default: %(default)s)")  # fmt: skip
    add("--seed", type=int, default=42, help="default: %(default)s")
    add("--training_args", nargs="+", type=key_value, default=[], metavar="KEY=VALUE",
        help="any other setting of trl.SFTConfig, as optim=paged_adamw_8bit")  # fmt: skip
    add = parser.add_argument_group("prediction").add_argument
    add("--max_new_tokens", type=int, metavar="N", help="of an answer (default: by training, and by the text)")
    add("--constrain", action="store_true", help="inline, iob: answers can only copy the text and mark known types")
    args = parser.parse_args(argv)
    check_args(args, parser)
    return args


def check_args(args, parser):
    """Refuse, as usage errors, numbers that mean nothing and flags that don't go together."""
    for name, least in {"limit": 1, "lora_r": 0, "batch_size": 1, "max_length": 8, "eval_samples": 1, "seed": 0,
                        "early_stopping_patience": 1, "max_new_tokens": 1}.items():  # fmt: skip
        if getattr(args, name) is not None and getattr(args, name) < least:
            parser.error(f"--{name}: at least {least}")
    if args.lora_r is None:
        args.lora_r = 0 if args.task == "pretrain" and not args.load_in_4bit else 16
    train, test, pretrain = args.train_file, args.test_file, args.task == "pretrain"
    wrong = {
        "give --train_file, --test_file or --merge_to": not (train or test or args.merge_to),
        "--model: name the model, or the --adapter to predict with": not args.model and (train or not args.adapter),
        "--adapter is for prediction; training begins with --model": args.adapter and train,
        "--output_dir: name where model and predictions go": not args.output_dir and (train or not args.output_file)
            and (train or test),
        "--output_file takes one --test_file": args.output_file and len(test) != 1,
        "--validation_file chooses a checkpoint: give --train_file": args.validation_file and not train,
        "--task pretrain takes --train_file and no --test_file: another run predicts": pretrain and (test or not train),
        "--max_new_tokens: not with --constrain, whose answers end": args.constrain and args.max_new_tokens,
        "--load_in_4bit trains an adapter: --lora_r at least 1": args.load_in_4bit and train and not args.lora_r,
        "--merge_to: there is no adapter to merge": args.merge_to and not args.adapter and not (train and args.lora_r),
        "--num_train_epochs, --learning_rate, --lora_alpha: more than 0":
            not all(0 < number < 1e6 for number in (args.num_train_epochs, args.learning_rate))
            or (args.lora_alpha is not None and args.lora_alpha <= 0),
        "--seed: less than 2 ** 32": args.seed >= 2**32,
    }  # fmt: skip
    for message, holds in wrong.items():
        if holds:
            parser.error(message)
    before = {os.path.realpath(path) for path in (args.model, args.adapter) if path}
    after = [os.path.realpath(path) for path in (args.output_dir if args.train_file else None, args.merge_to) if path]
    if before & set(after) or len(after) > len(set(after)):
        parser.error("--output_dir, --merge_to: one would replace a model that is read, or the other; name another")
    check_predictions(args, (*args.train_file, *args.validation_file), parser)


def take_up(args):
    """Complete the arguments by what run.json says of the model or adapter that predicts; return what it says."""
    if not args.model:
        args.model = read_sidecar(Path(args.adapter) / "adapter_config.json").get("base_model_name_or_path")
        if not args.model:
            raise DataError(f"--adapter {args.adapter}: holds no adapter_config.json; give the folder of an adapter")
    stored = {} if args.train_file else read_sidecar(Path(args.adapter or args.model) / "run.json")
    before = stored.get("prompt", {})
    for name, default in (PROMPT | {"load_in_4bit": False}).items():
        if getattr(args, name) is None:
            setattr(args, name, before.get(name, default))
        elif before.get(name, getattr(args, name)) != getattr(args, name):
            log(f"warning: --{name} {getattr(args, name)}: the model was trained with {before[name]}")
    args.instruction = text_of(args.instruction_file).strip() if args.instruction_file else before.get("instruction")
    return stored


def main(argv=None):
    args, started = parse_args(argv), time.time()
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # two spinning threads collapse when anything else runs
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # no line for each retry; the error comes as one line
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it is loaded unasked, and warns of a missing kernel
    stored = take_up(args)
    if os.path.isdir(args.model):
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if args.constrain and args.format not in ("inline", "iob"):
        raise DataError(f"--constrain is for --format inline and iob, not {args.format}")
    for path in args.test_file:  # an error in them is worth knowing before the work
        deque(read_records(path, args.limit), maxlen=0)
    labels = {}
    if args.task == "sft" and (args.train_file or args.test_file):
        remembered = stored.get("prompt", {}).get("labels")
        labels = labels_of(args, args.train_file, args.test_file, remembered, args.limit)
    warnings.filterwarnings("ignore", category=FutureWarning)  # between trl, peft and transformers
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    here()  # starts the group of processes, where there are any
    adapter = args.adapter
    if args.train_file:
        stored = train_or_take_up(args, labels, started)
        args.model, adapter = (args.model, args.output_dir) if args.lora_r else (args.output_dir, None)
    if args.merge_to and here().is_main_process:
        merge(args, adapter, stored)
    if args.test_file:
        model, chat = load(args, adapter, quantize=args.load_in_4bit)
        identity = [model_state(args.model), model_state(adapter), args.load_in_4bit]
        for path in args.test_file:
            predict_file(path, model, chat, labels, stored, identity, args)
    here().wait_for_everyone()
    here().destroy_process_group()  # a process that ends within its group may abort


def train_or_take_up(args, labels, started):
    """Train, unless the same command has done so; return the content of run.json."""
    inputs = [*args.train_file, *args.validation_file, *filter(None, (args.labels_file, args.instruction_file))]
    asked = {name: value for name, value in vars(args).items() if name not in APART} | {
        "train": list(map(sha256, args.train_file)), "validation": list(map(sha256, args.validation_file)),
        "base": model_state(args.model), "processes": here().num_processes,
    }  # fmt: skip
    stamp = hashlib.sha256(to_json([asked, labels]).encode("utf-8")).hexdigest()
    folder = Path(args.output_dir)
    if (stored := read_sidecar(folder / "run.json")).get("stamp") == stamp:
        say(f"{folder}: trained before, by the same command on the same files; taken as it is")
        return stored
    facts = train(args, labels, stamp)
    if here().is_main_process:
        (folder / "training_args.bin").unlink(missing_ok=True)  # a pickle; run.json says what it says
        prompt = {name: getattr(args, name) for name in PROMPT} | {
            "labels": labels, "instruction": args.instruction, "load_in_4bit": args.load_in_4bit}  # fmt: skip
        write_sidecar(args.output_dir, args, inputs, started, PACKAGES, stamp=stamp, prompt=prompt, **facts)
        shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
        log(f"  -> {args.output_dir}")
    here().wait_for_everyone()
    return read_sidecar(folder / "run.json")


def merge(args, adapter, stored):
    """Write base and adapter as one model, from the base in full precision, with its prompt; say how it is served."""
    target = Path(args.merge_to)  # without the slash that a shell's completion leaves
    part = Path(f"{target}.part")
    ours = "adapter" in read_sidecar(target / "run.json").get("inputs", {})
    ours = ours or (target.is_dir() and not os.listdir(target))
    if os.path.lexists(target) and not ours:  # what is the user's is never emptied
        raise DataError(f"--merge_to {target}: is there, and no merged model of this script; name another folder")
    shutil.rmtree(part, ignore_errors=True)
    model, chat = load(args, adapter)
    model = model.merge_and_unload()
    model.save_pretrained(part)
    chat.tokenizer.save_pretrained(part)
    prompt = stored.get("prompt", {}) | {"load_in_4bit": False}
    write_sidecar(str(part), args, {"adapter": str(adapter)}, time.time(), PACKAGES, prompt=prompt,
                  longest_answer=stored.get("longest_answer"))  # fmt: skip
    shutil.rmtree(target, ignore_errors=True)
    os.replace(part, target)
    log(f"  -> {args.merge_to}\nvllm serve {args.merge_to} --host 127.0.0.1")


if __name__ == "__main__":
    sys.exit(run(main))

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
from collections import Counter, deque
from functools import cache, partial
from itertools import chain, groupby
from pathlib import Path

from utils import (
    DEPTH,
    FORMATS,
    INSTRUCTIONS,
    DataError,
    answer_graph,
    check_predictions,
    clear_model,
    flat_view,
    fragments,
    key_value,
    last_checkpoint,
    lock,
    log,
    model_state,
    parse_answer,
    prediction_path,
    read_labels,
    read_lines,
    read_records,
    read_sidecar,
    render_answer,
    render_messages,
    run,
    sha256,
    to_json,
    types_of,
    write_jsonl,
    write_sidecar,
)

KEPT = ("id", "doc_id", "start", "text", "source", "pretokenized", "tokens", "offsets")  # tokens: of IOB alone
WORST = ("unparsable", "refused", "empty", "truncated", "salvaged", "ok")  # of the answers of --one_type_per_prompt
PROMPT = ("format", "one_type_per_prompt", "all_types", "language")  # kept with the model, and taken up again
# not in the stamp of a trained model: what is there by its content, and what concerns predictions alone
APART = ("train_file", "validation_file", "labels_file", "instruction_file", "test_file", "output_dir", "output_file",
         "adapter", "merge_to", "max_new_tokens", "constrain", "trust_remote_code")  # fmt: skip
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


# ---------------------------------------------------------------------------- what is asked, and what is the answer


def labels_of(args, stored):
    """Return {type: description or ""}: of --labels_file, the trained model, training, shots or (warned) gold."""
    if args.labels_file:
        return read_labels(args.labels_file)
    if stored.get("labels") and not args.train_file:
        return stored["labels"]
    if args.train_file:
        if found := types_of(chain.from_iterable(read_records(path, args.limit) for path in args.train_file)):
            return dict.fromkeys(found, "")
        raise DataError(f"{args.train_file[0]}: no entity in it; nothing to learn")
    records = chain.from_iterable(read_records(path, args.limit) for path in args.test_file)
    if found := types_of(shot for record in records for shot in record.get("shots", ())):
        return dict.fromkeys(found, "")
    if found := types_of(chain.from_iterable(read_records(path, args.limit) for path in args.test_file)):
        log("warning: the types come from the gold of --test_file; give --labels_file")
        return dict.fromkeys(found, "")
    raise DataError(f"{args.test_file[0]}: no types to ask for; give --labels_file")


def check_types(labels, args):
    """Raise DataError where a type can't stand in a tag."""
    odd = [type_ for type_ in labels if re.search(r"\s", type_)] if args.format == "iob" else []
    odd += [type_ for type_ in labels if re.search(r"[<>]", type_)] if args.format == "inline" else []
    if odd:
        raise DataError(f"type {odd[0]!r}: --format {args.format} can't hold it; rename it (brat2iob.py --map_types)")


def questions(record, labels, args):
    """Yield (types, messages) of what is asked about a record: once, or for each type."""
    for types in [[type_] for type_ in labels] if args.one_type_per_prompt else [list(labels)]:
        yield types, render_messages(record, types, args.format, record.get("shots", ()), record.get("passages", ()),
                                     labels, args.instruction, args.language, args.all_types)  # fmt: skip


class Chat:
    """A tokenizer's way from messages to tokens, the same in training and prediction."""

    def __init__(self, tokenizer, model=None):
        self.tokenizer = tokenizer
        stops = model.generation_config.eos_token_id if model else None
        self.stops = stops if isinstance(stops, list) else [] if stops is None else [stops]
        if not tokenizer.eos_token:
            raise DataError("the tokenizer has no end-of-sequence token; no model of it would stop")
        tokenizer.chat_template = tokenizer.chat_template or PLAIN
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
        tokenizer.padding_side = "left"
        self.bos = tokenizer.bos_token_id
        self.adds_bos = self.bos is not None and tokenizer("x")["input_ids"][:1] == [self.bos]
        self.system, self.end = True, tokenizer.eos_token_id
        probe = [{"role": "system", "content": "SYSTEM"}, {"role": "user", "content": "USER"},
                 {"role": "assistant", "content": "ANSWER"}]  # fmt: skip
        whole = self.rendered(probe)
        if not whole or "SYSTEM" not in whole:  # no system message, as in Mistral and Gemma: it goes before the text
            self.system, whole = False, self.rendered(probe[1:])
        if not whole or "USER" not in whole or "ANSWER" not in whole:
            raise DataError("the model's chat template does not show a user's message and the answer; mend it")
        after = tokenizer(whole.rpartition("ANSWER")[2], add_special_tokens=False)["input_ids"]
        self.end = next((each for each in after if each in control_tokens(tokenizer)), self.end)

    def rendered(self, messages):
        """The text of a conversation; None where the template refuses it, or is broken."""
        try:
            return self.tokenizer.apply_chat_template(messages, tokenize=False)
        except Exception:  # a template raises what it likes
            return None

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

    def ends(self):
        return {self.end, self.tokenizer.eos_token_id, *self.stops}

    def read(self, ids):
        """(text of the tokens before the end, how many tokens, whether there is an end)."""
        at = next((i for i, each in enumerate(ids) if each in self.ends()), None)
        kept = ids if at is None else ids[:at]
        text = self.tokenizer.decode(kept, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text, len(kept) + (at is not None), at is not None


def control_tokens(tokenizer):
    """The ids of tokens that no text is made of."""
    return {*tokenizer.all_special_ids, *(i for i, token in tokenizer.added_tokens_decoder.items() if token.special)}


def examples_of(records, labels, chat, args):
    """Return [{"input_ids", "labels"}]: prompt without, answer with loss; DataError where one is too long."""
    examples, names, gold = [], [], Counter()
    for record in records:
        for types, messages in questions(record, labels, args):
            prompt = chat.prompt(messages)
            text = render_answer(record, types, args.format, args.all_types)
            answer = chat.answer(text)
            if answer[-1] != chat.end or (chat.bos is not None and prompt[:2] == [chat.bos] * 2):
                raise DataError(f"{args.model}: its chat template writes two BOS; mend it")
            found = parse_answer(text, record, types, args.format)["entities"]
            sides = [spans_of(record["entities"]), spans_of(found)]
            gold.update(mentions=len(sides[0]), shown=len(sides[0] & sides[1]),
                        other=sum(e[0] not in labels for e in sides[0]))  # fmt: skip
            examples.append({"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer})
            names.append(record["id"])
    lengths = [len(example["input_ids"]) for example in examples]
    longest = max(range(len(lengths)), key=lengths.__getitem__)
    args.max_length = args.max_length or lengths[longest]
    if lengths[longest] > args.max_length:
        raise DataError(f"{args.train_file[0]}: record {names[longest]!r} takes {lengths[longest]:,} tokens, more than "
                        f"--max_length {args.max_length}; --max_length {lengths[longest]} would do")  # fmt: skip
    lengths.sort()
    asks = len(examples) // len(records)
    if not gold["shown"]:
        raise DataError(f"{args.train_file[0]}: no mention of the types {', '.join(labels)}; nothing to learn")
    if gold["shown"] < gold["mentions"] // asks:
        shown, every, other = gold["shown"], gold["mentions"] // asks, gold["other"] // asks
        say(f"warning: {shown:,} of {every:,} mentions come back from {args.format} answers; {other:,} are of other "
            "types, the others nested, crossing, discontinuous or repeated")  # fmt: skip
    say(f"{len(records):,} records in {len(examples):,} examples; tokens: p50 {lengths[len(lengths) // 2]:,}, p95 "
        f"{lengths[int(len(lengths) * 0.95)]:,}, max {lengths[-1]:,}")  # fmt: skip
    return examples


def spans_of(entities):
    """What must agree with gold: type and all fragments."""
    return {(entity["type"], *map(tuple, fragments(entity))) for entity in entities}


def check_width(record, prompt, positions):
    """Raise DataError where a prompt leaves no place for an answer."""
    if len(prompt) >= positions:
        raise DataError(f"record {record['id']!r}: its prompt has {len(prompt):,} tokens, the model reads "
                        f"{positions:,}; cut texts (brat2iob.py --max_tokens) or show fewer examples")  # fmt: skip


def show_example(labels, chat, args):
    """Print an example as training has it, of no patient's text; what bears no loss in [[...]]."""
    record = {"id": "example", "text": "An example.", "entities": [{"start": 3, "end": 10, "type": next(iter(labels)),
                                                                    "text": "example"}]}  # fmt: skip
    types, messages = next(questions(record, labels, args))
    answer = chat.answer(render_answer(record, types, args.format, args.all_types))
    say(f"[[{chat.tokenizer.decode(chat.prompt(messages))}]]{chat.tokenizer.decode(answer)}")


# ---------------------------------------------------------------------------- model


def positions_of(model):
    """How many tokens a model reads at most."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None) or sys.maxsize


@cache
def here():
    """This process among those that torchrun or accelerate launched."""
    from accelerate import PartialState

    return PartialState(cpu=not has_cuda())


def has_cuda():
    import torch

    return torch.cuda.is_available()


def has_bf16():
    """Whether this machine has bf16 units; without them autocast to bf16 costs time on a CPU."""
    import torch

    if has_cuda():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    known = getattr(torch.cpu, "get_capabilities", dict)()  # torch 2.7 and later
    return bool(known.get("avx512_bf16") or known.get("amx_bf16"))


def load(args, adapter=None, quantize=False, dtype=None):
    """Return (model, tokenizer): the base, in 4 bits where asked, with an adapter where given."""
    import torch
    from safetensors import safe_open
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    options = {"trust_remote_code": args.trust_remote_code}
    where = {"device_map": {"": torch.cuda.current_device()}} if has_cuda() else {}
    if quantize:
        options["quantization_config"] = four_bits()
    try:
        config = AutoConfig.from_pretrained(args.model, trust_remote_code=args.trust_remote_code)
        tokenizer = AutoTokenizer.from_pretrained(adapter or args.model, trust_remote_code=args.trust_remote_code)
        if config.is_encoder_decoder or not tokenizer.is_fast:
            raise ValueError("a decoder with a fast tokenizer is wanted, no seq2seq model")
        model = AutoModelForCausalLM.from_pretrained(args.model, dtype=dtype or torch.float32, **where, **options)
        if adapter:
            from peft import PeftModel, get_peft_model_state_dict

            model = PeftModel.from_pretrained(model, adapter)
            with safe_open(os.path.join(adapter, "adapter_model.safetensors"), "numpy") as file:
                if set(file.keys()) != set(get_peft_model_state_dict(model)):
                    raise ValueError(f"it was trained on {model.peft_config['default'].base_model_name_or_path}")
    except Exception as error:  # a folder of anything raises anything
        reason = " ".join(str(error).split())[:200]
        what = f"--adapter {adapter} on {args.model}" if adapter else f"--model {args.model}"
        raise DataError(f"{what}: can't be loaded: {reason}") from None
    return model, tokenizer


def four_bits():
    """QLoRA's quantization: nf4, double; DataError where bitsandbytes is missing."""
    import torch
    from transformers import BitsAndBytesConfig

    try:
        import bitsandbytes  # noqa: F401 (transformers says less when it is missing)
    except ImportError:
        raise DataError("--load_in_4bit: the package bitsandbytes is not installed; pip install it") from None
    half = torch.bfloat16 if has_bf16() else torch.float16 if has_cuda() else torch.float32
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                              bnb_4bit_compute_dtype=half)  # fmt: skip


# ---------------------------------------------------------------------------- training


def training_arguments(args, steps):
    """trl's SFTConfig; --training_args come last and win."""
    from trl import SFTConfig

    cuda, dev = has_cuda(), bool(args.validation_file)
    settings = {
        "output_dir": checkpoints(args), "seed": args.seed, "learning_rate": args.learning_rate,
        "num_train_epochs": args.num_train_epochs, "per_device_train_batch_size": args.batch_size,
        "logging_steps": max(1, steps // 50), "lr_scheduler_type": "cosine", "warmup_steps": 0.1, "weight_decay": 0.0,
        "bf16": has_bf16(), "fp16": cuda and not has_bf16(), "use_cpu": not cuda, "dataloader_pin_memory": cuda,
        "activation_checkpointing": cuda, "max_length": None, "report_to": "none",
        "eval_strategy": "epoch" if dev else "no", "save_strategy": "epoch", "save_total_limit": 2,
        "load_best_model_at_end": dev, "restore_callback_states_from_checkpoint": True,
        "metric_for_best_model": "loss" if args.task == "pretrain" else "f1",
        "disable_tqdm": not sys.stderr.isatty(), "log_level": "error", "ddp_find_unused_parameters": False,
    }  # fmt: skip
    if args.task == "pretrain":
        settings |= {"packing": True, "packing_strategy": "bfd_split", "max_length": args.max_length}
    else:
        settings |= {"dataset_kwargs": {"skip_prepare_dataset": True}, "train_sampling_strategy": "group_by_length"}
    try:
        plain = SFTConfig(**settings)
        for key, value in args.training_args:
            if isinstance(getattr(plain, key, None), (int, float)) and not isinstance(value, (int, float)):
                raise ValueError(f"{key}={value}: a number, true or false is wanted")
        made = SFTConfig(**settings | dict(args.training_args))
        made._n_gpu = min(1, made.n_gpu)  # several GPUs are for torchrun, not for DataParallel
        return made
    except Exception as error:  # wrong kinds of values fail where they are first used
        log(f"error: --training_args: {str(error).splitlines()[0]}")
        raise SystemExit(2) from None


def checkpoints(args):
    return os.path.join(args.output_dir, "checkpoints.part")


def lora(args):
    """The adapter's settings; None for full fine-tuning."""
    if not args.lora_r:
        return None
    from peft import LoraConfig

    targets = args.lora_target_modules if args.lora_target_modules != ["all-linear"] else "all-linear"
    return LoraConfig(r=args.lora_r, lora_alpha=args.lora_alpha or 2 * args.lora_r, lora_dropout=args.lora_dropout,
                      target_modules=targets, task_type="CAUSAL_LM")  # fmt: skip


def answers_to_learn(args, labels, chat, model):
    """Return (examples, score(model)) of --task sft."""
    records = list(chain.from_iterable(read_records(path, args.limit) for path in args.train_file))
    dev, positions = dev_records(args), positions_of(model)
    if dev and not any(record["entities"] for record in dev):
        raise DataError(f"{args.validation_file[0]}: no entity in the {len(dev):,} records to answer; there is nothing "
                        "to choose a checkpoint by")  # fmt: skip
    tests = chain.from_iterable(read_records(path, args.limit) for path in args.test_file)
    for record in chain(dev, tests):  # better before the training than after it
        for _, messages in questions(record, labels, args):
            check_width(record, chat.prompt(messages), positions)
    show_example(labels, chat, args)
    examples = examples_of(records, labels, chat, args)
    if (most := max(len(example["input_ids"]) for example in examples)) > positions:
        raise DataError(f"--model {args.model}: reads {positions:,} tokens, the longest example has {most:,}; cut the "
                        "texts (brat2iob.py --max_tokens)")  # fmt: skip
    return examples, partial(
        answers_f1, chat=chat, records=dev, labels=labels, longest=longest_answer(examples), args=args
    )


def texts_to_learn(args, chat, model):
    """Return (examples, score(model)) of --task pretrain."""
    examples = [{"text": text} for text in texts_of(args.train_file, args.limit)]
    held_out = [tokens_of(text, chat) for text in texts_of(args.validation_file, args.limit)]
    if not any(example["text"].strip() for example in examples) or (
        args.validation_file and not sum(map(len, held_out))
    ):
        raise DataError(f"{args.train_file[0]}: no text; give records or .txt files that hold some")
    args.max_length = args.max_length or min(2048, positions_of(model))
    if args.max_length > positions_of(model):
        raise DataError(f"--max_length {args.max_length}: {args.model} reads {positions_of(model):,} tokens")
    return examples, partial(held_out_loss, texts=held_out, length=args.max_length)


def train(args, labels, stamp):
    """Train, and save adapter or model with tokenizer in OUTPUT_DIR; return facts for its run.json."""
    import torch
    import transformers
    from accelerate.utils import broadcast_object_list
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()
    transformers.set_seed(args.seed)
    model, tokenizer = load(args, quantize=args.load_in_4bit, dtype=base_dtype(training=not args.lora_r))
    chat, sft = Chat(tokenizer, model), args.task == "sft"
    examples, score = answers_to_learn(args, labels, chat, model) if sft else texts_to_learn(args, chat, model)
    settings = training_arguments(args, int(len(examples) / args.batch_size * args.num_train_epochs))
    data = Dataset.from_list(examples)
    parts = {"model": model, "args": settings, "processing_class": tokenizer, "train_dataset": data,
             "eval_dataset": data.select([0]) if args.validation_file else None, "peft_config": lora(args)}  # fmt: skip
    try:
        trainer = scored_trainer(score, args.early_stopping_patience, **parts)
    except Exception as error:  # no such layer, an impossible combination of settings
        raise DataError(f"{args.model}: can't be trained so: {' '.join(str(error).split())[:200]}") from None
    given = sum(len(e["input_ids"]) if sft else len(tokens_of(e["text"], chat)) for e in examples)
    if (kept := sum(map(len, trainer.train_dataset["input_ids"]))) != given:
        say(f"warning: trl trains on {kept:,} of {given:,} tokens (packing_strategy={settings.packing_strategy})")
    counts = {name: sum(p.numel() for p in trainer.model.parameters() if p.requires_grad or name == "weights")
              for name in ("weights", "trained")}  # fmt: skip
    say(f"training {counts['trained']:,} of {counts['weights']:,} weights, "
        f"{'bf16' if settings.bf16 else 'fp16' if settings.fp16 else 'fp32'} on {settings.device.type}")  # fmt: skip
    resume = last_checkpoint(checkpoints(args), stamp) if here().is_main_process else None
    resume = broadcast_object_list([resume])[0]
    try:
        trainer.train(resume_from_checkpoint=resume)
    except torch.cuda.OutOfMemoryError:
        raise DataError(f"the GPU's memory does not hold a step of --batch_size {args.batch_size}; a smaller one with "
                        "--training_args gradient_accumulation_steps=N, or --load_in_4bit") from None  # fmt: skip
    save(trainer, chat, args)
    history = [{"step": entry["step"], **{new: entry[old] for old, new in HISTORY.items() if old in entry}}
               for entry in trainer.state.log_history if HISTORY.keys() & entry.keys()]  # fmt: skip
    if settings.load_best_model_at_end and sft and not trainer.state.best_metric:
        say("warning: no development entity was found at any time; train longer, or at another rate")
    return {"history": history, "counts": {"train": len(examples), "tokens": kept, **counts},
            "longest_answer": longest_answer(examples) if sft else None}  # fmt: skip


def save(trainer, chat, args):
    """Write the model to OUTPUT_DIR, where what another run left would be taken for this one's."""
    here().wait_for_everyone()
    if here().is_main_process:
        clear_model(args.output_dir)
    here().wait_for_everyone()
    trainer.model.generation_config.eos_token_id = sorted(chat.ends())
    trainer.model.generation_config.pad_token_id = chat.tokenizer.pad_token_id
    trainer.model.create_or_update_model_card = lambda *_: None  # a README.md in OUTPUT_DIR is the user's
    trainer.save_model(args.output_dir)


def say(fact):
    """Log a fact once, however many processes know it."""
    if here().is_main_process:
        log(fact)


def base_dtype(training):
    """The type of the weights: those that are trained float32, all others the GPU's half precision."""
    import torch

    return (torch.bfloat16 if has_bf16() else torch.float16) if has_cuda() and not training else torch.float32


def dev_records(args):
    """The development records that are answered after each epoch: a seeded sample of --eval_samples."""
    records = list(chain.from_iterable(read_records(path, args.limit) for path in args.validation_file or ()))
    chosen = sorted(random.Random(args.seed).sample(range(len(records)), min(args.eval_samples, len(records))))
    return [records[i] for i in chosen]


def longest_answer(examples):
    return max(sum(label != -100 for label in example["labels"]) for example in examples)


def scored_trainer(score, patience, **parts):
    """An SFTTrainer that chooses checkpoints, and the moment to stop, by score(model) -> {"eval_...": value}."""
    import transformers
    from trl import SFTTrainer

    class ScoredTrainer(SFTTrainer):
        def evaluate(self, *_, **__):
            metrics = score(self.model)
            self.log(dict(metrics))
            if self.is_world_process_zero():
                losses = [f"loss {entry['loss']:.4f}" for entry in self.state.log_history if "loss" in entry]
                told = [f"development {name[5:]} {value:.4f}" for name, value in metrics.items()]
                log(f"epoch {self.state.epoch:g}, step {self.state.global_step}: {', '.join([*losses[-1:], *told])}")
            self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
            self.model.train()
            return metrics

    callbacks = [transformers.EarlyStoppingCallback(patience)] if parts["args"].load_best_model_at_end else []
    trainer = ScoredTrainer(callbacks=callbacks, **parts)
    trainer.remove_callback(transformers.PrinterCallback)
    return trainer


def answers_f1(model, chat, records, labels, longest, args):
    """Strict F1 of generated answers: type and all fragments must agree; each process answers its share."""
    asked = [(record, *each) for record in records for each in questions(record, labels, args)]
    prompts = [(chat.prompt(messages), room(record, types, chat, longest, args)) for record, types, messages in asked]
    right = pred = 0
    gold = sum(entity["type"] in types for record, types, _ in asked for entity in record["entities"])
    for number, (ids, _) in generate(model, chat, prompts, asked, args):
        record, types, _ = asked[number]
        found = parse_answer(chat.read(ids)[0], record, types, args.format)["entities"]
        right += len(spans_of(record["entities"]) & spans_of(found))
        pred += len(spans_of(found))
    right, pred = summed([right, pred])
    return {"eval_f1": 2 * right / max(1, pred + gold)}


def summed(values):
    """Sums over all processes."""
    import torch
    from accelerate.utils import reduce

    return reduce(torch.tensor(values, dtype=torch.float64, device=here().device)).tolist()


# ---------------------------------------------------------------------------- continual pre-training


def texts_of(paths, limit):
    """Yield the texts of records, and of .txt files one each."""
    for path in paths:
        if path.endswith((".txt", ".txt.gz")):
            yield "\n".join(line for _, line in read_lines(path))
        else:
            yield from (record["text"] for record in read_records(path, limit))


def tokens_of(text, chat):
    """A text's tokens as trl makes them for training: with the end behind."""
    return [*chat.tokenizer(text)["input_ids"], chat.tokenizer.eos_token_id]


def held_out_loss(model, texts, length):
    """Mean loss per token, and its exponential: each token but the first of a text is predicted once.

    All processes make the same number of calls, as sharded models need it.
    """
    import torch

    rank, world = here().process_index, here().num_processes
    parts = [ids[start : start + length] for ids in texts for start in range(0, len(ids) - 1, length - 1)]
    model.eval()
    total = count = 0.0
    for turn in range(0, len(parts), world):
        part = torch.tensor([parts[min(turn + rank, len(parts) - 1)]], device=model.device)
        with torch.no_grad():
            logits = model(input_ids=part).logits[0, :-1].float()
        if turn + rank < len(parts):
            total += torch.nn.functional.cross_entropy(logits, part[0, 1:], reduction="sum").item()
            count += part.shape[1] - 1
    total, count = summed([total, count])
    loss = total / max(1, count)
    return {"eval_loss": loss, "eval_perplexity": math.exp(min(loss, 700))}


# ---------------------------------------------------------------------------- generation


def room(record, types, chat, longest, args):
    """How many tokens an answer may have: one and a half of the longest in training, or what the text itself needs."""
    if args.max_new_tokens:
        return args.max_new_tokens
    need = int(1.5 * (longest or ANSWER)) + 16
    if args.format in ("inline", "iob"):
        bare = render_answer(record | {"entities": []}, types, args.format)
        need = max(need, 2 * len(chat.answer(bare)) + 32)
    return need


def bound(record, types, format, room):
    """How many tokens a constrained answer has at most: a byte each, and nothing is opened after `room` of them."""
    bare, tag = render_answer(record | {"entities": []}, types, format), max(len(t.encode("utf-8")) for t in types) + 3
    more = DEPTH * tag + room if format == "inline" else tag * (bare.count("\n") + 1)
    return len(bare.encode("utf-8")) + more + 2


def batches_of(prompts):
    """Return lists of numbers of prompts [(ids, room)], the longest first, each list within BUDGET tokens, padded."""
    order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i][0]) - prompts[i][1], i))
    batches, widest, most = [], 0, 0
    for i in order:
        ids, new = prompts[i]
        if batches and (len(batches[-1]) + 1) * (max(widest, len(ids)) + max(most, new)) <= BUDGET:
            batches[-1].append(i)
            widest, most = max(widest, len(ids)), max(most, new)
        else:
            batches.append([i])
            widest, most = len(ids), new
    return batches


def generate(model, chat, prompts, asked, args, done=()):
    """Yield (number, (tokens of the answer, seconds)) of prompts [(ids, room)], greedily, batch by batch.

    `asked`: (record, types, ...) of each, for --constrain; `done`: numbers that need no answer. The batches are the
    same whatever is done, so that answers are, too. Each process takes its share, and all make the same number of
    calls, as sharded models need it.
    """
    model.eval()
    rank, world = here().process_index, here().num_processes
    batches = [batch for batch in batches_of(prompts) if not all(i in done for i in batch)]
    for turn in range(0, len(batches), world):
        started, batch = time.monotonic(), batches[min(turn + rank, len(batches) - 1)]
        answers = generate_batch(model, chat, batch, prompts, asked, args)
        seconds = (time.monotonic() - started) / len(batch)
        if turn + rank < len(batches):
            yield from ((number, (ids, seconds)) for number, ids in zip(batch, answers, strict=True))


def generate_batch(model, chat, batch, prompts, asked, args):
    """The tokens of the answers of one batch, left padded; halved where memory does not do."""
    import torch
    from transformers import GenerationConfig

    width, new = max(len(prompts[i][0]) for i in batch), max(prompts[i][1] for i in batch)
    positions = positions_of(model)
    pad = chat.tokenizer.pad_token_id
    ids = torch.tensor([[pad] * (width - len(prompts[i][0])) + prompts[i][0] for i in batch], device=model.device)
    mask = torch.tensor([[0] * (width - len(prompts[i][0])) + [1] * len(prompts[i][0]) for i in batch],
                        device=model.device)  # fmt: skip
    only = Constraint(chat, [asked[i][:2] for i in batch], width, new, args.format) if args.constrain else None
    if only:
        new = max(bound(*asked[i][:2], args.format, new) for i in batch)
    settings = GenerationConfig(do_sample=False, max_new_tokens=min(new, positions - width), pad_token_id=pad,
                                eos_token_id=sorted(chat.ends()), use_cache=True)  # fmt: skip
    before, model.generation_config = model.generation_config, settings  # whose temperatures and penalties would count
    try:
        with torch.no_grad():
            found = model.generate(input_ids=ids, attention_mask=mask, generation_config=settings,
                                   prefix_allowed_tokens_fn=only)  # fmt: skip
        return found[:, width:].tolist()
    except torch.cuda.OutOfMemoryError:
        if len(batch) == 1:
            raise DataError("the GPU's memory does not hold one answer; --load_in_4bit, or a smaller model") from None
    finally:
        model.generation_config = before
    torch.cuda.empty_cache()
    half = len(batch) // 2
    return [each for part in (batch[:half], batch[half:])
            for each in generate_batch(model, chat, part, prompts, asked, args)]  # fmt: skip


# ---------------------------------------------------------------------------- answers that can only copy


class Constraint:
    """For inline and iob: the tokens that may follow, so that an answer copies its text and marks known types.

    An answer is a path in utils.answer_graph; a state is the set of literals that are under way. The tokens allowed in
    a state are found by walking a trie of the vocabulary's bytes along it, so they may run over the ends of literals,
    as the tokens of training do. After `room` tokens nothing is opened any more, so that an answer comes to its end;
    so it does at a letter that the vocabulary can't write. It takes 0.2 ms a token and answer.
    """

    def __init__(self, chat, asked, width, room, format):
        self.width, self.room, self.ends, self.opening = width, room, sorted(chat.ends()), True
        self.bytes, self.trie = vocabulary(chat.tokenizer)
        self.arcs = [answer_graph(record, types, format) for record, types in asked]
        first = [arcs(None, True) for arcs in self.arcs]
        self.states = [([*pairs, *((b" " + literal, node) for literal, node in pairs)], end) for pairs, end in first]

    def __call__(self, row, ids):
        """The ids that may follow those of a row; called for each row after each token, as generate does."""
        count, last = len(ids) - self.width, int(ids[-1])
        self.opening = count <= self.room  # as it was when the last token was chosen
        if count and last in self.ends:
            self.states[row] = ([], True)
        elif count:
            for byte in self.bytes[last]:
                self.states[row] = self.step(row, self.states[row], byte)
        self.opening = count < self.room
        return self.tokens(row, self.states[row]) or self.ends

    def step(self, row, state, byte):
        pairs, end = [], False
        for literal, node in state[0]:
            if literal[0] == byte and len(literal) > 1:
                pairs.append((literal[1:], node))
            elif literal[0] == byte:
                following, end = self.arcs[row](node, self.opening)
                pairs += following
        return pairs, end

    def tokens(self, row, state):
        found, todo = list(self.ends) if state[1] else [], [(self.trie, state)]
        while todo:
            trie, (pairs, end) = todo.pop()
            for byte in {literal[0] for literal, _ in pairs} & trie.keys():
                found += trie[byte].get(None, ())
                todo.append((trie[byte], self.step(row, (pairs, end), byte)))
        return found


@cache
def vocabulary(tokenizer):
    """(the bytes of each token by its id, a trie {byte: trie, None: [ids]} of them); control tokens have none."""
    kind = json.dumps(json.loads(tokenizer.backend_tokenizer.to_str()).get("decoder"))
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]  # bytes that byte-level BPE writes as themselves
    others = [byte for byte in range(256) if byte not in plain]
    table = {chr(byte): byte for byte in plain} | {chr(256 + i): byte for i, byte in enumerate(others)}
    found, trie, special = [b""] * (max(tokenizer.get_vocab().values()) + 1), {}, control_tokens(tokenizer)
    for token, number in tokenizer.get_vocab().items():
        if number in special:
            continue
        if number in tokenizer.added_tokens_decoder:
            found[number] = token.encode("utf-8")
        elif "ByteLevel" in kind:
            found[number] = bytes(table[letter] for letter in token)
        elif re.fullmatch(r"<0x[0-9A-F]{2}>", token):
            found[number] = bytes([int(token[3:5], 16)])
        else:
            found[number] = token.replace("\u2581", " ").encode("utf-8")
        if found[number]:
            node = trie
            for byte in found[number]:
                node = node.setdefault(byte, {})
            node.setdefault(None, []).append(number)
    return found, trie


# ---------------------------------------------------------------------------- prediction


def predict_file(path, model, chat, labels, stored, identity, args):
    """Answer a test file, going on where a killed run was, and write its predictions."""
    begun, output, found, used = time.time(), prediction_path(args, path), Counter(), Counter()
    records = [{name: record[name] for name in (*KEPT[: 8 if record.get("pretokenized") else 6], "shots", "passages")
                if name in record} for record in read_records(path, args.limit)]  # fmt: skip
    asked = [(record, *each) for record in records for each in questions(record, labels, args)]
    lines = answer(asked, model, chat, stored.get("longest_answer"), identity, f"{output}.answers.jsonl", args)
    if not here().is_main_process:
        return

    def predictions():
        parts = ((record, types, line) for (record, types, _), line in zip(asked, lines, strict=True))
        for _, group in groupby(parts, key=lambda part: part[0]["id"]):
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


def answer(asked, model, chat, longest, identity, path, args):
    """Return the lines of the log of raw answers, one for each of `asked`; what is missing is asked and appended.

    Each process appends its share; the first one holds a lock, so that no second run writes there.
    """
    from tqdm import tqdm

    prompts = [(chat.prompt(messages), room(record, types, chat, longest, args)) for record, types, messages in asked]
    for (record, *_), (ids, _) in zip(asked, prompts, strict=True):
        check_width(record, ids, positions_of(model))
    keys = [
        hashlib.sha256(to_json([identity, *prompt, args.constrain and args.format]).encode()).hexdigest()[:32]
        for prompt in prompts
    ]
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab", buffering=0) as file, tqdm(total=len(asked), unit="answer", disable=None) as bar:
        if here().is_main_process:
            lock(file, path)
            read_answers(path)  # takes off what a kill cut
        here().wait_for_everyone()
        lines = read_answers(path)
        here().wait_for_everyone()  # until nobody reads any more
        done = {i for i, key in enumerate(keys) if key in lines}
        for number, (ids, seconds) in generate(model, chat, prompts, asked, args, done):
            text, count, ended = chat.read(ids)
            line = {"request": keys[number], "id": asked[number][0]["id"], "answer": text, "ended": ended,
                    "usage": {"prompt_tokens": len(prompts[number][0]), "completion_tokens": count},
                    "seconds": round(seconds, 4)}  # fmt: skip
            file.write(to_json(line).encode("utf-8") + b"\n")
            bar.update()
        here().wait_for_everyone()
        lines = read_answers(path)
    return [lines[key] for key in keys]


def prediction(parts, args):
    """The prediction record of a record's answers [(record, types, line of the log)]."""
    record, parsed = parts[0][0], []
    for _, types, line in parts:
        each = parse_answer(line["answer"], record, types, args.format, shots=record.get("shots", ()))
        parsed.append(each if line["ended"] else each | {"status": "truncated"})
    entities = sorted(
        (e for each in parsed for e in each["entities"]), key=lambda e: (e["start"], -e["end"], e["type"])
    )
    kept = {name: record[name] for name in KEPT if name in record}
    pred, used = flat_view(kept | {"entities": entities}, cut=False)[0], Counter()
    for _, _, line in parts:
        used.update(line["usage"])
    said = [line["answer"] for _, _, line in parts]
    return pred | {"answer": said[0] if len(said) == 1 else said,
                   "status": min((each["status"] for each in parsed), key=WORST.index),
                   "dropped": [item for each in parsed for item in each["dropped"]],
                   "usage": dict(used), "seconds": round(sum(line["seconds"] for _, _, line in parts), 4)}  # fmt: skip


def read_answers(path):
    """{request: line} of the log of raw answers; a last line that a kill cut is taken off."""
    lines, at = {}, 0
    if not os.path.exists(path):
        return lines
    with open(path, "r+b") as file:
        for raw in file:
            try:
                line = json.loads(raw) if raw.endswith(b"\n") else None
                lines[line["request"]] = line
            except (ValueError, TypeError, KeyError):
                if not raw.endswith(b"\n"):
                    file.truncate(at)
            at += len(raw)
    return lines


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
    add("--instruction_file", metavar="FILE", help="in place of the task")
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
    add("--max_new_tokens", type=int, metavar="N", help="of an answer (default: 1.5 times the longest in training)")
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
    wrong = {
        "give --train_file, --test_file or --merge_to": not (args.train_file or args.test_file or args.merge_to),
        "--model: name the model, or the --adapter to predict with":
            not args.model and (args.train_file or not args.adapter),
        "--adapter is for prediction; training begins with --model": args.adapter and args.train_file,
        "--output_dir: name the folder of the model": args.train_file and not args.output_dir,
        "--output_dir or --output_file: name where predictions go":
            args.test_file and not args.output_dir and not args.output_file,
        "--output_file takes one --test_file": args.output_file and len(args.test_file) != 1,
        "--validation_file chooses a checkpoint: give --train_file": args.validation_file and not args.train_file,
        "--task pretrain has no --test_file: another run predicts": args.task == "pretrain" and args.test_file,
        "--constrain: not with --max_new_tokens, which would cut what it brings to an end":
            args.constrain and args.max_new_tokens,
        "--task pretrain: give --train_file": args.task == "pretrain" and not args.train_file,
        "--load_in_4bit trains an adapter: --lora_r at least 1":
            args.load_in_4bit and args.train_file and args.lora_r == 0,
        "--merge_to: there is no adapter to merge": args.merge_to and not args.adapter
            and (not args.train_file or args.lora_r == 0 or (args.lora_r is None and args.task == "pretrain")),
        "--num_train_epochs, --learning_rate, --lora_alpha: more than 0":
            not 0 < args.num_train_epochs < 1e6 or not 0 < args.learning_rate < 1e6
            or (args.lora_alpha is not None and args.lora_alpha <= 0),
        "--seed: less than 2 ** 32": args.seed >= 2**32,
    }  # fmt: skip
    for message, holds in wrong.items():
        if holds:
            parser.error(message)
    fixed = {"output_dir", "resume_from_checkpoint", "max_length", "seed", "learning_rate", "num_train_epochs",
             "per_device_train_batch_size", "load_best_model_at_end", "dataset_kwargs"}  # fmt: skip
    if own := fixed & {key for key, _ in args.training_args}:
        parser.error(f"--training_args {min(own)}: has a flag of its own, or is this script's business")
    before = {os.path.realpath(path) for path in (args.model, args.adapter) if path}
    after = [os.path.realpath(path) for path in (args.output_dir if args.train_file else None, args.merge_to) if path]
    if before & set(after) or len(after) > len(set(after)):
        parser.error(
            "--output_dir, --merge_to: one would replace a model that is read, or the other; name another folder"
        )
    if args.lora_r is None:
        args.lora_r = 0 if args.task == "pretrain" and not args.load_in_4bit else 16
    check_predictions(args, (*args.train_file, *args.validation_file), parser)


def take_up(args):
    """Complete the arguments by what run.json says of the model or adapter; return what it says."""
    stored = read_sidecar(Path(args.adapter or args.model) / "run.json")
    before = stored.get("prompt", {}) if not args.train_file else {}
    for name, default in {"format": "json", "language": "en", "one_type_per_prompt": False, "all_types": False,
                          "load_in_4bit": False}.items():  # fmt: skip
        if getattr(args, name) is None:
            setattr(args, name, before.get(name, default))
        elif before.get(name, getattr(args, name)) != getattr(args, name):
            log(f"warning: --{name} {getattr(args, name)}: the model was trained with {before[name]}")
    args.instruction = before.get("instruction")
    if args.instruction_file:
        args.instruction = Path(args.instruction_file).read_text(encoding="utf-8").strip()
    if args.adapter and not args.model:
        try:
            args.model = json.loads((Path(args.adapter) / "adapter_config.json").read_text("utf-8"))[
                "base_model_name_or_path"
            ]
        except (OSError, ValueError, KeyError):
            raise DataError(
                f"--adapter {args.adapter}: holds no adapter_config.json; give the folder of an adapter"
            ) from None
    return stored if not args.train_file else {}


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
    asks = args.task == "sft" and (args.train_file or args.test_file)
    labels = labels_of(args, stored.get("prompt", {})) if asks else {}
    check_types(labels, args)
    for path in args.test_file:  # an error in them is worth knowing before the training
        deque(read_records(path, args.limit), maxlen=0)
    warnings.filterwarnings("ignore", category=FutureWarning)  # between trl, peft and transformers
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    here()  # starts the group of processes, where there are any
    if args.train_file:
        stored = train_or_take_up(args, labels, started)
    adapter = args.adapter or (args.output_dir if args.train_file and args.lora_r else None)
    if args.train_file and not args.lora_r:
        args.model = args.output_dir
    if args.merge_to and here().is_main_process:
        merge(args, adapter, stored)
    if args.test_file:
        model, tokenizer = load(args, adapter, quantize=args.load_in_4bit, dtype=base_dtype(training=False))
        identity = [model_state(args.model), model_state(adapter), args.load_in_4bit]
        for path in args.test_file:
            predict_file(path, model, Chat(tokenizer, model), labels, stored, identity, args)


def train_or_take_up(args, labels, started):
    """Train, unless the same command has done so; return the content of run.json."""
    inputs = [*args.train_file, *args.validation_file, *filter(None, (args.labels_file, args.instruction_file))]
    asked = {name: value for name, value in vars(args).items() if name not in APART} | {
        "train": [sha256(path) for path in args.train_file],
        "validation": [sha256(path) for path in args.validation_file],
        "instruction": args.instruction, "base": model_state(args.model), "processes": here().num_processes,
    }  # fmt: skip
    stamp = hashlib.sha256(to_json([asked, labels]).encode("utf-8")).hexdigest()
    path = Path(args.output_dir) / "run.json"
    if (stored := read_sidecar(path)).get("stamp") == stamp:
        say(f"{args.output_dir}: trained before, by the same command on the same files; taken as it is")
        return stored
    facts = train(args, labels, stamp)
    if here().is_main_process:
        (Path(args.output_dir) / "training_args.bin").unlink(missing_ok=True)  # a pickle; run.json says what it says
        prompt = {name: getattr(args, name) for name in PROMPT} | {
            "labels": labels, "instruction": args.instruction, "load_in_4bit": args.load_in_4bit}  # fmt: skip
        write_sidecar(args.output_dir, args, inputs, started, PACKAGES, stamp=stamp, prompt=prompt, **facts)
        shutil.rmtree(checkpoints(args), ignore_errors=True)
        log(f"  -> {args.output_dir}")
    here().wait_for_everyone()
    return read_sidecar(path)


def is_ours(folder):
    """Whether a folder is empty, or holds what merge wrote: any other one is the user's, and never emptied."""
    try:
        return not os.listdir(folder) or "adapter" in json.loads((folder / "run.json").read_text("utf-8"))["inputs"]
    except (OSError, ValueError, KeyError, TypeError):
        return False


def merge(args, adapter, stored):
    """Write base and adapter as one model, from the base in full precision, with its prompt; say how it is served."""
    part, target = Path(f"{args.merge_to}.part"), Path(args.merge_to)
    if os.path.lexists(target) and not is_ours(target):
        raise DataError(f"--merge_to {target}: is there, and no merged model of this script; name another folder")
    shutil.rmtree(part, ignore_errors=True)
    model, tokenizer = load(args, adapter, dtype=base_dtype(training=False))
    chat = Chat(tokenizer, model)
    model = model.merge_and_unload()
    model.generation_config.eos_token_id = sorted(chat.ends())
    model.save_pretrained(part)
    tokenizer.save_pretrained(part)
    kept = {
        "prompt": stored.get("prompt", {}) | {"load_in_4bit": False},
        "longest_answer": stored.get("longest_answer"),
    }
    write_sidecar(str(part), args, {"adapter": str(adapter)}, time.time(), PACKAGES, **kept)
    shutil.rmtree(target, ignore_errors=True)
    os.replace(part, target)
    log(f"  -> {args.merge_to}\nvllm serve {args.merge_to} --host 127.0.0.1")


if __name__ == "__main__":
    sys.exit(run(main))

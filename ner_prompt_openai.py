# /// script
# requires-python = ">=3.10"
# dependencies = ["openai>=1.109", "tqdm"]
# ///
"""Ask an LLM behind any OpenAI-compatible endpoint for the entities of records, and place its answers in the texts.

Each text is a chat request: task, types and format in the system message, few-shot examples as turns, the text last.
Every answer is appended to OUTPUT_FILE.answers.jsonl as it comes, under a hash of all that was asked: the same command
again asks only for what is missing, other parameters ask anew, and nothing is paid for twice. A request that fails
after its retries is recorded and ends nothing; a reply that no retry mends (no such model, no right) ends the run with
the server's words. Mentions are placed all together; what is not in the text is counted, never guessed.

    python ner_prompt_openai.py --model M --base_url http://127.0.0.1:8000/v1 --test_file out/rare_en/test.jsonl \\
        --train_file out/rare_en/train.jsonl --num_shots 5 --output_file out/m.jsonl
    python ner_prompt_openai.py --model M --test_file out/rare_en/test.jsonl --output_file out/m.jsonl --dry_run

Reads   records as JSONL or IOB (.gz too); their `shots` and `passages`, if ner_rag.py wrote them; gold is never sent
Writes  OUTPUT_FILE: the records with `entities` predicted, `answer`, `status`, `dropped`, `usage`, `seconds`; its
        sidecar with tokens, cost and statuses; OUTPUT_FILE.answers.jsonl, the raw answers, which are worth keeping
Needs   an endpoint: OpenAI, Azure, vLLM, llama.cpp, Ollama, `transformers serve`; its key in the environment variable
        --api_key_env, if it wants one. Texts leave this machine only if NER_SEND_TEXT=1 is set
Source  the prompts' ideas: Lu et al. 2024 (tner), instruct-NER, PharmaCoNER study; GPT-NER (Wang et al. 2023)
Differs alignment: by tokens or strings, where tner takes the n-th tag for the n-th token, so that one echoed line
        shifts a sentence (micro F1 .3554 for .3659 of the same GPT-4 answers; --alignment position reproduces it);
        temperature 0, where tner and LLM-NER-clinical-text leave the server's default; failed requests: recorded, where
        tner takes O for all tokens; cut answers: what is complete is kept and marked, where others score an empty list
"""

import argparse
import asyncio
import contextlib
import hashlib
import json
import os
import random
import re
import signal
import sys
import time
from collections import Counter
from functools import partial
from itertools import chain
from pathlib import Path
from urllib.parse import urlparse

from utils import (
    FORMATS,
    INSTRUCTIONS,
    DataError,
    flat_view,
    is_named,
    lock,
    log,
    parse_answer,
    read_labels,
    read_lines,
    read_records,
    render_messages,
    run,
    to_json,
    types_of,
    write_jsonl,
    write_sidecar,
)

KEPT = ("id", "doc_id", "start", "text", "source", "pretokenized", "tokens", "offsets")  # tokens: of IOB alone
SHOWN = ("shots", "passages")
WORST = ("failed", "refused", "unparsable", "empty", "truncated", "salvaged", "ok")  # of several answers to one text
TRANSIENT = (408, 409, 429)  # and all from 500 on: worth another try
LONGEST_WAIT = 60.0  # seconds between two tries, unless the server's Retry-After says more
PATIENCE = 600.0  # seconds of Retry-After that are waited for at most
BYTES = 3.5  # of UTF-8 per token, about; for estimates, and where a server does not count
ANSWER = 100  # tokens of an answer, about, before there is one
FORMAT_WORDS = re.compile("response_?format|schema|json|grammar", re.I)
TOO_LONG = re.compile("context|too (long|large|many tokens)|maximum.{0,20}length|exceed", re.I)
LOOPBACK = ("localhost", "127.0.0.1", "::1")


class Stop(Exception):
    """The run must end: the server's words, or a limit that is reached."""


# ---------------------------------------------------------------------------- what is asked


def labels_of(args):
    """Return {type: description or ""}; types from --labels_file, training file, shots, or (with a warning) gold."""
    if args.labels_file:
        return read_labels(args.labels_file)
    if args.train_file:
        return dict.fromkeys(types_of(read_records(args.train_file)), "")
    shots = (shot for record in read_records(args.test_file) for shot in record.get("shots", ()))
    if found := types_of(shots):
        return dict.fromkeys(found, "")
    if found := types_of(read_records(args.test_file)):
        log(f"warning: the types come from the gold of {args.test_file}; give --labels_file or --train_file")
        return dict.fromkeys(found, "")
    raise DataError(f"{args.test_file}: no types to ask for; give --labels_file or --train_file")


def choose_shots(args, types):
    """Return the few-shot examples for all texts; DataError where one is a test text, or of a test document."""
    if not args.num_shots:
        return []
    pool, rng = list(read_records(args.train_file)), random.Random(args.seed)
    if args.shot_selection != "first":
        rng.shuffle(pool)
    chosen = pool[: args.num_shots]
    if args.shot_selection == "per_type":  # types in turn, and one text without entities
        empty = [record for record in pool if not record["entities"]][:1]
        chosen, wanted = [], Counter(dict.fromkeys(types, 0))
        while len(chosen) < args.num_shots - len(empty):
            rarest = min(wanted, key=wanted.get)
            fresh = [r for r in pool if r not in chosen and any(e["type"] == rarest for e in r["entities"])]
            if not fresh:
                del wanted[rarest]
                if not wanted:
                    break
                continue
            chosen.append(fresh[0])
            wanted.update(type_ for type_ in {e["type"] for e in fresh[0]["entities"]} if type_ in wanted)
        chosen += empty
    texts = {shot["text"].strip(): shot for shot in chosen}
    documents = {shot["doc_id"]: shot for shot in chosen if is_named(shot["doc_id"])}
    for record in read_records(args.test_file, args.limit):
        shot = texts.get(record["text"].strip()) or documents.get(record["doc_id"])
        if shot:
            raise DataError(f"{args.train_file}: shot {shot['id']!r} is record {record['id']!r} of {args.test_file}, "
                            "or of its document; take shots from another file")  # fmt: skip
    return chosen


def without_gold(record):
    """What may be known of a record: neither its entities nor the cuts that they make in its tokens."""
    names = KEPT if record.get("pretokenized") else KEPT[:-2]
    return {name: record[name] for name in (*names, *SHOWN) if name in record}


def requests_of(record, labels, shots, args):
    """Yield (types, messages, hash) of what is asked about a record: once, by type, and --num_samples times."""
    own = record.get("shots", shots)
    for types in [[type_] for type_ in labels] if args.one_type_per_prompt else [list(labels)]:
        messages = render_messages(record, types, args.format, own, record.get("passages", ()), labels,
                                   args.instruction, args.language, args.all_types)  # fmt: skip
        for sample in range(args.num_samples):
            asked = [args.model, messages, args.temperature, args.max_completion_tokens, args.extra_body,
                     args.response_format, sample]  # fmt: skip
            yield types, messages, hashlib.sha256(to_json(asked).encode("utf-8")).hexdigest()[:32]


def schema(types, format):
    """The JSON schema of an answer, in the form of the API's response_format; None for a format that is no JSON."""
    strings = {"type": "array", "items": {"type": "string"}}
    body = {"json": dict.fromkeys(types, strings)}
    entity = {"text": {"type": "string"}, "type": {"type": "string", "enum": types}, "start": {"type": "integer"},
              "end": {"type": "integer"}}  # fmt: skip
    entity = {"type": "object", "properties": entity, "required": list(entity), "additionalProperties": False}
    body["spans"] = {"entities": {"type": "array", "items": entity}}
    if format not in body:
        return None
    whole = {
        "type": "object",
        "properties": body[format],
        "required": list(body[format]),
        "additionalProperties": False,
    }
    return {"type": "json_schema", "json_schema": {"name": "entities", "strict": True, "schema": whole}}


# ---------------------------------------------------------------------------- answers that are kept


class Answers:
    """The log of raw answers: one JSON line each, appended and flushed at once; `lines` has them by their hash."""

    def __init__(self, path):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        self.path, self.file, at = path, open(path, "a+b"), 0  # noqa: SIM115 (closed by close)
        self.lines, self.used = {}, Counter()  # the best line for each hash; tokens of all lines
        lock(self.file, path)
        self.file.seek(0)
        for raw in self.file:
            try:
                if not raw.endswith(b"\n"):
                    self.file.truncate(at)  # killed while it wrote: the next line starts afresh
                    raise ValueError
                self.take(json.loads(raw))
            except (ValueError, TypeError, KeyError):
                log(f"warning: {path}: the line at byte {at} is cut or broken; what it answered is asked again")
            at += len(raw)

    def take(self, line):
        """Keep a line for its hash, and count what it cost; nothing worse replaces an answer."""
        self.used.update(line.get("usage") or {})
        before = self.lines.get(line["request"], {})
        if line.get("answer") or not before.get("answer"):
            self.lines[line["request"]] = line

    def add(self, line):
        try:
            self.file.write(to_json(line).encode("utf-8") + b"\n")
            self.file.flush()
        except OSError as error:
            error.filename = self.path
            raise
        self.take(line)

    def close(self):
        self.file.close()


# ---------------------------------------------------------------------------- the endpoint


def key_of(args):
    return (os.environ.get(args.api_key_env) or "none").strip()  # local servers want some string


def client_of(kind, args):
    """An openai client, AsyncOpenAI or OpenAI: no retries of its own, no redirects; loopback hosts through no proxy."""
    import openai

    transport = {"AsyncOpenAI": openai.DefaultAsyncHttpxClient, "OpenAI": openai.DefaultHttpxClient}[kind]
    http = transport(follow_redirects=False, trust_env=host_of(args) not in LOOPBACK)
    key = key_of(args)
    return getattr(openai, kind)(
        base_url=args.base_url, api_key=key, max_retries=0, timeout=args.timeout, http_client=http
    )


class Endpoint:
    """One server: what it accepts, what was paid, and when the next request may go."""

    def __init__(self, args, answers):
        self.args, self.counts, self.next, self.stop, self.reserved = args, Counter(), 0.0, None, 0.0
        self.answers, self.key = answers, key_of(args)
        auto = ["json_schema", "json_object", "none"] if args.format == "json" else ["json_schema", "none"]
        self.modes = auto if args.response_format == "auto" else [args.response_format]
        self.modes = self.modes if args.format in ("json", "spans") else ["none"]
        self.limit_name, self.proven = "max_completion_tokens", False  # proven: it took a request as we ask now
        self.known = any("answer" in line for line in answers.lines.values())

    def request(self, types, messages, tokens):
        """The parameters of one request."""
        body = {"model": self.args.model, "messages": messages, "temperature": self.args.temperature}
        if tokens:
            body[self.limit_name] = tokens
        form = {"json_schema": schema(types, self.args.format), "json_object": {"type": "json_object"}, "none": None}
        if form[self.modes[0]]:
            body["response_format"] = form[self.modes[0]]
        return body | (self.args.extra_body or {})

    def price_of(self, used):
        into, out = self.args.price or (0.0, 0.0)
        return (used["prompt_tokens"] * into + used["completion_tokens"] * out) / 1e6

    def estimate(self, messages, tokens):
        """What one request will cost, by the size of its messages and the answers so far."""
        into = sum(len(message["content"].encode("utf-8")) for message in messages) / BYTES
        out = tokens or self.counts["completion_tokens"] / max(1, self.counts["answers"]) or ANSWER
        return self.price_of({"prompt_tokens": into, "completion_tokens": out})

    def reserve(self, cost):
        """Set aside what a request will cost; stop where --max_cost, with all that was paid before, would be passed."""
        spent = self.price_of(self.answers.used)
        if self.args.max_cost is not None and spent + self.reserved + cost > self.args.max_cost:
            raise Stop(f"--max_cost {self.args.max_cost}: {spent:.4f} is spent, now and before, and the next "
                       "request might pass it")  # fmt: skip
        self.reserved += cost

    async def turn(self):
        """Wait until the next request may go, by --rpm."""
        if self.args.rpm:
            now = time.monotonic()
            self.next = max(self.next, now) + 60.0 / self.args.rpm
            await asyncio.sleep(self.next - 60.0 / self.args.rpm - now)

    async def ask(self, types, messages, tokens):
        """Return the line of one answer, after retries; one with an `error` where they did not help."""
        started, line, attempt, cost = time.monotonic(), {}, 0, self.estimate(messages, tokens)
        while attempt <= self.args.max_retries:
            await self.turn()
            if self.stop:
                raise self.stop
            self.reserve(cost)
            self.counts["requests"] += 1
            try:
                line, wait = await self.send(types, messages, tokens)
            finally:
                self.reserved -= cost
            if wait is None:
                break
            if wait >= 0:
                attempt += 1
                self.counts["retries"] += attempt <= self.args.max_retries
                backoff = min(LONGEST_WAIT, 0.5 * 2 ** (attempt - 1)) * (0.5 + random.random() / 2)
                await asyncio.sleep(max(wait, backoff) * (attempt <= self.args.max_retries))
        return line | {"seconds": round(time.monotonic() - started, 3)}

    async def send(self, types, messages, tokens):
        """One try: (line, None: final; -1: ask again in another way; else: try again after so many seconds)."""
        import openai

        mode = self.modes[0]
        try:
            # As chat.completions.create does, but without its walk through the body: a third more a second
            call = self.client.post("/chat/completions", cast_to=object, body=self.request(types, messages, tokens))
            reply = await asyncio.wait_for(call, self.args.timeout)
        except openai.APIStatusError as error:
            return self.refused(error, mode, messages)
        except (openai.APIConnectionError, TimeoutError, asyncio.TimeoutError) as error:
            return {"error": type(error).__name__}, 0.0
        except (openai.APIError, ValueError) as error:  # a body that is no JSON
            return {"error": f"{type(error).__name__}: not the reply of a chat endpoint"}, 0.0
        line = line_of(reply, messages)
        if "error" in line:
            return line, 0.0
        self.counts.update(line["usage"] | {"answers": 1})
        self.proven = True
        self.look_for_a_cut(messages, line["usage"]["prompt_tokens"])
        return line, None

    def refused(self, error, mode, messages):
        """What follows from a status that is no 200: another way to ask, a retry, or the end."""
        status, words = error.status_code, self.words(error, messages)
        line = {"error": f"{status}: {words}"}
        if error.code != "insufficient_quota" and (status in TRANSIENT or status >= 500):
            return line, seconds_of(error.response.headers.get("retry-after"))
        if status == 400 and re.search("content.{0,20}(filter|policy)", words, re.I | re.S):
            return {"answer": "", "finish_reason": "content_filter", "usage": {}}, None
        if status in (400, 413, 422) and (self.proven or status == 413 or TOO_LONG.search(words)):
            return line, None  # of this text alone
        if status in (400, 422) and mode != self.modes[0]:
            return line, -1  # another request has found out
        if status in (400, 422) and "max_completion_tokens" in words and self.limit_name in words:
            self.limit_name = "max_tokens"
            log("the server takes max_tokens, not max_completion_tokens")
            return line, -1
        if status in (400, 422) and len(self.modes) > 1 and FORMAT_WORDS.search(words):
            log(f"the server does not take response_format {self.modes.pop(0)}: {words}; asking with {self.modes[0]}")
            return line, -1
        if status in (400, 422) and self.known:
            return line, None
        raise Stop(f"{host_of(self.args)}: {status}: {words}; no retry can mend that")

    def words(self, error, messages):
        """The server's own words on one line, without the key, and not where they repeat what was sent."""
        body = error.body if isinstance(error.body, dict) else {}
        inner = body.get("error") if isinstance(body.get("error"), dict) else body
        words = inner.get("message") or inner.get("detail") or body.get("error") or error.response.reason_phrase
        words = " ".join(str(words if isinstance(words, str) else error.response.reason_phrase).split())[:300]
        for message in messages:
            text = " ".join(message["content"].split())
            if len(text) > 4 and any(text[i : i + 20] in words for i in range(0, max(1, len(text) - 19), 10)):
                return "(the server's words repeat the text and are not shown)"
        return words.replace(self.key, "***") if self.key != "none" else words

    def look_for_a_cut(self, messages, counted):
        """Warn, once, where the server counts far fewer tokens than the prompt must have."""
        characters = sum(len(message["content"]) for message in messages)
        if counted and counted < characters / 10 and not self.counts["cut"]:
            self.counts["cut"] += 1
            log(f"warning: the server counted {counted} prompt tokens for {characters} characters: it may have cut the "
                "prompt (Ollama: raise num_ctx)")  # fmt: skip


def seconds_of(header):
    """The seconds of a Retry-After header; 0 where it is a date, or nothing that can be read."""
    try:
        seconds = float(header or 0)
    except ValueError:
        return 0.0
    return min(seconds, PATIENCE) if seconds >= 0 else 0.0  # NaN is not


def line_of(body, messages=()):
    """What the log keeps of a chat completion, as a dict; {"error"} where it is none. Odd types are got over."""
    choices = body.get("choices") if isinstance(body, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(message, dict):
        return {"error": "not the reply of a chat endpoint"}
    said, refusal, usage = message.get("content"), message.get("refusal"), body.get("usage")
    if isinstance(said, list):  # parts
        said = "".join(str(part.get("text", "")) if isinstance(part, dict) else str(part) for part in said)
    usage = usage if isinstance(usage, dict) else {}
    details = usage.get("prompt_tokens_details")
    usage = usage | {"cached_tokens": details.get("cached_tokens") if isinstance(details, dict) else 0}
    used = {name: usage.get(name) for name in ("prompt_tokens", "completion_tokens", "cached_tokens")}
    used = {name: n if type(n) is int and n >= 0 else 0 for name, n in used.items()}
    answer = str(said or refusal or "").encode("utf-8", "replace").decode("utf-8")
    if not used["prompt_tokens"] and messages:  # a server that does not count
        used["prompt_tokens"] = round(sum(len(each["content"].encode("utf-8")) for each in messages) / BYTES)
        used["completion_tokens"] = round(len(answer.encode("utf-8")) / BYTES)
    reason = "content_filter" if refusal else choice.get("finish_reason")
    return {"answer": answer, "finish_reason": reason if isinstance(reason, str) else None, "usage": used}


async def ask_all(todo, total, answers, args):
    """Ask for all of `todo`, (types, messages, hash, tokens) each, --max_concurrency at a time; return the Endpoint.

    Where one must stop, no other begins, but what is under way is waited for: it will have been paid.
    """
    from tqdm import tqdm

    endpoint, loop = Endpoint(args, answers), asyncio.get_running_loop()
    if os.name != "nt":  # Windows has no such handlers
        loop.add_signal_handler(signal.SIGTERM, asyncio.current_task().cancel)
    with tqdm(total=total, disable=None, unit="request") as bar:

        async def work(some):
            for types, messages, request, tokens in some:
                if endpoint.stop:
                    return
                try:
                    answers.add({"request": request} | await endpoint.ask(types, messages, tokens))
                except (Stop, OSError) as error:
                    endpoint.stop = endpoint.stop or error
                bar.update()

        async with client_of("AsyncOpenAI", args) as endpoint.client:
            await work([next(todo)])  # alone: it finds out what the server takes
            tasks = [asyncio.create_task(work(todo)) for _ in range(args.max_concurrency)]  # each takes the next one
            try:
                await asyncio.gather(*tasks)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
    if endpoint.stop:
        raise endpoint.stop
    return endpoint


# ---------------------------------------------------------------------------- what becomes of answers


def read_answer(record, line, types, shots, args):
    """What a line of the log says about a record: see utils.parse_answer."""
    if "error" in line:
        return {"entities": [], "status": "failed", "dropped": []}
    parsed = parse_answer(line["answer"], record, types, args.format, args.alignment, shots)
    if line.get("finish_reason") == "content_filter":
        return parsed | {"entities": [], "status": "refused", "dropped": []}
    if line.get("finish_reason") == "length":
        return parsed | {"status": "truncated"}
    return parsed


def agreed(found):
    """[(item, share)] of what at least half of several lists hold, each item once a list; items are dicts."""
    first, counts = {}, Counter()
    for items in found:
        keys = {to_json(sorted(item.items())): item for item in items}
        first = keys | first
        counts.update(keys.keys())
    return [(item, counts[key] / len(found)) for key, item in first.items() if 2 * counts[key] >= len(found)]


def predict(record, labels, shots, lines, args):
    """The prediction record of a record, from the log's lines; None where one is missing."""
    asked = [(types, lines.get(request)) for types, _, request in requests_of(record, labels, shots, args)]
    if any(line is None for _, line in asked):
        return None
    own = record.get("shots", shots)
    parsed = [read_answer(record, line, types, own, args) for types, line in asked]
    samples = [parsed[i :: args.num_samples] for i in range(args.num_samples)]  # each of all the types
    statuses = [min((part["status"] for part in sample), key=WORST.index) for sample in samples]
    heard = [sample for sample, status in zip(samples, statuses, strict=True) if status != "failed"] or samples[:1]
    entities, dropped = ([list(chain.from_iterable(part[name] for part in sample)) for sample in heard]
                         for name in ("entities", "dropped"))  # fmt: skip
    if args.num_samples > 1:
        entities = [item | {"score": round(share, 4)} for item, share in agreed(entities)]
        dropped = [item for item, _ in agreed(dropped)]
    else:
        entities, dropped = entities[0], dropped[0]
    entities.sort(key=lambda e: (e["start"], -e["end"], e["type"]))
    kept = {name: record[name] for name in KEPT if name in record}
    pred = flat_view(kept | {"entities": entities}, cut=False)[0]
    said = [line.get("answer", "") for _, line in asked]
    used = Counter()
    for _, line in asked:
        used.update(line.get("usage") or {})
    status = Counter([status for status in statuses if status != "failed"] or statuses).most_common(1)[0][0]
    pred |= {"answer": said[0] if len(said) == 1 else said, "status": status, "dropped": dropped, "usage": dict(used)}
    return pred | {"seconds": round(sum(line.get("seconds", 0) for _, line in asked), 3)}


def pending(records, labels, shots, lines, args):
    """Return [(record, number of its request, tokens or None)] of what is still to be asked, each hash once."""
    todo = {}
    for record in records:
        for number, (types, _, request) in enumerate(requests_of(record, labels, shots, args)):
            line, tokens = lines.get(request), args.max_completion_tokens
            if line and args.retry_failed:
                status = read_answer(record, line, types, (), args)["status"]
                if status == "truncated":
                    tokens = 2 * (line.get("usage", {}).get("completion_tokens") or args.max_completion_tokens or 512)
                line = line if status in ("ok", "salvaged") else None
            if not line:
                todo.setdefault(request, (record, number, tokens))
    return list(todo.values())


def given_answers(args, records):
    """{record id: raw answer} of --answers_file: JSONL of id and answer, or replies behind ###### in record order."""
    lines = [line for _, line in read_lines(args.answers_file)]
    if lines and lines[0].lstrip().startswith("{"):
        try:
            rows = [json.loads(line) for line in lines if line.strip()]
            return {row["id"]: str(row["answer"]) for row in rows}
        except (ValueError, TypeError, KeyError):
            raise DataError(f"{args.answers_file}: not JSON lines with id and answer; mend it") from None
    replies = re.split(r"^######[^\n]*\n", "\n".join([*lines, ""]), flags=re.M)[1:]
    if len(replies) != len(records):
        raise DataError(f"{args.answers_file}: {len(replies)} answers, but {args.test_file} has {len(records)} "
                        "records; give each record one, in order")  # fmt: skip
    return {record["id"]: reply for record, reply in zip(records, replies, strict=True)}


# ---------------------------------------------------------------------------- the Batch API

BATCH_ENDED = ("completed", "expired", "cancelled", "failed")
BATCH_REQUESTS, BATCH_BYTES = 50_000, 200_000_000  # of one file, at most: OpenAI's limits


def batch(todo, labels, shots, answers, args):
    """--batch submit, status or fetch, with OUTPUT_FILE.batch.json; whether all answers have been fetched."""
    state, ids = Path(f"{args.output_file}.batch.json"), []
    with client_of("OpenAI", args) as client:
        if args.batch == "submit":
            for rows in batch_files(todo, labels, shots, answers, args):
                sent = client.files.create(file=("requests.jsonl", b"".join(rows)), purpose="batch")
                made = client.batches.create(input_file_id=sent.id, endpoint="/v1/chat/completions",
                                             completion_window="24h")  # fmt: skip
                ids.append(made.id)
                state.write_text(json.dumps(ids), encoding="utf-8")
            log(f"{len(todo):,} requests in {len(ids)} batches; --batch status shows them, --batch fetch gets them")
            return False
        found = [client.batches.retrieve(id_) for id_ in json.loads(state.read_text(encoding="utf-8"))]
        for one in found:
            log(f"{one.id}: {one.status}")
        if args.batch == "status" or any(one.status not in BATCH_ENDED for one in found):
            return False
        files = [file for one in found for file in (one.output_file_id, one.error_file_id) if file]
        rows = [raw for file in files for raw in client.files.content(file).text.split("\n") if raw.strip()]
    for raw in rows:
        answers.add(batch_line(json.loads(raw)))
    state.unlink()
    if not rows:
        raise DataError(f"{state}: the batches ended without an answer; --batch submit sends them again")
    return True


def check_batch(args):
    """Refuse what would pay twice: a run, or a second batch, while one is under way; or fetching where none is."""
    state = Path(f"{args.output_file}.batch.json")
    if state.exists() and args.batch in (None, "submit"):
        raise DataError(
            f"{state}: batches are under way; fetch them first (--batch fetch), or delete it to forget them"
        )
    if not state.exists() and args.batch in ("status", "fetch"):
        raise DataError(f"{state}: no batch is under way; --batch submit starts one")


def batch_files(todo, labels, shots, answers, args):
    """Yield the rows of each file to submit, as bytes; no file is larger than the API takes."""
    endpoint, rows, size = Endpoint(args, answers), [], 0
    for record, number, tokens in todo:
        types, messages, request = list(requests_of(record, labels, shots, args))[number]
        endpoint.reserve(endpoint.estimate(messages, tokens))
        body = endpoint.request(types, messages, tokens)
        row = {"custom_id": request, "method": "POST", "url": "/v1/chat/completions", "body": body}
        row = to_json(row).encode("utf-8") + b"\n"
        if rows and (len(rows) == BATCH_REQUESTS or size + len(row) > BATCH_BYTES):
            yield rows
            rows, size = [], 0
        rows.append(row)
        size += len(row)
    if rows:
        yield rows


def batch_line(row):
    """The line of the log for a row of a batch's output; of an error, one that --retry_failed asks again."""
    body = (row.get("response") or {}).get("body") or {}
    line = {"error": str(row["error"])[:300]} if row.get("error") else line_of(body)
    return {"request": row["custom_id"]} | line


# ---------------------------------------------------------------------------- command line


def show_prompt(todo, labels, shots, args):
    """--dry_run: print one whole prompt, and on stderr what all of them would be."""
    if not todo:
        log("nothing is left to ask")
        return
    size = 0
    for record, number, _ in todo:
        _, messages, _ = list(requests_of(record, labels, shots, args))[number]
        size += sum(len(message["content"].encode("utf-8")) for message in messages)
    record, number, _ = todo[0]
    for message in list(requests_of(record, labels, shots, args))[number][1]:
        print(f"--- {message['role']}\n{message['content']}")
    into, out = size / BYTES, len(todo) * (args.max_completion_tokens or ANSWER)
    cost = f", cost {(into * args.price[0] + out * args.price[1]) / 1e6:.2f}" if args.price else ""
    seconds = len(todo) / args.max_concurrency
    log(f"{len(todo):,} requests, about {into:,.0f} prompt tokens and {out:,} of answers{cost}; at a second each and "
        f"--max_concurrency {args.max_concurrency}: {seconds:,.0f} seconds; nothing was sent")  # fmt: skip


def host_of(args):
    url = args.base_url or os.environ.get("OPENAI_BASE_URL") or "https://api.openai.com/v1"
    return urlparse(url).hostname or url


def check_host(args):
    """Say where texts go; refuse to send them off this machine unless NER_SEND_TEXT=1 says that they may leave."""
    host = host_of(args)
    if host not in LOOPBACK and os.environ.get("NER_SEND_TEXT") != "1":
        raise DataError(f"{host}: not this machine, and texts would go there; if they may leave, set NER_SEND_TEXT=1")
    log(f"texts are sent to {host}")


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument_group("data").add_argument
    add("--test_file", required=True, metavar="FILE", help="records whose entities are wanted")
    add("--output_file", required=True, metavar="JSONL", help="predictions")
    add("--train_file", metavar="FILE", help="for types and few-shot examples (default: %(default)s)")
    add("--num_shots", type=int, default=0, metavar="N", help="examples for each text (default: %(default)s)")
    add("--shot_selection", choices=("random", "per_type", "first"), default="per_type",
        help="of them; records with `shots` use theirs (default: %(default)s)")  # fmt: skip
    add("--seed", type=int, default=42, help="of the selection (default: %(default)s)")
    add("--limit", type=int, metavar="N", help="ask for the first N records alone (default: %(default)s)")
    add("--answers_file", metavar="FILE", help="place these answers, and ask nobody: JSONL of id and answer, or "
        "replies behind ###### lines, in record order (default: %(default)s)")  # fmt: skip
    add = parser.add_argument_group("prompt").add_argument
    add("--format", choices=FORMATS, default="json", help="of the answers (default: %(default)s)")
    add("--labels_file", metavar="JSON", help="type to description; its types are asked for (default: %(default)s)")
    add("--instruction_file", metavar="FILE", help="in place of the task (default: %(default)s)")
    add("--language", choices=tuple(INSTRUCTIONS), default="en", help="of the task (default: %(default)s)")
    add("--one_type_per_prompt", action="store_true", help="a request for each type (default: %(default)s)")
    add("--all_types", action="store_true", help="answers name types without a mention, too (default: %(default)s)")
    add("--alignment", choices=("normalized", "exact", "fuzzy", "position"), default="normalized",
        help="of mentions to the text; position: of iob, for one paper (default: %(default)s)")  # fmt: skip
    add = parser.add_argument_group("endpoint").add_argument
    add("--model", default="", help="its name at the endpoint")
    add("--base_url", metavar="URL", help="default: OPENAI_BASE_URL, or OpenAI")
    add(
        "--api_key_env", default="OPENAI_API_KEY", metavar="NAME", help="the variable of the key (default: %(default)s)"
    )
    add("--response_format", choices=("auto", "none", "json_object", "json_schema"), default="auto",
        help="auto: the strictest that the server takes (default: %(default)s)")  # fmt: skip
    add("--temperature", type=float, default=0.0, help="default: %(default)s")
    add("--max_completion_tokens", type=int, metavar="N", help="default: the server's")
    add("--extra_body", type=json.loads, metavar="JSON", help="more parameters (default: %(default)s)")
    add("--num_samples", type=int, default=1, metavar="N", help="answers that vote (default: %(default)s)")
    add = parser.add_argument_group("load and cost").add_argument
    add("--max_concurrency", type=int, default=16, metavar="N", help="requests at a time (default: %(default)s)")
    add("--max_retries", type=int, default=6, metavar="N", help="of one request (default: %(default)s)")
    add("--timeout", type=float, default=120.0, metavar="SECONDS", help="default: %(default)s")
    add("--rpm", type=float, metavar="N", help="requests a minute at most (default: %(default)s)")
    add("--price", nargs=2, type=float, metavar=("IN", "OUT"), help="per million tokens (default: %(default)s)")
    add("--max_cost", type=float, metavar="X", help="stop before it is passed (default: %(default)s)")
    add("--dry_run", action="store_true", help="print a prompt and an estimate; send nothing (default: %(default)s)")
    add("--retry_failed", action="store_true", help="ask again what failed, was cut (with twice the tokens), refused "
        "or not understood (default: %(default)s)")  # fmt: skip
    add("--batch", choices=("submit", "status", "fetch"), help="the Batch API (default: %(default)s)")
    args = parser.parse_args(argv)
    check_args(args, parser)
    return args


def check_numbers(args, parser):
    """Refuse numbers that mean nothing, and an address with a password."""
    least = {"num_samples": 1, "max_concurrency": 1, "max_retries": 0, "num_shots": 0, "limit": 1, "rpm": 1e-6,
             "timeout": 1e-6, "max_completion_tokens": 1, "max_cost": 0, "seed": 0}  # fmt: skip
    for name, low in least.items():
        if getattr(args, name) is not None and not getattr(args, name) >= low:
            parser.error(f"--{name}: {'more than 0' if low == 1e-6 else f'at least {low}'}")
    if args.base_url and "@" in urlparse(args.base_url).netloc:
        parser.error("--base_url: no name or password in it; a key belongs in the variable of --api_key_env")


def check_args(args, parser):
    """Refuse, as usage errors, flags that don't go together."""
    check_numbers(args, parser)
    asks = not (args.dry_run or args.answers_file)
    if asks and not args.model:
        parser.error("--model: name the model to ask")
    if args.num_shots and not args.train_file:
        parser.error("--num_shots: give the --train_file that they come from")
    if args.alignment == "position" and args.format != "iob":
        parser.error("--alignment position is for --format iob")
    if args.answers_file and (args.num_samples > 1 or args.one_type_per_prompt or args.batch):
        parser.error(
            "--answers_file holds one answer for each record: not with --num_samples, --one_type_per_prompt, --batch"
        )
    if args.max_cost is not None and not args.price:
        parser.error("--max_cost: give the --price of tokens, too")
    if args.extra_body is not None and not isinstance(args.extra_body, dict):
        parser.error("--extra_body: a JSON object")
    inputs = (args.test_file, args.train_file, args.answers_file, args.labels_file, args.instruction_file)
    if os.path.realpath(args.output_file) in {os.path.realpath(path) for path in inputs if path}:
        parser.error("--output_file: this file is an input; name another")


def main(argv=None):
    args, started = parse_args(argv), time.time()
    args.instruction = None
    if args.instruction_file:
        args.instruction = Path(args.instruction_file).read_text(encoding="utf-8").strip()
    labels = labels_of(args)
    shots = choose_shots(args, list(labels))
    records = [without_gold(record) for record in read_records(args.test_file, args.limit)]
    if args.answers_file:
        given = given_answers(args, records)
        lines = {request: {"answer": given[record["id"]]} for record in records if record["id"] in given
                 for _, _, request in requests_of(record, labels, shots, args)}  # fmt: skip
        return finish(records, labels, shots, lines, None, args, started)
    if args.dry_run:
        show_prompt(pending(records, labels, shots, {}, args), labels, shots, args)
        return 0
    check_host(args)
    with contextlib.closing(Answers(f"{args.output_file}.answers.jsonl")) as answers:
        check_batch(args)
        todo = pending(records, labels, shots, answers.lines, args)
        if answers.lines:
            log(f"{answers.path}: holds {len(answers.lines):,} answers (of any parameters); {len(todo):,} requests "
                "are left to make")  # fmt: skip
        endpoint = None
        if args.batch and not ask_politely(partial(batch, todo, labels, shots), answers, args):
            return 0
        if todo and not args.batch:
            endpoint = ask_politely(partial(ask, todo, labels, shots), answers, args)
        return finish(records, labels, shots, answers.lines, endpoint, args, started)


def ask(todo, labels, shots, answers, args):
    """Run the requests, SIGTERM ends with the exit status 143."""
    asked = ((*list(requests_of(record, labels, shots, args))[number], tokens) for record, number, tokens in todo)
    try:
        return asyncio.run(ask_all(asked, len(todo), answers, args))
    except asyncio.CancelledError:
        log(f"error: terminated; {len(answers.lines):,} answers are kept in {answers.path}")
        sys.exit(143)


def ask_politely(call, answers, args):
    """call(answers, args); where the server, or --max_cost, ends it: one line, without the key."""
    import openai

    def kept():
        return f"({len(answers.lines):,} answers are kept in {answers.path})"

    try:
        return call(answers, args)
    except Stop as error:
        raise DataError(f"{error} {kept()}") from None
    except openai.APIError as error:
        what = f"status {error.status_code}" if isinstance(error, openai.APIStatusError) else type(error).__name__
        raise DataError(f"{host_of(args)}: {what}; try again {kept()}") from None


def finish(records, labels, shots, lines, endpoint, args, started):
    """Write the predictions in the records' order, their sidecar, and the last line."""
    counts, statuses, reasons, used = Counter(), Counter(), Counter(), Counter()

    def predictions():
        for record in records:
            pred = predict(record, labels, shots, lines, args)
            counts["records"] += 1
            if pred is None:
                counts["missing"] += 1
                continue
            counts["entities"] += len(pred["entities"])
            statuses[pred["status"]] += 1
            reasons.update(item["reason"] for item in pred["dropped"])
            used.update(pred["usage"])
            yield pred

    write_jsonl(args.output_file, predictions())
    into, out = args.price or (None, None)
    cost = (used["prompt_tokens"] * into + used["completion_tokens"] * out) / 1e6 if args.price else None
    asked = endpoint.counts if endpoint else Counter()
    facts = {"model": args.model, "counts": counts, "statuses": statuses, "dropped": reasons, "tokens": used,
             "cost": cost, "requests": asked["requests"], "retries": asked["retries"]}  # fmt: skip
    inputs = [path for path in (args.test_file, args.train_file, args.labels_file, args.answers_file) if path]
    write_sidecar(args.output_file, args, inputs, started, ("openai",), **facts)
    if counts["missing"]:
        log(f"warning: {counts['missing']:,} records have no answer and are left out")
    if counts["records"] and statuses["failed"] == counts["records"]:
        why = next(line["error"] for line in lines.values() if "error" in line)
        log(f"error: {args.output_file}: no record got an answer ({why}); --retry_failed asks again")
    elif statuses["failed"]:
        log(f"warning: {statuses['failed']:,} records failed; --retry_failed asks again")
    told = ", ".join(f"{n:,} {status}" for status, n in statuses.most_common())
    lost = ", ".join(f"{n:,} {reason}" for reason, n in reasons.most_common()) or "none"
    log(f"{args.output_file}: {counts['records']:,} records ({told}), {counts['entities']:,} entities, mentions "
        f"dropped: {lost}")  # fmt: skip
    price = f", cost {cost:.4f}" if args.price else ""
    log(f"{asked['requests']:,} requests, {asked['retries']:,} retries, {used['prompt_tokens']:,} prompt tokens "
        f"({used['cached_tokens']:,} cached), {used['completion_tokens']:,} of answers{price}, "
        f"{time.time() - started:.1f} s")  # fmt: skip
    return int(statuses["failed"] == counts["records"])


if __name__ == "__main__":
    sys.exit(run(main))

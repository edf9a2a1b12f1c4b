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
from itertools import chain
from pathlib import Path
from urllib.parse import urlparse

from utils import (
    FORMATS,
    INSTRUCTIONS,
    DataError,
    flat_view,
    log,
    parse_answer,
    read_lines,
    read_records,
    render_messages,
    run,
    to_json,
    write_jsonl,
    write_sidecar,
)

KEPT = ("id", "doc_id", "start", "text", "source", "pretokenized", "tokens", "offsets")  # tokens: of IOB alone
SHOWN = ("shots", "passages")
WORST = ("failed", "refused", "unparsable", "empty", "truncated", "salvaged", "ok")  # of several answers to one text
TRANSIENT = (408, 409, 429)  # and all from 500 on: worth another try
LONGEST_WAIT = 60.0  # seconds between two tries, unless the server's Retry-After says more
SURE = 600.0  # seconds of Retry-After that are waited for at most
CHARACTERS = 3.5  # per token, about, in English; for estimates before the server has counted
LOOPBACK = ("localhost", "127.0.0.1", "::1", "0.0.0.0")


class Stop(Exception):
    """The run must end: the server's words, or a limit that is reached."""


# ---------------------------------------------------------------------------- what is asked


def read_labels(args):
    """Return {type: description or ""}; types from --labels_file, training file, shots, or (with a warning) gold."""
    if args.labels_file:
        text = Path(args.labels_file).read_text(encoding="utf-8")
        try:
            labels = json.loads(text)
            if not isinstance(labels, dict) or not all(isinstance(each, str) for each in labels.values()) or not labels:
                raise ValueError
        except ValueError:
            raise DataError(f"{args.labels_file}: not a JSON object of type and description; write one") from None
        return labels
    if args.train_file:
        return dict.fromkeys(types_of(read_records(args.train_file)), "")
    shots = (shot for record in read_records(args.test_file) for shot in record.get("shots", ()))
    if found := types_of(shots):
        return dict.fromkeys(found, "")
    if found := types_of(read_records(args.test_file)):
        log(f"warning: the types come from the gold of {args.test_file}; give --labels_file or --train_file")
        return dict.fromkeys(found, "")
    raise DataError(f"{args.test_file}: no types to ask for; give --labels_file or --train_file")


def types_of(records):
    return sorted({entity["type"] for record in records for entity in record["entities"]})


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
    texts, documents = {shot["text"].strip(): shot for shot in chosen}, {shot["doc_id"]: shot for shot in chosen}
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
        self.path, self.file, self.lines, at = path, open(path, "a+b"), {}, 0  # noqa: SIM115 (closed by close)
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
        """Keep a line for its hash; an error does not replace an answer that was cut."""
        if "error" not in line or "answer" not in self.lines.get(line["request"], {}):
            self.lines[line["request"]] = line

    def add(self, line):
        self.file.write(to_json(line).encode("utf-8") + b"\n")
        self.file.flush()
        self.take(line)

    def close(self):
        self.file.close()


def lock(file, path):
    """Let no second run write to a file; the lock ends with the process. Where there is no flock, there is none."""
    with contextlib.suppress(ImportError):
        import fcntl

        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise DataError(
                f"{path}: another run is writing to it; wait for it, or choose another --output_file"
            ) from None


# ---------------------------------------------------------------------------- the endpoint


class Endpoint:
    """One server: what it accepts, what was paid, and when the next request may go."""

    def __init__(self, args):
        import openai

        key = os.environ.get(args.api_key_env) or "none"  # local servers want some string
        self.client = openai.AsyncOpenAI(base_url=args.base_url, api_key=key, max_retries=0, timeout=args.timeout)
        self.args, self.key, self.counts, self.next = args, key, Counter(), 0.0
        auto = ["json_schema", "json_object", "none"] if args.format == "json" else ["json_schema", "none"]
        self.modes = auto if args.response_format == "auto" else [args.response_format]
        self.modes = self.modes if args.format in ("json", "spans") else ["none"]
        self.limit_name, self.proven = "max_completion_tokens", False

    def request(self, types, messages, tokens):
        """The parameters of one request."""
        body = {"model": self.args.model, "messages": messages, "temperature": self.args.temperature}
        if tokens:
            body[self.limit_name] = tokens
        form = {"json_schema": schema(types, self.args.format), "json_object": {"type": "json_object"}, "none": None}
        if form[self.modes[0]]:
            body["response_format"] = form[self.modes[0]]
        return body | ({"extra_body": self.args.extra_body} if self.args.extra_body else {})

    def cost(self):
        """What the answers so far cost, by --price."""
        into, out = self.args.price or (0.0, 0.0)
        return (self.counts["prompt_tokens"] * into + self.counts["completion_tokens"] * out) / 1e6

    async def turn(self):
        """Wait until the next request may go, by --rpm; stop where --max_cost would be passed."""
        if self.args.max_cost is not None and self.cost() + self.expected() > self.args.max_cost:
            raise Stop(f"--max_cost {self.args.max_cost}: {self.cost():.4f} is spent, and the next request would pass "
                       "it; the same command with more goes on from here")  # fmt: skip
        if self.args.rpm:
            now = time.monotonic()
            self.next = max(self.next, now) + 60.0 / self.args.rpm
            await asyncio.sleep(self.next - 60.0 / self.args.rpm - now)

    def expected(self):
        """What the requests under way, and one more, will cost: as much each as those before."""
        return self.cost() / max(1, self.counts["answers"]) * (self.counts["under way"] + 1)

    async def ask(self, types, messages, tokens):
        """Return the line of one answer, after retries; one with an `error` where they did not help."""
        started, why = time.monotonic(), ""
        for attempt in range(self.args.max_retries + 1):
            await self.turn()
            self.counts["requests"] += 1
            self.counts["under way"] += 1
            try:
                reply, wait = await self.send(types, messages, tokens)
            finally:
                self.counts["under way"] -= 1
            while reply is None and wait is None:  # asked in another way: no retry
                self.counts["requests"] += 1
                reply, wait = await self.send(types, messages, tokens)
            if not isinstance(reply, str):
                return reply | {"seconds": round(time.monotonic() - started, 3)}
            why = reply
            if attempt < self.args.max_retries:
                self.counts["retries"] += 1
                backoff = min(LONGEST_WAIT, 0.5 * 2**attempt) * (0.5 + random.random() / 2)
                await asyncio.sleep(max(wait, backoff))
        return {"error": why, "seconds": round(time.monotonic() - started, 3)}

    async def send(self, types, messages, tokens):
        """One try: (line, _), (what went wrong, seconds to wait at least), or (None, None): ask again, otherwise."""
        import openai

        limit = self.limit_name
        try:
            reply = await self.client.chat.completions.create(**self.request(types, messages, tokens))
        except openai.APIStatusError as error:
            return self.refused(error, limit)
        except openai.APIConnectionError as error:  # and its time-outs
            return type(error).__name__, 0.0
        except (openai.APIError, ValueError) as error:  # a body that is no JSON
            return f"{type(error).__name__}: not the reply of a chat endpoint", 0.0
        choices = getattr(reply, "choices", None)
        if not choices or choices[0].message is None:
            return "not the reply of a chat endpoint", 0.0
        message, usage = choices[0].message, getattr(reply, "usage", None)
        details = getattr(usage, "prompt_tokens_details", None)
        used = {"prompt_tokens": getattr(usage, "prompt_tokens", 0) or 0,
                "completion_tokens": getattr(usage, "completion_tokens", 0) or 0,
                "cached_tokens": getattr(details, "cached_tokens", 0) or 0}  # fmt: skip
        self.counts.update(used | {"answers": 1})
        self.proven = True
        self.look_for_a_cut(messages, used["prompt_tokens"])
        reason = "content_filter" if getattr(message, "refusal", None) else choices[0].finish_reason
        answer = message.content or getattr(message, "refusal", None) or ""
        return {"answer": answer, "finish_reason": reason, "usage": used}, None

    def refused(self, error, limit):
        """What follows from a status that is no 200: another way to ask, a retry, or the end."""
        status, words = error.status_code, self.words(error)
        if status in TRANSIENT or status >= 500:
            try:
                wait = float(error.response.headers.get("retry-after") or 0)
            except ValueError:  # a date
                wait = 0.0
            return f"{status}: {words}", min(wait, SURE)
        if status == 400 and "content" in words.lower() and re.search("filter|policy", words, re.I):
            self.counts["answers"] += 1
            return {"answer": "", "finish_reason": "content_filter", "usage": {}}, None
        if status in (400, 413, 422) and self.proven:  # of this text alone: too long, say
            return {"error": f"{status}: {words}"}, None
        if status in (400, 422) and limit == "max_completion_tokens" and re.search("max_(completion_)?tokens", words):
            self.limit_name = "max_tokens"
            log("the server takes max_tokens, not max_completion_tokens")
            return None, None
        if status in (400, 422) and len(self.modes) > 1:
            log(f"the server does not take response_format {self.modes.pop(0)}: {words}; asking with {self.modes[0]}")
            return None, None
        raise Stop(f"{self.args.base_url or 'the endpoint'}: {status}: {words}; no retry can mend that")

    def words(self, error):
        """The server's own words, without the key and on one line."""
        body = error.body if isinstance(error.body, dict) else {}
        inner = body.get("error") if isinstance(body.get("error"), dict) else body
        words = str(inner.get("message") or inner.get("detail") or error.response.text or error)
        words = words.replace(self.key, "***") if self.key != "none" else words
        return " ".join(words.split())[:300]

    def look_for_a_cut(self, messages, counted):
        """Warn, once, where the server counts far fewer tokens than the prompt must have."""
        characters = sum(len(message["content"]) for message in messages)
        if counted and counted < characters / 10 and not self.counts["cut"]:
            self.counts["cut"] += 1
            log(f"warning: the server counted {counted} prompt tokens for {characters} characters: it may have cut the "
                "prompt (Ollama: raise num_ctx)")  # fmt: skip


async def ask_all(todo, total, answers, args):
    """Ask for all of `todo`, (types, messages, hash, tokens) each, --max_concurrency at a time; return the Endpoint."""
    from tqdm import tqdm

    endpoint, loop = Endpoint(args), asyncio.get_running_loop()
    with contextlib.suppress(NotImplementedError):  # no such handlers on Windows
        loop.add_signal_handler(signal.SIGTERM, asyncio.current_task().cancel)
    with tqdm(total=total, disable=None, unit="request") as bar:

        async def work(some):
            for types, messages, request, tokens in some:
                answers.add({"request": request} | await endpoint.ask(types, messages, tokens))
                bar.update()

        await work([next(todo)])  # alone: it finds out what the server takes
        tasks = [asyncio.create_task(work(todo)) for _ in range(args.max_concurrency)]  # each takes the next one
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await endpoint.client.close()
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
    status = Counter(statuses).most_common(1)[0][0]
    pred |= {"answer": said[0] if len(said) == 1 else said, "status": status, "dropped": dropped, "usage": dict(used)}
    return pred | {"seconds": round(sum(line.get("seconds", 0) for _, line in asked), 3)}


def pending(records, labels, shots, lines, args):
    """Return [(record, number of its request, tokens or None)] of what is still to be asked."""
    todo = []
    for record in records:
        for number, (types, _, request) in enumerate(requests_of(record, labels, shots, args)):
            line, tokens = lines.get(request), args.max_completion_tokens
            if line and args.retry_failed:
                status = read_answer(record, line, types, (), args)["status"]
                if status == "truncated":
                    tokens = 2 * (line.get("usage", {}).get("completion_tokens") or args.max_completion_tokens or 512)
                line = line if status in ("ok", "salvaged") else None
            if not line:
                todo.append((record, number, tokens))
    return todo


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
    import openai

    state = Path(f"{args.output_file}.batch.json")
    key = os.environ.get(args.api_key_env) or "none"
    client = openai.OpenAI(base_url=args.base_url, api_key=key, timeout=args.timeout)
    if args.batch == "submit":
        if state.exists():
            raise DataError(f"{state}: batches are under way; fetch them first (--batch fetch)")
        ids = []
        for rows in batch_files(todo, labels, shots, args):
            sent = client.files.create(file=("requests.jsonl", b"".join(rows)), purpose="batch")
            made = client.batches.create(input_file_id=sent.id, endpoint="/v1/chat/completions",
                                         completion_window="24h")  # fmt: skip
            ids.append(made.id)
            state.write_text(json.dumps(ids), encoding="utf-8")
        log(f"{len(todo):,} requests in {len(ids)} batches; --batch status looks after them, --batch fetch gets them")
        return False
    if not state.exists():
        raise DataError(f"{state}: no batch is under way; --batch submit starts one")
    found = [client.batches.retrieve(id_) for id_ in json.loads(state.read_text(encoding="utf-8"))]
    for one in found:
        log(f"{one.id}: {one.status}")
    if args.batch == "status" or any(one.status not in BATCH_ENDED for one in found):
        return False
    for file_id in chain.from_iterable((one.output_file_id, one.error_file_id) for one in found):
        for raw in client.files.content(file_id).text.splitlines() if file_id else ():
            answers.add(batch_line(json.loads(raw)))
    state.unlink()
    return True


def batch_files(todo, labels, shots, args):
    """Yield the rows of each file to submit, as bytes; no file is larger than the API takes."""
    endpoint, rows, size = Endpoint(args), [], 0
    for record, number, tokens in todo:
        types, messages, request = list(requests_of(record, labels, shots, args))[number]
        body = endpoint.request(types, messages, tokens)
        body |= body.pop("extra_body", {})
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
    if row.get("error") or not body.get("choices"):
        return {"request": row["custom_id"], "error": str(row.get("error") or body.get("error") or "no answer")[:300]}
    choice, usage = body["choices"][0], body.get("usage") or {}
    used = {name: usage.get(name) or 0 for name in ("prompt_tokens", "completion_tokens")}
    used["cached_tokens"] = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    return {"request": row["custom_id"], "answer": choice["message"].get("content") or "",
            "finish_reason": choice.get("finish_reason"), "usage": used}  # fmt: skip


# ---------------------------------------------------------------------------- command line


def show_prompt(todo, labels, shots, args):
    """--dry_run: print one whole prompt, and on stderr what all of them would be."""
    if not todo:
        log("nothing is left to ask")
        return
    characters = 0
    for record, number, _ in todo:
        _, messages, _ = list(requests_of(record, labels, shots, args))[number]
        characters += sum(len(message["content"]) for message in messages)
    record, number, _ = todo[0]
    for message in list(requests_of(record, labels, shots, args))[number][1]:
        print(f"--- {message['role']}\n{message['content']}")
    into, out = characters / CHARACTERS, len(todo) * (args.max_completion_tokens or 100)
    cost = f", cost {(into * args.price[0] + out * args.price[1]) / 1e6:.2f}" if args.price else ""
    seconds = len(todo) / args.max_concurrency
    log(f"{len(todo):,} requests, about {into:,.0f} prompt tokens and {out:,} of answers{cost}; at a second each and "
        f"--max_concurrency {args.max_concurrency}: {seconds:,.0f} seconds; nothing was sent")  # fmt: skip


def check_host(args):
    """Say where texts go; refuse to send them off this machine unless NER_SEND_TEXT=1 says that they may leave."""
    url = args.base_url or os.environ.get("OPENAI_BASE_URL") or "https://api.openai.com/v1"
    host = urlparse(url).hostname or url
    if host not in LOOPBACK and os.environ.get("NER_SEND_TEXT") != "1":
        raise DataError(
            f"{host}: is not this machine, and texts would be sent to it; if they may leave, set NER_SEND_TEXT=1"
        )
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


def check_args(args, parser):
    """Refuse, as usage errors, flags that don't go together."""
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
    least = {"num_samples": 1, "max_concurrency": 1, "max_retries": 0, "num_shots": 0}
    for name, low in least.items():
        if getattr(args, name) < low:
            parser.error(f"--{name}: at least {low}")
    inputs = (args.test_file, args.train_file, args.answers_file, args.labels_file, args.instruction_file)
    if os.path.realpath(args.output_file) in {os.path.realpath(path) for path in inputs if path}:
        parser.error("--output_file: this file is an input; name another")


def main(argv=None):
    args, started = parse_args(argv), time.time()
    args.instruction = None
    if args.instruction_file:
        args.instruction = Path(args.instruction_file).read_text(encoding="utf-8").strip()
    labels = read_labels(args)
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
        todo = pending(records, labels, shots, answers.lines, args)
        if kept := len(answers.lines):
            log(f"{answers.path}: {kept:,} answers are there; {len(todo):,} requests are left to make")
        if args.batch and not batch(todo, labels, shots, answers, args):
            return 0
        endpoint = ask(todo, labels, shots, answers, args) if todo and not args.batch else None
        return finish(records, labels, shots, answers.lines, endpoint, args, started)


def ask(todo, labels, shots, answers, args):
    """Run the requests; a Stop becomes a DataError, SIGTERM the exit status 143."""
    asked = ((*list(requests_of(record, labels, shots, args))[number], tokens) for record, number, tokens in todo)
    try:
        return asyncio.run(ask_all(asked, len(todo), answers, args))
    except Stop as error:
        raise DataError(f"{error} ({len(answers.lines):,} answers are kept in {answers.path})") from None
    except asyncio.CancelledError:
        log(f"error: terminated; {len(answers.lines):,} answers are kept in {answers.path}")
        sys.exit(143)


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
    if statuses["failed"]:
        log(f"warning: {statuses['failed']:,} records failed; --retry_failed asks again")
    told = ", ".join(f"{n:,} {status}" for status, n in statuses.most_common())
    lost = ", ".join(f"{n:,} {reason}" for reason, n in reasons.most_common()) or "none"
    log(f"{args.output_file}: {counts['records']:,} records ({told}), {counts['entities']:,} entities, mentions "
        f"dropped: {lost}")  # fmt: skip
    price = f", cost {cost:.4f}" if args.price else ""
    log(f"{asked['requests']:,} requests, {asked['retries']:,} retries, {used['prompt_tokens']:,} prompt tokens "
        f"({used['cached_tokens']:,} cached), {used['completion_tokens']:,} of answers{price}, "
        f"{time.time() - started:.1f} s")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(run(main))

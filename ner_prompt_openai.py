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
import hashlib
import json
import os
import random
import re
import sys
import time
from collections import Counter
from itertools import chain
from operator import itemgetter
from pathlib import Path
from urllib.parse import urlparse

from utils import (
    FORMATS,
    INSTRUCTIONS,
    LOOPBACK,
    STATUSES,
    DataError,
    answered,
    check_host,
    is_named,
    labels_of,
    lock,
    log,
    parse_answer,
    read_lines,
    read_records,
    render_messages,
    run,
    to_json,
    without_gold,
    write_jsonl,
    write_sidecar,
    writing,
)

LONGEST_WAIT = 60.0  # seconds between two tries, unless the server's Retry-After says more
PATIENCE = 600.0  # seconds of Retry-After that are waited for at most
BYTES = 3.5  # of UTF-8 per token, about; for estimates, and where a server does not count
ANSWER = 100  # tokens of an answer, about, before there is one
FORMAT_WORDS = re.compile("response_?format|schema|json|grammar", re.I)
TOO_LONG = re.compile("context|too (long|large|many tokens)|maximum.{0,20}length|exceed", re.I)
BATCH_ENDED = ("completed", "expired", "cancelled", "failed")
BATCH_REQUESTS, BATCH_BYTES = 50_000, 200_000_000  # of one file, at most: OpenAI's limits

# ---------------------------------------------------------------------------- what is asked


def choose_shots(args, types):
    """Return the few-shot examples for all texts: of those that are no test text, and of no test document."""
    if not args.num_shots:
        return []
    tests, whole = list(read_records(args.test_file, args.limit)), list(read_records(args.train_file))
    texts, documents = ({key(record) for record in tests} for key in (text_of, itemgetter("doc_id")))
    if args.shot_selection != "first":
        random.Random(args.seed).shuffle(whole)
    pool = [r for r in whole if text_of(r) not in texts and not (r["doc_id"] in documents and is_named(r["doc_id"]))]
    if len(pool) < len(whole):
        log(f"{args.train_file}: {len(whole) - len(pool):,} of {len(whole):,} records are texts of {args.test_file}, "
            "or of its documents: no examples")  # fmt: skip
    chosen = pool[: args.num_shots]
    if args.shot_selection == "per_type":  # types in turn, and one text without entities
        empty = [record for record in pool if not record["entities"]][: args.num_shots > 1]
        chosen, wanted = [], Counter(dict.fromkeys(types, 0))
        while wanted and len(chosen) < args.num_shots - len(empty):
            rarest = min(wanted, key=wanted.get)
            fresh = [r for r in pool if r not in chosen and any(e["type"] == rarest for e in r["entities"])][:1]
            if not fresh:
                del wanted[rarest]
            chosen += fresh
            wanted.update({e["type"] for r in fresh for e in r["entities"]} & wanted.keys())
        chosen += empty
    if not chosen:
        raise DataError(f"{args.train_file}: no record that could be an example; take them from another file")
    if len(chosen) < args.num_shots:
        log(f"warning: {args.train_file}: {len(chosen)} examples, not {args.num_shots}: there are no more to choose")
    return chosen


def text_of(record):
    return record["text"].strip()


def messages_of(record, types, labels, args):
    """The prompt: task, types and passages, the shots as turns, the text last; see utils.render_messages."""
    return render_messages(record, types, args.format, record["shots"], record.get("passages", ()), labels,
                           args.instruction, args.language, args.all_types)  # fmt: skip


def requests_of(record, labels, args):
    """Yield (types, hash) of each request about a record: for all types or each, and --num_samples times.

    An answer of --answers_file has the record's own id for a hash.
    """
    if args.answers_file:
        yield labels, record["id"]
        return
    form = args.response_format if args.format in ("json", "spans") else "auto"  # the others have none
    for types in [[type_] for type_ in labels] if args.one_type_per_prompt else [labels]:
        messages = messages_of(record, types, labels, args)
        for sample in range(args.num_samples):
            asked = [args.model, messages, args.temperature, args.max_completion_tokens, args.extra_body,
                     form, sample]  # fmt: skip
            yield types, hashlib.sha256(to_json(asked).encode("utf-8")).hexdigest()[:32]


def pending(records, labels, lines, args):
    """Return [(record, types, hash, tokens or None)] of what is still to be asked, each hash once."""
    todo = {}
    for record in records:
        for types, request in requests_of(record, labels, args):
            found, tokens, status = lines.get(request), args.max_completion_tokens, "ok"
            if found and args.retry_failed:
                line = best(record, found, types, args)
                status = read_answer(record, line, types, args)["status"]
                if status == "truncated":
                    tokens = 2 * (line["usage"].get("completion_tokens") or args.max_completion_tokens or 512)
            if not found or status not in ("ok", "salvaged"):
                todo.setdefault(request, (record, types, request, tokens))
    return list(todo.values())


# ---------------------------------------------------------------------------- the endpoint


class Answers:
    """The log of raw answers: one JSON line each, appended and flushed at once; `lines` has those of each hash."""

    def __init__(self, path):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        self.path, self.file, at = path, open(path, "a+b"), 0  # noqa: SIM115 (until the process ends)
        self.lines, self.used = {}, Counter()  # used: tokens of all lines
        lock(self.file, path)
        self.file.seek(0)
        for raw in self.file:
            try:
                self.take(json.loads(raw))
                if not raw.endswith(b"\n"):
                    self.file.write(b"\n")  # an editor's doing
            except (ValueError, TypeError, KeyError, AttributeError):
                if not raw.endswith(b"\n"):
                    self.file.truncate(at)  # killed while it wrote: the next line starts afresh
                log(f"warning: {path}: the line at byte {at} is cut or broken; what it answered is asked again")
            at += len(raw)

    def take(self, line):
        """Keep a line for its hash, and count what it cost."""
        self.used.update(line.get("usage") or {})
        self.lines.setdefault(line["request"], []).append(line)

    def add(self, line):
        self.file.write(to_json(line).encode("utf-8") + b"\n")
        self.file.flush()
        self.take(line)


def host_of(args):
    url = args.base_url or os.environ.get("OPENAI_BASE_URL") or "https://api.openai.com/v1"
    try:
        host, _ = urlparse(url).hostname, urlparse(url).port
    except ValueError:
        raise DataError("--base_url: not an address; it looks like http://127.0.0.1:8000/v1") from None
    return host or url


def client_of(args):
    """A client: no retries of its own, no redirects; loopback hosts through no proxy."""
    from openai import AsyncOpenAI, DefaultAsyncHttpxClient

    key = os.environ.get(args.api_key_env, "").strip() or "no-key"  # local servers want some string
    if not key.isascii():
        raise DataError(f"{args.api_key_env}: not a key: it has letters that no key has")
    http = DefaultAsyncHttpxClient(follow_redirects=False, trust_env=host_of(args) not in LOOPBACK)
    return AsyncOpenAI(base_url=args.base_url, api_key=key, max_retries=0, timeout=args.timeout, http_client=http)


def schema(types, format):
    """The JSON schema of an answer in json or spans, in the form of the API's response_format."""

    def closed(properties):
        return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}

    string, number = {"type": "string"}, {"type": "integer"}
    entity = closed({"text": string, "type": string | {"enum": list(types)}, "start": number, "end": number})
    whole = {type_: {"type": "array", "items": string} for type_ in types}
    if format == "spans":
        whole = {"entities": {"type": "array", "items": entity}}
    return {"type": "json_schema", "json_schema": {"name": "entities", "strict": True, "schema": closed(whole)}}


def size_of(messages):
    """About how many tokens messages have."""
    return sum(len(message["content"].encode("utf-8")) for message in messages) / BYTES


def cost_of(into, out, args):
    """What tokens of prompts and of answers cost, by --price."""
    prices = args.price or (0.0, 0.0)
    return (into * prices[0] + out * prices[1]) / 1e6


class Endpoint:
    """One server: what it accepts, what was paid, and when the next request may go."""

    def __init__(self, args, answers):
        self.args, self.answers, self.counts = args, answers, Counter()
        self.last, self.reserved, self.stop = float("-inf"), 0.0, None  # last: when the last request went
        modes = {"json": ["json_schema", "json_object", "none"], "spans": ["json_schema", "none"]}
        self.modes = modes.get(args.format, ["none"])  # of response_format, the strictest first
        if args.format in modes and args.response_format != "auto":
            self.modes = [args.response_format]
        self.limit_name, self.proven = "max_completion_tokens", False  # proven: it took a request as we ask now

    def request(self, types, messages, tokens):
        """The parameters of one request."""
        body = {"model": self.args.model, "messages": messages, "temperature": self.args.temperature}
        if tokens:
            body[self.limit_name] = tokens
        if self.modes[0] != "none":
            as_schema = self.modes[0] == "json_schema"
            body["response_format"] = schema(types, self.args.format) if as_schema else {"type": "json_object"}
        return body | (self.args.extra_body or {})

    def reserve(self, messages, tokens):
        """Set aside, and return, what a request will cost; stop where that, and all paid before, passes --max_cost."""
        out = tokens or self.counts["completion_tokens"] / max(1, self.counts["answers"]) or ANSWER
        cost, used = cost_of(size_of(messages), out, self.args), self.answers.used
        spent = cost_of(used["prompt_tokens"], used["completion_tokens"], self.args)
        if self.args.max_cost is not None and spent + self.reserved + cost > self.args.max_cost:
            raise DataError(f"--max_cost {self.args.max_cost}: {spent:.4f} is spent, now and before, and the next "
                            "request might pass it")  # fmt: skip
        self.reserved += cost
        return cost

    async def ask(self, types, messages, tokens):
        """Return the line of one answer, after retries; one with an `error` where they did not help."""
        import openai

        started, retries = time.monotonic(), 0
        while True:
            if self.args.rpm:
                self.last = max(self.last + 60.0 / self.args.rpm, time.monotonic())
                await asyncio.sleep(self.last - time.monotonic())
            if self.stop:
                raise self.stop
            asked_as, cost = (self.modes[0], self.limit_name), self.reserve(messages, tokens)
            self.counts["requests"] += 1
            try:
                # As chat.completions.create does, but without its walk through the body: a third more a second
                call = self.client.post("/chat/completions", cast_to=object, body=self.request(types, messages, tokens))
                line, wait = line_of(await asyncio.wait_for(call, self.args.timeout), messages), 0.0
            except openai.APIStatusError as error:
                line, wait = self.refused(error, asked_as, messages)
            except (openai.APIError, asyncio.TimeoutError, ValueError) as error:  # ValueError: a body that is no JSON
                line, wait = {"error": type(error).__name__}, 0.0
            finally:
                self.reserved -= cost
            if "answer" in line or wait is None or (wait >= 0 and retries == self.args.max_retries):
                break
            if wait >= 0:
                self.counts["retries"] += 1
                retries += 1
                backoff = min(LONGEST_WAIT, 0.5 * 2 ** (retries - 1)) * random.uniform(0.5, 1)
                await asyncio.sleep(max(wait, backoff))
        if line.get("usage"):
            self.proven = True
            self.counts.update(line["usage"] | {"answers": 1})
            counted, characters = line["usage"]["prompt_tokens"], sum(len(message["content"]) for message in messages)
            if counted < characters / 10 and not self.counts["cut"]:
                self.counts["cut"] += 1
                log(f"warning: the server counted {counted} prompt tokens for {characters} characters: it may have cut "
                    "the prompt (Ollama: raise num_ctx)")  # fmt: skip
        return line | {"seconds": round(time.monotonic() - started, 3)}

    def refused(self, error, asked_as, messages):
        """(line, what follows from a status that is no 200): None: nothing; -1: another way to ask; else seconds."""
        status, (words, shown) = error.status_code, self.words(error, messages)
        line = {"error": f"{status}: {shown}"}
        if (status in (408, 409, 429) or status >= 500) and error.code != "insufficient_quota":  # worth another try
            wait = re.match(r"\d{1,9}(\.\d+)?$", error.response.headers.get("retry-after", ""), re.A)  # not a date
            return line, min(float(wait[0]), PATIENCE) if wait else 0.0
        if status == 400 and re.search("content.{0,20}(filter|policy)", words, re.I | re.S):
            return {"answer": "", "finish_reason": "content_filter", "usage": {}}, None
        if status in (400, 413, 422):
            if self.proven or status == 413 or TOO_LONG.search(words):
                return line, None  # of this text alone
            if asked_as != (self.modes[0], self.limit_name):
                return line, -1  # another request has found out
            if self.limit_name == "max_completion_tokens" and self.limit_name in words:
                self.limit_name = "max_tokens"
                log("the server takes max_tokens, not max_completion_tokens")
                return line, -1
            if len(self.modes) > 1 and FORMAT_WORDS.search(words):
                log(f"the server does not take response_format {self.modes.pop(0)}: {shown}; asking with "
                    f"{self.modes[0]}")  # fmt: skip
                return line, -1
            if any("answer" in each for each in chain.from_iterable(self.answers.lines.values())):
                return line, None  # it took others, in an earlier run
        raise DataError(f"{host_of(self.args)}: {status}: {shown}; no retry can mend that")

    def words(self, error, messages):
        """The server's own words on one line; and what of them may be shown: no key, and nothing that was sent."""
        body = error.body if isinstance(error.body, dict) else {}
        words = body.get("message") or body.get("detail")
        words = words if isinstance(words, str) else error.response.reason_phrase
        words = re.sub(r"\\u([0-9a-fA-F]{4})", lambda code: chr(int(code[1], 16)), " ".join(words.split()))
        words = words.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # halves of one character
        words = re.sub(re.escape(self.client.api_key[:8]) + r"\S*", "***", words)[:300]
        for message in messages:
            text, n = " ".join(message["content"].split()), 20 if message["role"] == "system" else 12
            if len(text) > 4 and any(text[i : i + n] in words for i in range(max(1, len(text) - n + 1))):
                return words, "(the server's words repeat the text and are not shown)"
        return words, words


def line_of(body, messages=()):
    """What the log keeps of a chat completion, as a dict; {"error"} where it is none. Odd types are got over."""
    try:
        choice = body["choices"][0]
        said, refusal = choice["message"].get("content"), choice["message"].get("refusal")
    except (TypeError, LookupError, AttributeError):
        error = body.get("error") if isinstance(body, dict) else None  # its message may repeat the text
        code = error.get("code") or error.get("type") if isinstance(error, dict) else None
        return {"error": f"not the reply of a chat endpoint{f', but the error {code}' if code else ''}"}
    if isinstance(said, list):  # parts
        said = "".join(str(part.get("text", "")) if isinstance(part, dict) else str(part) for part in said)
    answer = str(said or refusal or "").encode("utf-8", "replace").decode("utf-8")
    usage = body["usage"] if isinstance(body.get("usage"), dict) else {}
    details = usage.get("prompt_tokens_details")
    usage |= {"cached_tokens": details.get("cached_tokens") if isinstance(details, dict) else 0}
    used = {name: usage.get(name) for name in ("prompt_tokens", "completion_tokens", "cached_tokens")}
    used = {name: n if type(n) is int and n >= 0 else 0 for name, n in used.items()}
    if not used["prompt_tokens"]:  # a server that does not count
        used["prompt_tokens"] = round(size_of(messages))
        used["completion_tokens"] = round(len(answer.encode("utf-8")) / BYTES)
    reason = "content_filter" if refusal else choice.get("finish_reason")
    return {"answer": answer, "finish_reason": reason if isinstance(reason, str) else None, "usage": used}


async def ask(todo, labels, answers, args):
    """Ask for all of `todo`, --max_concurrency at a time, and return what was counted.

    Where one must stop, no other begins, but what is under way is waited for: it will have been paid.
    """
    from tqdm import tqdm

    endpoint, rest = Endpoint(args, answers), iter(todo)
    with tqdm(total=len(todo), disable=None, unit="request") as bar:

        async def work(some):
            for record, types, request, tokens in some:
                if endpoint.stop:
                    return
                try:
                    messages = messages_of(record, types, labels, args)
                    answers.add({"request": request} | await endpoint.ask(types, messages, tokens))
                except (DataError, OSError) as error:
                    endpoint.stop = endpoint.stop or error
                bar.update()

        async with client_of(args) as endpoint.client:
            await work([next(rest)])  # alone: it finds out what the server takes
            await asyncio.gather(*(work(rest) for _ in range(args.max_concurrency)))  # each takes the next one
    if endpoint.stop:
        raise endpoint.stop
    return endpoint.counts


async def batch(todo, labels, answers, args):
    """--batch submit, status or fetch, with OUTPUT_FILE.batch.json; return None until all answers are fetched."""
    state, ids, rows = Path(f"{args.output_file}.batch.json"), [], []
    async with client_of(args) as client:
        if args.batch == "submit":
            for content in batch_files(todo, labels, answers, args):
                sent = await client.files.create(file=("requests.jsonl", content), purpose="batch")
                made = await client.batches.create(input_file_id=sent.id, endpoint="/v1/chat/completions",
                                                   completion_window="24h")  # fmt: skip
                ids.append(made.id)
                with writing(state) as out:
                    json.dump(ids, out)
            log(f"{len(todo):,} requests in {len(ids)} batches; --batch status shows them, --batch fetch gets them")
            return None
        try:
            ids = json.loads(state.read_text(encoding="utf-8"))
        except ValueError:
            raise DataError(f"{state}: broken; write the ids of the batches into it, as a JSON list") from None
        found = [await client.batches.retrieve(id_) for id_ in ids]
        for one in found:
            log(f"{one.id}: {one.status}")
        if args.batch == "status" or any(one.status not in BATCH_ENDED for one in found):
            return None
        for file in [file for one in found for file in (one.output_file_id, one.error_file_id) if file]:
            rows += filter(str.strip, (await client.files.content(file)).text.split("\n"))
    for row in map(json.loads, rows):
        line = line_of((row.get("response") or {}).get("body"))
        answers.add({"request": row["custom_id"]} | ({"error": str(row["error"])[:300]} if row.get("error") else line))
    state.unlink()
    if not rows:
        raise DataError(f"{state}: the batches ended without an answer; --batch submit sends them again")
    return Counter()


def batch_files(todo, labels, answers, args):
    """Yield the files to submit, as bytes; none is larger than the API takes."""
    endpoint, rows, size = Endpoint(args, answers), [], 0
    for record, types, request, tokens in todo:
        messages = messages_of(record, types, labels, args)
        endpoint.reserve(messages, tokens)
        body = endpoint.request(types, messages, tokens)
        row = {"custom_id": request, "method": "POST", "url": "/v1/chat/completions", "body": body}
        row = to_json(row).encode("utf-8") + b"\n"
        if rows and (len(rows) == BATCH_REQUESTS or size + len(row) > BATCH_BYTES):
            yield b"".join(rows)
            rows, size = [], 0
        rows.append(row)
        size += len(row)
    if rows:
        yield b"".join(rows)


# ---------------------------------------------------------------------------- what becomes of answers


def given_answers(records, args):
    """Lines like the log's from --answers_file: JSONL of id and answer, or replies behind ###### in record order."""
    lines = [line for _, line in read_lines(args.answers_file)]
    if lines and lines[0].lstrip().startswith("{"):
        try:
            rows = [json.loads(line) for line in lines if line.strip()]
            given = {row["id"]: row["answer"] for row in rows}
        except (ValueError, TypeError, KeyError):
            raise DataError(f"{args.answers_file}: not JSON lines with id and answer; mend it") from None
        if wrong := [name for name, answer in given.items() if not isinstance(answer, str)]:
            raise DataError(f"{args.answers_file}: the answer of {wrong[0]!r} is no string; give each record one")
    else:
        replies = re.split(r"^######[^\n]*\n", "\n".join([*lines, ""]), flags=re.M)[1:]
        if len(replies) != len(records):
            raise DataError(f"{args.answers_file}: {len(replies)} answers, but {args.test_file} has {len(records)} "
                            "records; give each record one, in order")  # fmt: skip
        given = {record["id"]: reply for record, reply in zip(records, replies, strict=True)}
    if given.keys().isdisjoint(record["id"] for record in records):
        raise DataError(f"{args.answers_file}: no answer to any record of {args.test_file}; compare their ids")
    if strange := given.keys() - {record["id"] for record in records}:
        log(f"warning: {args.answers_file}: {len(strange):,} answers are of no record that is asked about; not used")
    return {name: [{"answer": answer}] for name, answer in given.items()}


def read_answer(record, line, types, args):
    """What a line of the log says about a record: see utils.parse_answer."""
    if "error" in line or line.get("finish_reason") == "content_filter":
        return {"entities": [], "status": "failed" if "error" in line else "refused", "dropped": []}
    parsed = parse_answer(line["answer"], record, types, args.format, args.alignment, record["shots"])
    return parsed | {"status": "truncated"} if line.get("finish_reason") == "length" else parsed


def best(record, lines, types, args):
    """Of a request's lines the last with the best status: nothing worse replaces an answer. None without any."""
    if not lines or len(lines) == 1:
        return lines and lines[0]
    return min(reversed(lines), key=lambda line: STATUSES.index(read_answer(record, line, types, args)["status"]))


def agreed(found):
    """[(item, share)] of what at least half of several lists hold, each item once a list; items are dicts."""
    first, counts = {}, Counter()
    for items in found:
        keys = {to_json(sorted(item.items())): item for item in items}
        first = keys | first
        counts.update(keys.keys())
    return [(item, counts[key] / len(found)) for key, item in first.items() if 2 * counts[key] >= len(found)]


def predict(record, labels, lines, args, used):
    """The prediction record of a record, from the log's lines, which go into `used`; None where one is missing."""
    requests = list(requests_of(record, labels, args))
    asked = [(types, best(record, lines.get(request), types, args)) for types, request in requests]
    if not all(line for _, line in asked):
        return None
    used.update((request, lines[request]) for _, request in requests)
    parsed = [read_answer(record, line, types, args) for types, line in asked]
    samples = [parsed[i :: args.num_samples] for i in range(args.num_samples)]  # each of all the types
    samples = [(max((part["status"] for part in sample), key=STATUSES.index), sample) for sample in samples]
    heard = [(status, sample) for status, sample in samples if status != "failed"] or samples[:1]
    entities, dropped = ([[item for part in sample for item in part[name]] for _, sample in heard]
                         for name in ("entities", "dropped"))  # fmt: skip
    if args.num_samples == 1:
        entities, dropped = entities[0], dropped[0]
    else:
        entities = [item | {"score": round(share, 4)} for item, share in agreed(entities)]
        dropped = [item for item, _ in agreed(dropped)]
    status = Counter(status for status, _ in heard).most_common(1)[0][0]
    return answered(record, entities, status, dropped, [line for _, line in asked])


def finish(records, labels, lines, asked, args, started, earlier):
    """Write the predictions in the records' order, their sidecar, and the last lines; return the exit status.

    Their cost is that of all answers to each of their requests; their time, that of this run and, about, that of those
    answers which were there before (`earlier`: how many, by request).
    """
    counts, statuses, reasons, used, paid = Counter(), Counter(), Counter(), Counter(), {}

    def predictions():
        for record in records:
            counts["records"] += 1
            if pred := predict(record, labels, lines, args, paid):
                counts["entities"] += len(pred["entities"])
                statuses[pred["status"]] += 1
                reasons.update(item["reason"] for item in pred["dropped"])
                yield pred

    if missing := len(records) - write_jsonl(args.output_file, predictions()):
        counts["missing"] = missing
        log(f"warning: {missing:,} records have no answer and are left out")
    for line in chain.from_iterable(paid.values()):
        used.update(line.get("usage") or {})
    before = (line.get("seconds", 0) for request, found in paid.items() for line in found[: earlier.get(request, 0)])
    started -= sum(before) / args.max_concurrency
    cost = cost_of(used["prompt_tokens"], used["completion_tokens"], args) if args.price else None
    inputs = [path for path in (args.test_file, args.train_file, args.labels_file, args.answers_file) if path]
    write_sidecar(args.output_file, args, inputs, started, ("openai",), model=args.model, counts=counts,
                  statuses=statuses, dropped=reasons, tokens=used, cost=cost, requests=asked["requests"],
                  retries=asked["retries"])  # fmt: skip
    if none := statuses["failed"] == counts["records"]:
        why = next(line["error"] for line in chain.from_iterable(map(reversed, paid.values())) if "error" in line)
        log(f"error: {args.output_file}: no record got an answer ({why}); --retry_failed asks again")
    elif statuses["failed"]:
        log(f"warning: {statuses['failed']:,} records failed; --retry_failed asks again")
    told = ", ".join(f"{n:,} {status}" for status, n in statuses.most_common())
    lost = ", ".join(f"{n:,} {reason}" for reason, n in reasons.most_common()) or "none"
    log(f"{args.output_file}: {counts['records']:,} records ({told}), {counts['entities']:,} entities, mentions "
        f"dropped: {lost}")  # fmt: skip
    price = f", cost {cost:.4f}" if args.price else ""
    log(f"{asked['requests']:,} requests now, {asked['retries']:,} retries; for all answers {used['prompt_tokens']:,} "
        f"prompt tokens ({used['cached_tokens']:,} cached), {used['completion_tokens']:,} of answers{price}, "
        f"{time.time() - started:.1f} s")  # fmt: skip
    return int(none)


# ---------------------------------------------------------------------------- command line


def show_prompt(todo, labels, args):
    """--dry_run: print one whole prompt, and on stderr what all of them would be."""
    prompts = (messages_of(record, types, labels, args) for record, types, *_ in todo)
    first = next(prompts)
    for message in first:
        print(f"--- {message['role']}\n{message['content']}")
    into, out = size_of(first) + sum(map(size_of, prompts)), len(todo) * (args.max_completion_tokens or ANSWER)
    cost = f", cost {cost_of(into, out, args):.2f}" if args.price else ""
    log(f"{len(todo):,} requests, about {into:,.0f} prompt tokens and {out:,} of answers{cost}; at a second each and "
        f"--max_concurrency {args.max_concurrency}: {len(todo) / args.max_concurrency:,.0f} seconds; nothing was "
        "sent")  # fmt: skip


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
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
    add("--instruction_file", metavar="FILE", help="in place of the task and its format (default: %(default)s)")
    add("--language", choices=tuple(INSTRUCTIONS), default="en", help="of the task (default: %(default)s)")
    add("--one_type_per_prompt", action="store_true", help="a request for each type (default: %(default)s)")
    add("--all_types", action="store_true", help="answers name types without a mention, too (default: %(default)s)")
    add("--alignment", choices=("normalized", "exact", "fuzzy", "position"), default="normalized",
        help="of mentions to the text; position: of iob, for one paper (default: %(default)s)")  # fmt: skip
    add = parser.add_argument_group("endpoint").add_argument
    add("--model", default="", help="its name at the endpoint")
    add("--base_url", metavar="URL", help="default: OPENAI_BASE_URL, or OpenAI")
    add("--api_key_env", default="OPENAI_API_KEY", metavar="NAME", help="variable of the key (default: %(default)s)")
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
    """Refuse, as usage errors, numbers that mean nothing, and flags that don't go together."""
    least = {"num_samples": 1, "max_concurrency": 1, "max_retries": 0, "num_shots": 0, "limit": 1, "rpm": 1e-6,
             "timeout": 1e-6, "max_completion_tokens": 1, "max_cost": 0, "seed": 0, "temperature": 0}  # fmt: skip
    for name, low in least.items():
        if getattr(args, name) is not None and not low <= getattr(args, name) < float("inf"):
            parser.error(f"--{name}: {'more than 0' if low == 1e-6 else f'at least {low}'}")
    several = args.num_samples > 1 or args.one_type_per_prompt or args.batch or args.dry_run
    inputs = (args.test_file, args.train_file, args.answers_file, args.labels_file, args.instruction_file)
    for wrong, what in (
        (re.match("[^/]*//[^/]*@", args.base_url or ""), "--base_url: no name or password in it; a key belongs in the "
                                                         "variable of --api_key_env"),
        (args.base_url and not re.match("https?://", args.base_url), "--base_url begins with http:// or https://"),
        (not re.fullmatch(r"[A-Za-z_]\w*", args.api_key_env), "--api_key_env: the name of a variable, not the key"),
        (not all(0 <= price < float("inf") for price in args.price or ()), "--price: at least 0"),
        (not (args.model or args.dry_run or args.answers_file), "--model: name the model to ask"),
        (args.num_shots and not args.train_file, "--num_shots: give the --train_file that they come from"),
        (args.alignment == "position" and args.format != "iob", "--alignment position is for --format iob"),
        (args.answers_file and several, "--answers_file holds one answer for each record: not with --num_samples, "
                                        "--one_type_per_prompt, --batch, --dry_run"),
        (args.max_cost is not None and not args.price, "--max_cost: give the --price of tokens, too"),
        (not isinstance(args.extra_body, dict | None), "--extra_body: a JSON object"),
        (os.path.realpath(args.output_file) in {os.path.realpath(path) for path in inputs if path},
         "--output_file: this file is an input; name another"),
    ):  # fmt: skip
        if wrong:
            parser.error(what)


def main(argv=None):
    args, started = parse_args(argv), time.time()
    args.instruction = None
    if args.instruction_file:
        args.instruction = "\n".join(line for _, line in read_lines(args.instruction_file)).strip()
    labels = labels_of(args, [args.train_file] if args.train_file else [], [args.test_file])
    shots = choose_shots(args, labels)
    records = [{"shots": shots} | without_gold(record, "shots", "passages")
               for record in read_records(args.test_file, args.limit)]  # fmt: skip
    if args.answers_file:
        return finish(records, labels, given_answers(records, args), Counter(), args, started, {})
    if args.dry_run:
        return show_prompt(pending(records, labels, {}, args), labels, args)
    check_host(host_of(args))
    answers, state = Answers(f"{args.output_file}.answers.jsonl"), Path(f"{args.output_file}.batch.json")
    if state.exists() and args.batch in (None, "submit"):  # it would pay twice
        raise DataError(f"{state}: batches are under way; fetch them first (--batch fetch), or delete it to forget "
                        "them")  # fmt: skip
    if not state.exists() and args.batch in ("status", "fetch"):
        raise DataError(f"{state}: no batch is under way; --batch submit starts one")
    todo, counts = pending(records, labels, answers.lines, args), Counter()
    earlier = {request: len(lines) for request, lines in answers.lines.items()}
    if answers.lines:
        log(f"{answers.path}: holds {len(answers.lines):,} answers (of any parameters); {len(todo):,} requests "
            "are left to make")  # fmt: skip
    if todo or args.batch in ("status", "fetch"):
        import openai

        try:
            counts = asyncio.run((batch if args.batch else ask)(todo, labels, answers, args))
        except (DataError, OSError, openai.APIError) as error:
            why = getattr(error, "status_code", type(error).__name__)
            stop = f"{host_of(args)}: {why}; try again" if isinstance(error, openai.APIError) else error
            raise DataError(f"{stop} ({len(answers.lines):,} answers are kept in {answers.path})") from None
    if counts is None:
        return 0
    return finish(records, labels, answers.lines, counts, args, started, earlier)


if __name__ == "__main__":
    sys.exit(run(main))

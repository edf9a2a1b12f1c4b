"""ner_prompt_openai.py against a loopback server of our own, honest and hostile: nothing lost, nothing asked twice.

pytest tests/test_ner_prompt_openai.py
"""

import contextlib
import gzip
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from conftest import ROOT

import ner_prompt_openai as script
from utils import read_records, render_answer, write_jsonl

KEY = "sk-a-secret-that-must-not-be-written-anywhere"


class Server(ThreadingHTTPServer):
    """Answers each text as `answers` says, after up to two faults a text, drawn by its seed; remembers all requests."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, answers=None, faults=(), share=0.3, seed=1, delay=0.0, refuse=None):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers, self.faults, self.share, self.seed, self.delay = answers or {}, faults, share, seed, delay
        self.refuse = refuse or (lambda body: None)
        self.bodies, self.tries, self.good, self.mutex = [], Counter(), Counter(), threading.Lock()
        self.files, self.batches, self.most, self.now = {}, {}, 0, 0
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request, client_address):
        """A client that went away is what some tests are about."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        """Not on stderr."""

    def say(self, status, body, **headers):
        raw = body.encode("utf-8") if isinstance(body, str) else json.dumps(body).encode("utf-8")
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": len(raw), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        self.wfile.write(raw)

    def do_GET(self):
        server, parts = self.server, self.path.split("/")
        if parts[2] == "batches":
            return self.say(200, server.batches[parts[3]])
        return self.say(200, server.files[parts[3]])

    def do_POST(self):
        server, raw = self.server, self.rfile.read(int(self.headers["Content-Length"]))
        if self.path.endswith("/files"):
            name = f"file-{len(server.files)}"
            server.files[name] = re.search(rb"\r\n\r\n(\{.*\})\n?\r\n--", raw, re.S)[1].decode("utf-8")
            return self.say(200, {"id": name, "object": "file", "bytes": 1, "created_at": 1, "filename": "x",
                                  "purpose": "batch", "status": "processed"})  # fmt: skip
        body = json.loads(raw)
        if self.path.endswith("/batches"):
            return self.batch(body)
        with server.mutex:
            server.bodies.append((body, self.headers["Authorization"]))
            server.now += 1
            server.most = max(server.most, server.now)
        try:
            self.chat(body)
        finally:
            with server.mutex:
                server.now -= 1

    def chat(self, body):
        server, text = self.server, body["messages"][-1]["content"]
        if refusal := server.refuse(body):
            return self.say(*refusal)
        with server.mutex:
            server.tries[text] += 1
            attempt = server.tries[text]
        rng = random.Random(f"{server.seed} {text} {attempt}")
        time.sleep(server.delay)
        if server.faults and attempt <= 2 and rng.random() < server.share:
            return self.fault(rng.choice(server.faults))
        with server.mutex:
            server.good[text] += 1
        return self.say(200, completion(server.answers.get(text, "{}")))

    def fault(self, kind):
        if kind == "close":
            self.close_connection = True
            return self.connection.close()
        if kind == "hang":
            return time.sleep(1.5)
        replies = {
            "429": (429, {"error": {"message": "slow down"}}), "500": (500, {"error": {"message": "oops"}}),
            "503": (503, "<html>busy</html>"), "html": (200, "<html>proxy</html>"), "none": (200, {"choices": None}),
            "cut": (200, '{"id": "x", "choi'), "408": (408, {"error": {"message": "late"}}),
        }  # fmt: skip
        return self.say(*replies[kind], **({"Retry_After": "0.05"} if kind == "429" else {}))

    def batch(self, body):
        """A batch that is done at once; its second request fails."""
        server, out, bad = self.server, [], []
        for i, line in enumerate(server.files[body["input_file_id"]].splitlines()):
            row = json.loads(line)
            answer = completion(server.answers.get(row["body"]["messages"][-1]["content"], "{}"))
            if i == 1 and not server.batches:
                bad.append({"custom_id": row["custom_id"], "response": None, "error": {"message": "expired"}})
            else:
                out.append(
                    {"custom_id": row["custom_id"], "response": {"status_code": 200, "body": answer}, "error": None}
                )
        name = f"batch-{len(server.batches)}"
        for kind, rows in (("out", out), ("bad", bad)):
            server.files[f"{name}-{kind}"] = "".join(json.dumps(row) + "\n" for row in rows)
        server.batches[name] = {
            "id": name, "object": "batch", "endpoint": body["endpoint"], "completion_window": "24h", "created_at": 1,
            "input_file_id": body["input_file_id"], "status": "completed", "output_file_id": f"{name}-out",
            "error_file_id": f"{name}-bad"}  # fmt: skip
        return self.say(200, server.batches[name])


def completion(said):
    """A chat completion; `said` is its text, or (text, finish_reason, tokens), or a whole body."""
    if isinstance(said, dict):
        return said
    text, reason, tokens = said if isinstance(said, tuple) else (said, "stop", 7)
    return {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [
        {"index": 0, "finish_reason": reason, "message": {"role": "assistant", "content": text}}],
        "usage": {"prompt_tokens": 100, "completion_tokens": tokens, "total_tokens": 100 + tokens,
                  "prompt_tokens_details": {"cached_tokens": 60}}}  # fmt: skip


@pytest.fixture
def served():
    """Start servers; stop them at the end."""
    servers = []

    def start(*args, **options):
        servers.append(Server(*args, **options))
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()


def corpus_of(tmp_path, count=40):
    """(path of records, their gold answers by text) of short texts, each its own document."""
    records = []
    for n in range(count):
        text = f"Case {n}: fever and joint pain, no cough in week {n}."
        at = text.index("fever")
        spans = ((at, at + 5, "SIGN"), (at + 10, at + 20, "SYMPTOM"))
        entities = [{"start": start, "end": end, "type": type_} for start, end, type_ in spans]
        records.append({"id": f"r{n}", "doc_id": f"d{n}", "text": text, "entities": entities})
    path = tmp_path / "test.jsonl"
    write_jsonl(path, records)
    records = list(read_records(path))
    return path, {r["text"]: render_answer(r, ["SIGN", "SYMPTOM"], "json") for r in records}


def prompt(cli, path, out, server, *args, **environment):
    environment = {"OPENAI_API_KEY": KEY, **environment}
    files = ("--test_file", path, "--output_file", out)
    return cli("ner_prompt_openai.py", "--model", "m", "--base_url", server.url, *files, *args, **environment)


def command_of(path, out, server, *args):
    """The command line of `prompt`, for a process that is to be ended."""
    flags = ("--base_url", server.url, "--test_file", str(path), "--output_file", str(out))
    return [sys.executable, str(ROOT / "ner_prompt_openai.py"), "--model", "m", *flags, *args]


def same_as_gold(path, out):
    golds, preds = list(read_records(path)), list(read_records(out))
    assert [p["id"] for p in preds] == [g["id"] for g in golds]
    for gold, pred in zip(golds, preds, strict=True):
        assert pred["entities"] == gold["entities"] and pred["status"] == "ok" and pred["dropped"] == []


def test_shots_and_passages_of_ner_rag_arrive_in_their_order(cli, rare_en, tmp_path, served):
    """System: task, types, passages, the most like last; static shots, retrieved ones, the most like last; the text."""
    (tmp_path / "kb.md").write_text("Fever is a sign. " * 70 + "\n\n" + "A rash of the skin is seen. " * 60, "utf-8")
    flags = ("--train_file", rare_en / "train.jsonl", "--retriever", "bm25", "--num_shots", 4, "--static_shots", 1)
    done = cli("ner_rag.py", *flags, "--test_file", rare_en / "test.jsonl", "--output_file", tmp_path / "s.jsonl",
               "--knowledge", tmp_path / "kb.md", "--limit", 3)  # fmt: skip
    assert done.returncode == 0, done.stderr
    server = served()
    done = prompt(cli, tmp_path / "s.jsonl", tmp_path / "p.jsonl", server, "--max_concurrency", 1)
    assert done.returncode == 0 and len(server.bodies) == 3, done.stderr
    for record, (body, _) in zip(read_records(tmp_path / "s.jsonl"), server.bodies, strict=True):
        first, *turns, last = body["messages"]
        places = [first["content"].index(passage["text"]) for passage in record["passages"]]
        assert len(places) == 2 and places == sorted(places) and places[0] > first["content"].index("- SIGN")
        assert [passage["score"] for passage in record["passages"]] == sorted(p["score"] for p in record["passages"])
        assert [turn["content"] for turn in turns[::2]] == [shot["text"] for shot in record["shots"]]
        assert [turn["content"] for turn in turns[1::2]] == [
            render_answer(shot, sorted({"DISEASE", "RAREDISEASE", "SIGN", "SKINRAREDISEASE", "SYMPTOM"}), "json")
            for shot in record["shots"]
        ]
        scores = [shot.get("score") for shot in record["shots"]]
        assert scores[0] is None and scores[1:] == sorted(scores[1:]) and last["content"] == record["text"]


def test_answers_become_records(cli, served, tmp_path):
    path, answers = corpus_of(tmp_path)
    server, out = served(answers), tmp_path / "out" / "p.jsonl"
    done = prompt(cli, path, out, server, "--price", 1, 2)
    assert done.returncode == 0, done.stderr
    same_as_gold(path, out)
    assert len(server.bodies) == 40 and "texts are sent to 127.0.0.1" in done.stderr
    assert "warning: the types come from the gold" in done.stderr
    record = next(read_records(out))
    assert record["answer"] == answers[record["text"]] and record["usage"]["cached_tokens"] == 60
    body, key = server.bodies[0]
    assert key == f"Bearer {KEY}" and body["temperature"] == 0.0 and body["model"] == "m"
    assert body["response_format"]["json_schema"]["schema"]["required"] == ["SIGN", "SYMPTOM"]
    assert "entities" not in json.dumps(body["messages"][1:])
    info = json.loads((tmp_path / "out" / "p.jsonl.run.json").read_text())
    assert info["tokens"] == {"prompt_tokens": 4000, "completion_tokens": 280, "cached_tokens": 2400}
    assert info["cost"] == pytest.approx((4000 + 2 * 280) / 1e6) and info["requests"] == 40
    assert info["statuses"] == {"ok": 40} and info["counts"] == {"records": 40, "entities": 80}
    assert "cost 0.0046" in done.stderr and not list((tmp_path / "out").glob("*.part"))
    for file in tmp_path.rglob("*"):
        assert not file.is_file() or KEY.encode() not in file.read_bytes()
    assert KEY not in done.stdout + done.stderr
    scores = cli("ner_eval.py", "--gold", path, "--pred", out, "--format", "json")
    system = json.loads(scores.stdout)["systems"]["p.jsonl"]
    assert system["entity"]["micro"]["f1"] == system["generation"]["parse_rate"] == 1.0
    assert system["cost_per_1000"] == pytest.approx(1000 * info["cost"] / 40)


def test_the_same_command_asks_only_for_what_is_missing(cli, served, tmp_path):
    path, answers = corpus_of(tmp_path)
    server, out = served(answers), tmp_path / "p.jsonl"
    assert prompt(cli, path, out, server, "--limit", 10).returncode == 0
    first = out.read_bytes()
    done = prompt(cli, path, out, server)
    assert done.returncode == 0 and len(server.bodies) == 40 and "; 30 requests are left" in done.stderr
    same_as_gold(path, out)
    assert prompt(cli, path, out, server, "--limit", 10).returncode == 0 and len(server.bodies) == 40
    assert out.read_bytes() == first
    done = prompt(cli, path, out, server, "--temperature", 1)  # other parameters: asked anew
    assert len(server.bodies) == 80 and "40 requests are left to make" in done.stderr
    log = tmp_path / "p.jsonl.answers.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(lines[:79]) + lines[79][:20])  # killed while it wrote
    done = prompt(cli, path, out, server, "--temperature", 1)
    assert done.returncode == 0 and len(server.bodies) == 81 and "is cut or broken" in done.stderr
    assert all(json.loads(line) for line in log.read_bytes().splitlines())


FAULTS = ("429", "500", "503", "html", "none", "cut", "408", "close", "hang")


@pytest.mark.parametrize("count", [300, pytest.param(2000, marks=pytest.mark.slow)])
def test_faults_change_nothing(cli, served, tmp_path, count):
    """Three in ten requests fail, at most twice a text: every record is answered, once, as without faults."""
    path, answers = corpus_of(tmp_path, count)
    server, out = served(answers, FAULTS), tmp_path / "p.jsonl"
    done = prompt(cli, path, out, server, "--timeout", 1, "--max_concurrency", 32)
    assert done.returncode == 0, done.stderr
    same_as_gold(path, out)
    assert set(server.good.values()) == {1} and len(server.good) == count and len(server.bodies) > 1.1 * count
    calm = served(answers)
    assert prompt(cli, path, tmp_path / "q.jsonl", calm).returncode == 0
    bare = [{k: v for k, v in r.items() if k != "seconds"} for r in read_records(out)]
    assert bare == [{k: v for k, v in r.items() if k != "seconds"} for r in read_records(tmp_path / "q.jsonl")]


@pytest.mark.parametrize("signal_, code", [(signal.SIGKILL, -9), (signal.SIGTERM, -15), (signal.SIGINT, 130)])
def test_whatever_ends_it_nothing_is_asked_twice(served, tmp_path, signal_, code):
    path, answers = corpus_of(tmp_path, 200)
    server, out = served(answers, delay=0.02), tmp_path / "p.jsonl"
    command = command_of(path, out, server, "--max_concurrency", "4")
    rng, rounds = random.Random(3), 0
    while True:
        process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
        seen = len(server.bodies)
        if rounds < 3:
            while len(server.bodies) < min(199, seen + 20 + rng.randrange(20)) and process.poll() is None:
                time.sleep(0.005)
            process.send_signal(signal_)
        said = process.communicate(timeout=60)[1]
        rounds += 1
        if process.returncode == 0:
            break
        assert process.returncode == code and not out.exists() and "Traceback" not in said, said
    assert rounds >= 3
    same_as_gold(path, out)
    assert max(server.good.values()) <= 2 and Counter(server.good.values())[2] <= 4 * (
        rounds - 1
    )  # under way when it ended


def test_a_second_run_on_one_output_is_refused(cli, served, tmp_path):
    path, answers = corpus_of(tmp_path, 60)
    server, out = served(answers, delay=0.1), tmp_path / "p.jsonl"
    command = command_of(path, out, server, "--max_concurrency", "1")
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE)
    while len(server.bodies) < 3:
        time.sleep(0.02)
    done = prompt(cli, path, out, server)
    process.kill()
    process.communicate()
    assert done.returncode == 1 and "another run is writing to it" in done.stderr
    assert prompt(cli, path, out, server).returncode == 0  # the lock went with its process


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_fatal_reply_ends_the_run_with_the_servers_words(cli, served, tmp_path, status):
    path, answers = corpus_of(tmp_path)
    bodies = []
    server = served(answers, refuse=lambda body: bodies.append(1) or (
        (status, {"error": {"message": f"no such thing, {KEY}"}}) if len(bodies) > 5 else None))  # fmt: skip
    done = prompt(cli, path, tmp_path / "p.jsonl", server, "--max_concurrency", 1)
    assert done.returncode == 1 and f"{status}: no such thing, ***; no retry can mend that (5 answers" in done.stderr
    assert len(bodies) == 6 and KEY not in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "p.jsonl").exists()


def test_what_a_server_does_not_take_is_asked_otherwise_once(cli, served, tmp_path):
    path, answers = corpus_of(tmp_path)

    def picky(body):
        if body.get("response_format", {}).get("type") in ("json_schema", "json_object"):
            return 400, {"error": {"message": "response_format is not supported"}}
        if "max_completion_tokens" in body:
            return 400, {"detail": "unknown parameter max_completion_tokens"}
        return None

    server = served(answers, refuse=picky)
    done = prompt(cli, path, tmp_path / "p.jsonl", server, "--max_completion_tokens", 50)
    assert done.returncode == 0, done.stderr
    assert len(server.bodies) == 43 and server.bodies[-1][0]["max_tokens"] == 50
    assert done.stderr.count("the server does not take response_format") == 2
    assert "the server takes max_tokens" in done.stderr
    same_as_gold(path, tmp_path / "p.jsonl")
    out = tmp_path / "q.jsonl"  # also where the log has answers to what was asked otherwise
    assert prompt(cli, path, out, served(answers), "--response_format", "none").returncode == 0
    assert prompt(cli, path, out, served(answers, refuse=picky)).returncode == 0
    same_as_gold(path, out)


@pytest.mark.parametrize("what, words", [
    ("max_completion_tokens", "unknown parameter max_completion_tokens"),
    ("response_format", "response_format is not supported"),
])  # fmt: skip
def test_many_that_are_refused_at_once_are_all_asked_otherwise(what, words, cli, served, tmp_path):
    """The first text, which goes alone to find out, fails for a reason of its own."""
    path, answers = corpus_of(tmp_path)

    def refuse(body):
        if "Case 0" in body["messages"][-1]["content"]:
            return 400, {"error": {"message": "maximum context length is 10 tokens"}}
        time.sleep(0.2)  # until all are under way
        return (400, {"error": {"message": words}}) if what in body else None

    done = prompt(cli, path, tmp_path / "p.jsonl", served(answers, refuse=refuse), "--max_completion_tokens", 50)
    assert done.returncode == 0 and "39 ok, 1 failed" in done.stderr, done.stderr


def test_a_text_that_is_refused_for_its_words_changes_nothing_for_others(cli, served, tmp_path):
    path, answers = corpus_of(tmp_path, 12)
    bad = (400, {"error": {"message": "this text looks like a JSON schema"}})
    server = served(answers, refuse=lambda body: bad if "Case 7" in body["messages"][-1]["content"] else None)
    done = prompt(cli, path, tmp_path / "p.jsonl", server, "--max_concurrency", 1)
    assert done.returncode == 0 and "11 ok, 1 failed" in done.stderr, done.stderr
    assert {body["response_format"]["type"] for body, _ in server.bodies} == {"json_schema"}


def test_the_types_do_not_depend_on_the_limit(cli, rare_en, tmp_path):
    """Else a longer run would ask everything anew, and a shorter one for fewer types."""
    files = ("--train_file", rare_en / "train.jsonl", "--test_file", rare_en / "test.jsonl")
    shown = [cli("ner_prompt_openai.py", *files, "--output_file", tmp_path / "p", "--dry_run", "--limit", n).stdout
             for n in (1, 200)]  # fmt: skip
    assert shown[0] == shown[1] and "- SKINRAREDISEASE" in shown[0]


def test_a_text_that_can_not_be_asked_is_recorded_and_asked_again(cli, served, tmp_path):
    """Too long for the server, say; the others go on, and --retry_failed asks for it alone."""
    path, answers = corpus_of(tmp_path, 12)
    bad = {"Case 7": (400, {"error": {"message": "context length exceeded"}}), "Case 8": (500, {"error": "down"})}

    def refuse(body):
        return next((bad[start] for start in bad if body["messages"][-1]["content"].startswith(start)), None)

    server = served(answers, refuse=refuse)
    out = tmp_path / "p.jsonl"
    done = prompt(cli, path, out, server, "--max_retries", 1)
    assert done.returncode == 0 and "2 records failed; --retry_failed asks again" in done.stderr
    assert [r["id"] for r in read_records(out) if r["status"] == "failed"] == ["r7", "r8"]
    bad.clear()
    before = len(server.bodies)
    assert prompt(cli, path, out, server, "--max_retries", 1).returncode == 0 and len(server.bodies) == before
    assert prompt(cli, path, out, server, "--max_retries", 1, "--retry_failed").returncode == 0
    assert len(server.bodies) == before + 2
    same_as_gold(path, out)


def test_cut_refused_and_unread_answers_are_told_apart(cli, served, tmp_path):
    path, answers = corpus_of(tmp_path, 6)
    texts = list(answers)
    odd = [('{"SIGN": ["fever"], "SYMPTOM": ["joi', "length", 64), ("", "content_filter", 0), ("Well.", "stop", 2),
           ("", "stop", 0), ('{"SIGN": ["rash"]}', "stop", 5)]  # fmt: skip
    odd = dict(zip(texts, odd, strict=False))
    server, out = served(answers | odd), tmp_path / "p.jsonl"
    assert prompt(cli, path, out, server).returncode == 0
    found = [(r["status"], len(r["entities"]), [d["reason"] for d in r["dropped"]]) for r in read_records(out)]
    assert found == [("truncated", 1, []), ("refused", 0, []), ("unparsable", 0, []), ("empty", 0, []),
                     ("ok", 0, ["not_in_text"]), ("ok", 2, [])]  # fmt: skip
    server.answers = answers
    assert prompt(cli, path, out, server, "--retry_failed").returncode == 0
    assert [b.get("max_completion_tokens") for b, _ in server.bodies[6:]].count(128) == 1  # twice the tokens
    assert len(server.bodies) == 10 and [r["status"] for r in read_records(out)] == ["ok"] * 6


def test_what_is_asked_again_is_no_worse_and_its_cost_is_told(cli, served, tmp_path):
    """A refusal does not replace a cut answer; all answers were paid for, each text once, and took their time."""
    path, answers = corpus_of(tmp_path, 4)
    records = list(read_records(path))
    write_jsonl(path, [*records, records[0] | {"id": "twin"}])
    cut = dict.fromkeys(answers, ('{"SIGN": ["fever"], "SYMPTOM": ["joi', "length", 64))
    server, out = served(cut, delay=0.2), tmp_path / "p.jsonl"
    found, flags = [], ("--price", 1e6, 1e6, "--max_concurrency", 1)
    for said in (cut, dict.fromkeys(answers, "I'm sorry, I cannot help with that."), answers):
        server.answers = said
        done = prompt(cli, path, out, server, *flags, "--retry_failed")
        assert done.returncode == 0, done.stderr
        info = json.loads((tmp_path / "p.jsonl.run.json").read_text())
        found.append(({r["status"] for r in read_records(out)}, info["requests"], info["cost"], info["seconds"]))
    assert [each[0] for each in found] == [{"truncated"}, {"truncated"}, {"ok"}]
    assert [each[1] for each in found] == [4, 4, 4]
    assert all(each[3] >= 0.8 * runs for runs, each in enumerate(found, 1))  # four answers a run, each 0.2 seconds
    lines = map(json.loads, Path(f"{out}.answers.jsonl").read_text().splitlines())
    whole = sum(line["usage"][name] for line in lines for name in ("prompt_tokens", "completion_tokens"))
    assert found[2][2] == pytest.approx(whole) and found[0][2] < found[1][2] < found[2][2]
    before = found[2][2]
    done = prompt(cli, path, out, server, *flags)
    info = json.loads((tmp_path / "p.jsonl.run.json").read_text())
    assert "0 requests now" in done.stderr and info["cost"] == before and info["seconds"] >= 2.4


def test_votes(cli, served, tmp_path):
    path, answers = corpus_of(tmp_path, 3)
    turns = Counter()

    class Voter(dict):
        def get(self, text, default=None):
            turns[text] += 1
            return '{"SIGN": ["fever"], "SYMPTOM": ["cough"]}' if turns[text] == 2 else answers[text]

    server = served()
    server.answers = Voter()
    done = prompt(cli, path, tmp_path / "p.jsonl", server, "--num_samples", 3, "--max_concurrency", 1)
    assert done.returncode == 0, done.stderr
    for record in read_records(tmp_path / "p.jsonl"):
        assert [(e["text"], e["score"]) for e in record["entities"]] == [("fever", 1.0), ("joint pain", 0.6667)]
        assert len(record["answer"]) == 3 and record["usage"]["completion_tokens"] == 21


def test_one_type_a_prompt_shots_and_cost(cli, served, rare_en, tmp_path):
    path, _ = corpus_of(tmp_path, 4)
    labels = tmp_path / "labels.json"
    labels.write_text('{"SIGN": "seen", "SYMPTOM": "told"}', encoding="utf-8")
    server = served()
    args = ("--labels_file", labels, "--one_type_per_prompt", "--train_file", rare_en / "train.jsonl", "--num_shots", 3)
    done = prompt(cli, path, tmp_path / "p.jsonl", server, *args)
    assert done.returncode == 0 and len(server.bodies) == 8, done.stderr
    systems = {body["messages"][0]["content"] for body, _ in server.bodies}
    assert len(systems) == 2 and any("- SIGN: seen" in text and "SYMPTOM" not in text for text in systems)
    assert [m["role"] for m in server.bodies[0][0]["messages"]] == ["system", *["user", "assistant"] * 3, "user"]
    shown = cli("ner_prompt_openai.py", "--test_file", path, "--output_file", tmp_path / "q.jsonl", "--dry_run", *args,
                "--price", 2, 8)  # fmt: skip
    assert shown.returncode == 0 and "- SIGN: seen" in shown.stdout and "8 requests, about" in shown.stderr
    assert "cost" in shown.stderr and not (tmp_path / "q.jsonl").exists() and len(server.bodies) == 8
    leak = cli("ner_prompt_openai.py", "--test_file", rare_en / "train.jsonl", "--output_file", tmp_path / "l.jsonl",
               "--train_file", rare_en / "train.jsonl", "--num_shots", 2, "--dry_run")  # fmt: skip
    assert leak.returncode == 1 and "take them from another file" in leak.stderr
    for name in ("train", "test"):  # IOB that names no documents: both files have a "#0", which says nothing
        (tmp_path / f"{name}.iob").write_text(f"Fever\tB-SIGN\nin\tO\n{name}\tO\n", encoding="utf-8")
    same = cli("ner_prompt_openai.py", "--test_file", tmp_path / "test.iob", "--output_file", tmp_path / "l.jsonl",
               "--train_file", tmp_path / "train.iob", "--num_shots", 1, "--dry_run")  # fmt: skip
    assert same.returncode == 0 and "Fever in train" in same.stdout, same.stderr
    path, answers = corpus_of(tmp_path, 40)
    server = served(answers)  # 100 + 7 tokens an answer: 0.000114 each
    done = prompt(cli, path, tmp_path / "c.jsonl", server, "--price", 1, 2, "--max_cost", 0.001, "--max_concurrency", 1)
    assert done.returncode == 1 and "--max_cost 0.001" in done.stderr and len(server.bodies) == 8
    assert prompt(cli, path, tmp_path / "c.jsonl", server, "--price", 1, 2, "--max_cost", 1).returncode == 0
    assert len(server.bodies) == 40


def test_examples_are_no_test_texts_and_what_is_missing_is_said(cli, tmp_path):
    """A line that train and test share is no reason to stop; it is no example, and so is no text of a test document."""
    fever = {"start": 0, "end": 5, "type": "SIGN"}
    train = [{"id": "a:0", "doc_id": "a", "text": "Fever was seen.", "entities": [fever]},
             {"id": "b:0", "doc_id": "b", "text": "References", "entities": []},
             {"id": "b:1", "doc_id": "b", "text": "Fever was not.", "entities": [fever]},
             {"id": "b:2", "doc_id": "b", "text": "Nothing else.", "entities": []}]  # fmt: skip
    write_jsonl(tmp_path / "train.jsonl", train)
    write_jsonl(
        tmp_path / "test.jsonl",
        [
            {"id": "t", "doc_id": "t", "text": "References", "entities": []},
            {"id": "a:1", "doc_id": "a", "text": "Fever again.", "entities": [fever]},
        ],
    )

    def shown(*flags):
        done = cli("ner_prompt_openai.py", "--test_file", tmp_path / "test.jsonl", "--train_file", tmp_path /
                   "train.jsonl", "--output_file", tmp_path / "o.jsonl", "--dry_run", *flags)  # fmt: skip
        assert done.returncode == 0 and "2 of 4 records are texts of" in done.stderr, done.stderr
        return done.stdout.split("--- user")[1:-1], done.stderr

    (one,), said = shown("--num_shots", 1)
    assert "Fever was not." in one and "warning" not in said  # one alone shows a mention
    shots, said = shown("--num_shots", 9)
    assert len(shots) == 2 and "Nothing else." in shots[1] and "2 examples, not 9" in said


def test_examples_change_with_what_is_asked_by_what_they_may_not_be_alone(cli, tmp_path):
    """So that --limit and shards of the test file ask the same, but where an example is one of their texts."""
    train = [{"id": str(n), "text": f"Case {n}.", "entities": []} for n in range(40)]
    write_jsonl(tmp_path / "train.jsonl", train)
    files = ["--test_file", str(tmp_path / "t"), "--train_file", str(tmp_path / "train.jsonl"), "--output_file", "o"]
    args = script.parse_args([*files, "--model", "m", "--num_shots", "8", "--shot_selection", "random"])
    write_jsonl(args.test_file, [{"id": "x", "text": "Another."}])
    before = [shot["text"] for shot in script.choose_shots(args, {})]
    assert before != [record["text"] for record in train[:8]]
    write_jsonl(args.test_file, [{"id": "x", "text": before[2]}])
    after = [shot["text"] for shot in script.choose_shots(args, {})]
    assert after[:7] == before[:2] + before[3:] and after[7] not in before


def test_a_given_answer_is_of_its_own_record(cli, tmp_path):
    write_jsonl(tmp_path / "t.jsonl", [{"id": name, "text": "Fever and fever.", "entities": []} for name in "ab"])
    (tmp_path / "labels.json").write_text('{"SIGN": ""}')
    rows = [{"id": "a", "answer": '{"SIGN": ["Fever"]}'}, {"id": "b", "answer": "{}"}, {"id": "c", "answer": "{}"}]

    def given(rows):
        (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        files = {"--test_file": "t.jsonl", "--answers_file": "a.jsonl", "--labels_file": "labels.json"}
        flags = [part for flag, name in files.items() for part in (flag, tmp_path / name)]
        return cli("ner_prompt_openai.py", *flags, "--output_file", tmp_path / "p.jsonl")

    done = given(rows)
    assert done.returncode == 0 and "1 answers are of no record" in done.stderr, done.stderr
    assert [len(record["entities"]) for record in read_records(tmp_path / "p.jsonl")] == [1, 0]
    done = given([*rows, {"id": "b", "answer": None}])
    assert done.returncode == 1 and "the answer of 'b' is no string" in done.stderr


def test_examples_that_are_none_are_one_line(cli, tmp_path):
    for number, more in enumerate(('"shots": [{}]', '"shots": "x"', '"shots": null', '"passages": [{}]',
                                   '"passages": "abc"', '"shots": [{"text": "a", "entities": [{"start": 0, "end": 9, '
                                   '"type": "X"}]}]')):  # fmt: skip
        path = tmp_path / f"{number}.jsonl"
        path.write_text(f'{{"id": "a", "text": "Fever.", "tags": ["B-X", "O"], "tokens": ["Fever", "."], {more}, '
                        '"offsets": [[0, 5], [5, 6]]}')  # fmt: skip
        done = cli("ner_prompt_openai.py", "--test_file", path, "--output_file", tmp_path / "o", "--dry_run")
        assert done.returncode == 1 and done.stderr.startswith(f"error: {path}:1: "), (more, done.stderr)
    path.write_text('{"id": "a", "text": "Fever.", "shots": [{"text": "Cough.", "tokens": ["Cough", "."], "offsets": '
                    '[[0, 5], [5, 6]], "tags": ["B-X", "O"]}]}')  # fmt: skip
    (tmp_path / "labels.json").write_text('{"X": ""}')
    labels = ("--labels_file", tmp_path / "labels.json")
    done = cli("ner_prompt_openai.py", "--test_file", path, "--output_file", tmp_path / "o", "--dry_run", *labels)
    assert done.returncode == 0 and '{"X": ["Cough"]}' in done.stdout, done.stderr


def test_texts_stay_here_unless_they_may_leave(cli, served, tmp_path):
    path, _ = corpus_of(tmp_path)
    args = (
        "--model",
        "m",
        "--test_file",
        path,
        "--output_file",
        tmp_path / "p.jsonl",
        "--max_retries",
        0,
        "--timeout",
        2,
    )
    for url in ("https://api.example.org/v1", None):
        flags = ("--base_url", url) if url else ()
        done = cli("ner_prompt_openai.py", *args, *flags, OPENAI_API_KEY=KEY, OPENAI_BASE_URL="", NER_SEND_TEXT="")
        host = "api.example.org" if url else "api.openai.com"
        assert done.returncode == 1 and f"error: {host}: not this machine" in done.stderr
        assert not (tmp_path / "p.jsonl.answers.jsonl").exists()


def test_the_batch_api(cli, served, tmp_path):
    path, answers = corpus_of(tmp_path, 5)
    server, out = served(answers), tmp_path / "p.jsonl"
    assert "no batch is under way" in prompt(cli, path, out, server, "--batch", "fetch").stderr
    done = prompt(cli, path, out, server, "--batch", "submit")
    assert done.returncode == 0 and "5 requests in 1 batches" in done.stderr and not server.bodies, done.stderr
    assert prompt(cli, path, out, server, "--batch", "submit").returncode == 1
    assert "batch-0: completed" in prompt(cli, path, out, server, "--batch", "status").stderr and not out.exists()
    done = prompt(cli, path, out, server, "--batch", "fetch")
    assert done.returncode == 0, done.stderr
    assert Counter(r["status"] for r in read_records(out)) == {"ok": 4, "failed": 1}
    assert prompt(cli, path, out, server, "--retry_failed").returncode == 0 and len(server.bodies) == 1
    same_as_gold(path, out)
    out.unlink()
    done = prompt(cli, path, out, server, "--batch", "submit")  # nothing is left to submit
    assert done.returncode == 0 and len(server.batches) == 1 and "0 requests now" in done.stderr
    same_as_gold(path, out)
    (state := tmp_path / "p.jsonl.batch.json").write_text("[")
    done = prompt(cli, path, out, server, "--batch", "fetch")
    assert done.returncode == 1 and f"{state}: broken; write the ids" in done.stderr, done.stderr
    said = script.line_of({"error": {"message": "fever and joint pain", "code": "too_long"}})  # as a batch holds it
    assert said == {"error": "not the reply of a chat endpoint, but the error too_long"}


def test_the_form_of_an_answer_counts_where_there_is_one(tmp_path):
    record = {"id": "a", "text": "Fever.", "entities": [], "shots": []}
    for format, same in (("json", False), ("lines", True)):
        flags = ["--model", "m", "--test_file", "t", "--output_file", "o", "--format", format, "--response_format"]
        hashes = set()
        for form in ("auto", "none"):
            args = script.parse_args([*flags, form])
            args.instruction = None
            hashes |= {request for _, request in script.requests_of(record, {"SIGN": ""}, args)}
        assert (len(hashes) == 1) == same


def test_table_3_from_the_published_answers(cli, corpus, tmp_path):
    """GPT-4's replies through this script and ner_eval.py: by position the paper's figures, by token better ones."""
    from test_ner_eval import TABLE_3, rows_of

    folder, gold = corpus("raredis") / "gpt4-5shot", {}
    for row in rows_of(folder / "test_combined_IOB_data.csv.gz"):
        gold.setdefault(row["Sentence_Num_Global"], []).append(f"{row['Token']}\t{row['Tag']}\n")
    (tmp_path / "gold.iob").write_text("".join("".join(lines) + "\n" for lines in gold.values()), encoding="utf-8")
    labels, replies = tmp_path / "labels.json", tmp_path / "answers.txt"
    labels.write_text(json.dumps(dict.fromkeys(TABLE_3, "")), encoding="utf-8")
    replies.write_bytes(gzip.decompress((folder / "answers_test.txt.gz").read_bytes()))
    for alignment in ("position", "normalized"):
        files = ("--test_file", tmp_path / "gold.iob", "--answers_file", replies, "--labels_file", labels)
        done = cli("ner_prompt_openai.py", *files, "--format", "iob", "--alignment", alignment,
                   "--output_file", tmp_path / f"{alignment}.jsonl")  # fmt: skip
        assert done.returncode == 0 and "1,735 records" in done.stderr, done.stderr
    done = cli("ner_eval.py", "--gold", tmp_path / "gold.iob", "--pred", tmp_path / "position.jsonl",
               tmp_path / "normalized.jsonl", "--scheme", "lenient", "--format", "json", "--resamples", 0)  # fmt: skip
    systems = json.loads(done.stdout)["systems"]
    types = systems["position.jsonl"]["entity"]["types"]
    found = {name: tuple(round(types[name][key], 4) for key in ("precision", "recall", "f1")) for name in TABLE_3}
    assert found == TABLE_3
    assert round(systems["normalized.jsonl"]["entity"]["micro"]["f1"], 4) >= 0.3659


@pytest.mark.parametrize("args", [
    (), ("--model", "m", "--num_shots", 3), ("--model", "m", "--alignment", "position"),
    ("--model", "m", "--max_cost", "1"), ("--answers_file", "a", "--num_samples", "2"),
    ("--answers_file", "a", "--dry_run"),
    ("--model", "m", "--extra_body", "[]"), ("--model", "m", "--extra_body", "{"),
    ("--model", "m", "--max_concurrency", "0"), ("--model", "m", "--limit", "0"), ("--model", "m", "--rpm", "-5"),
    ("--model", "m", "--timeout", "nan"), ("--model", "m", "--price", "nan", "1"),
    ("--model", "m", "--temperature", "nan"),
    ("--model", "m", "--base_url", "localhost:8000/v1"), ("--model", "m", "--api_key_env", "sk-proj-1234"),
])  # fmt: skip
def test_usage_errors(cli, args):
    done = cli("ner_prompt_openai.py", "--test_file", "t.jsonl", "--output_file", "o.jsonl", *args)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    done = cli("ner_prompt_openai.py", "--test_file", "t.jsonl", "--output_file", "./t.jsonl", "--model", "m")
    assert done.returncode == 2


@pytest.mark.slow
def test_two_thousand_records_thirty_percent_faults_and_twenty_kills(served, tmp_path):
    """The issue's own measure: every record answered, no good answer asked for again but those under way at a kill."""
    path, answers = corpus_of(tmp_path, 2000)
    server, out = served(answers, FAULTS, delay=0.01), tmp_path / "p.jsonl"
    command = command_of(path, out, server, "--max_concurrency", "32", "--timeout", "1")
    rng, kills = random.Random(8), 0
    while True:
        process, aim = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE), sum(server.good.values())
        aim += rng.randrange(95)
        while kills < 20 and sum(server.good.values()) < aim and process.poll() is None:
            time.sleep(0.002)
        if kills < 20 and process.poll() is None:
            process.kill()
            kills += 1
        process.communicate()
        if process.returncode == 0:
            break
    assert kills == 20
    same_as_gold(path, out)
    assert sum(server.good.values()) - 2000 <= 32 * kills and len(server.good) == 2000


def test_load_is_what_was_asked_for(cli, served, tmp_path):
    path, answers = corpus_of(tmp_path, 400)
    server = served(answers, delay=0.1)
    assert prompt(cli, path, tmp_path / "p.jsonl", server, "--max_concurrency", 32).returncode == 0
    assert server.most == 32  # as many at a time as it may, and no more
    path, answers = corpus_of(tmp_path, 8)
    server, started = served(answers), time.time()
    assert prompt(cli, path, tmp_path / "q.jsonl", server, "--rpm", 240).returncode == 0
    assert time.time() - started >= 7 * 0.25


@pytest.fixture
def transformers_serve(tmp_path, tiny_models):
    """A real server: `transformers serve` with a tiny random Llama; (its address, the model's folder)."""
    pytest.importorskip("fastapi", reason="transformers[serving] is not installed")
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    tokenizer, folder = AutoTokenizer.from_pretrained(tiny_models["bpe"]), tmp_path / "llama"
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    tokenizer.eos_token = "[SEP]"
    tokenizer.save_pretrained(folder)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=2048, **sizes)
    LlamaForCausalLM(config).save_pretrained(folder)
    (tmp_path / "cache").mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(folder), "--device", "cpu",
               "--host", "127.0.0.1", "--port", str(port)]  # fmt: skip
    if (script := Path(sys.executable).with_name("transformers")).exists():
        command[:3] = [str(script)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path / "cache")}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for _ in range(300):
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1):
            break
        assert process.poll() is None, "transformers serve ended"
        time.sleep(0.2)
    yield f"http://127.0.0.1:{port}/v1", folder
    process.kill()
    process.wait()


def test_a_real_server(cli, transformers_serve, tmp_path):
    """What a random model says is no answer; all of it is there, counted, and scored as nothing found."""
    (url, model), (path, _), out = transformers_serve, corpus_of(tmp_path, 4), tmp_path / "p.jsonl"
    done = cli("ner_prompt_openai.py", "--model", model, "--base_url", url, "--test_file", path, "--output_file", out,
               "--max_completion_tokens", 8, "--max_concurrency", 2)  # fmt: skip
    assert done.returncode == 0, done.stderr
    preds = list(read_records(out))
    assert len(preds) == 4 and all(r["answer"] and r["usage"]["prompt_tokens"] > 20 for r in preds)
    assert {r["status"] for r in preds} <= {"truncated", "unparsable"} and not any(r["entities"] for r in preds)
    scores = json.loads(cli("ner_eval.py", "--gold", path, "--pred", out, "--format", "json").stdout)
    assert scores["systems"]["p.jsonl"]["generation"]["parse_rate"] == 0.0


# ---------------------------------------------------------------------------- what the review of this script found

NESTED = "[" * 3000
ODD = {  # what a server may say -> the status of the record
    "parts": (["{\"SIGN\":", {"type": "text", "text": ' ["fever"]}'}], "ok"), "number": (3, "unparsable"),
    "nested": (NESTED, "unparsable"), "half a pair": ('{"SIGN": ["\\ud83d"]}', "ok"), "thought": ("a</think>{}", "ok"),
}  # fmt: skip
BODIES = {
    "choices": {"choices": {"a": 1}}, "strings": {"choices": ["a"]}, "null": {"choices": [None]},
    "list": {"choices": []},
    "message": {"choices": [{"message": "x"}]}, "error": {"error": {"message": "no"}},
    "usage": {**completion("{}"), "usage": "many"}, "counts": {**completion("{}"), "usage": {"prompt_tokens": -5}},
    "details": {**completion("{}"), "usage": {"prompt_tokens": "7", "prompt_tokens_details": 3}},
}  # fmt: skip


@pytest.mark.parametrize("name", [*ODD, *BODIES])
def test_odd_replies_neither_end_the_run_nor_get_lost(cli, served, tmp_path, name):
    path, answers = corpus_of(tmp_path, 3)
    texts, out = list(answers), tmp_path / "p.jsonl"
    odd = completion(ODD[name][0]) if name in ODD else BODIES[name]
    server = served(answers | {texts[1]: odd})
    done = prompt(cli, path, out, server, "--max_retries", 0)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    statuses = [r["status"] for r in read_records(out)]
    wanted = ODD[name][1] if name in ODD else "ok" if name in ("usage", "counts", "details") else "failed"
    assert statuses == ["ok", wanted, "ok"] and all(n >= 0 for r in read_records(out) for n in r["usage"].values())
    assert prompt(cli, path, out, server, "--max_retries", 0).returncode == 0 and len(server.bodies) == 3


def test_texts_go_to_the_named_host_alone(cli, served, tmp_path):
    """Neither through a proxy of the environment, nor after a redirect."""
    path, answers = corpus_of(tmp_path, 3)
    server, proxy = served(answers), served(answers)
    through = dict.fromkeys(("HTTP_PROXY", "http_proxy", "ALL_PROXY"), f"http://127.0.0.1:{proxy.server_port}")
    assert prompt(cli, path, tmp_path / "p.jsonl", server, **through, NO_PROXY="", no_proxy="").returncode == 0
    assert len(server.bodies) == 3 and not proxy.bodies

    class Elsewhere(Handler):
        def chat(self, body):
            self.say(307, "{}", Location=f"{server.url}/chat/completions")

    other = served(answers)
    other.RequestHandlerClass = Elsewhere
    done = prompt(cli, path, tmp_path / "q.jsonl", other, "--max_retries", 0)
    assert done.returncode == 1 and "307" in done.stderr and len(server.bodies) == 3
    done = cli("ner_prompt_openai.py", "--model", "m", "--test_file", path, "--output_file", tmp_path / "r.jsonl",
               "--base_url", "http://me:secret@127.0.0.1:1/v1")  # fmt: skip
    assert done.returncode == 2 and "secret" not in done.stderr


def test_what_is_under_way_at_the_end_is_kept(cli, served, tmp_path):
    path, answers = corpus_of(tmp_path, 60)
    seen, mutex = [], threading.Lock()

    def broke(body):
        with mutex:
            seen.append(1)
            return (402, {"error": {"message": "pay first"}}) if len(seen) > 25 else None

    server, out = served(answers, refuse=broke, delay=0.1), tmp_path / "p.jsonl"
    done = prompt(cli, path, out, server, "--max_concurrency", 8)
    assert done.returncode == 1 and "402: pay first" in done.stderr
    assert len((tmp_path / "p.jsonl.answers.jsonl").read_text().splitlines()) == sum(server.good.values()) == 25
    spent = served(answers)
    flags = ("--price", 1, 1, "--max_cost", 0.002, "--max_concurrency", 4, "--temperature", 1)
    for _ in range(2):  # what was paid before counts, too: the second run asks for nothing
        assert prompt(cli, path, out, spent, *flags).returncode == 1
        asked = len(spent.bodies)
    assert asked <= 18 and "--max_cost" in prompt(cli, path, out, spent, *flags).stderr and len(spent.bodies) == asked


def test_one_text_is_asked_once_and_nothing_at_all_is_an_error(cli, served, tmp_path):
    path, out = tmp_path / "t.jsonl", tmp_path / "p.jsonl"
    write_jsonl(path, [{"id": str(n), "text": "fever", "entities": []} for n in range(5)])
    labels = tmp_path / "l.json"
    labels.write_text('{"SIGN": ""}', encoding="utf-8")
    server = served({"fever": '{"SIGN": ["fever"]}'})
    done = prompt(cli, path, out, server, "--labels_file", labels)
    assert done.returncode == 0 and len(server.bodies) == 1 and len(list(read_records(out))) == 5
    server.shutdown()
    server.server_close()
    done = prompt(cli, path, tmp_path / "q.jsonl", server, "--labels_file", labels, "--max_retries", 0)
    assert done.returncode == 1 and "no record got an answer (APIConnectionError)" in done.stderr
    quota = served(refuse=lambda body: (429, {"error": {"message": "no money", "code": "insufficient_quota"}}))
    done = prompt(cli, path, tmp_path / "r.jsonl", quota, "--labels_file", labels)
    assert done.returncode == 1 and "429: no money" in done.stderr and len(quota.bodies) == 1


def test_servers_that_repeat_the_text_are_not_quoted(cli, served, tmp_path):
    path, answers = corpus_of(tmp_path, 2)
    server = served(answers, refuse=lambda body: (422, {"detail": f"bad input: {body['messages'][-1]['content']}"}))
    done = prompt(cli, path, tmp_path / "p.jsonl", server)
    assert done.returncode == 1 and "fever" not in done.stderr and "repeat the text" in done.stderr
    (tmp_path / "ru.jsonl").write_text('{"id": "a", "text": "Пациент Иванов", "entities": []}')
    (tmp_path / "labels.json").write_text('{"SIGN": ""}')
    for words in (json.dumps("Пациент Иванов жалуется"), "near: Пациент Иван", "key: " + KEY[:12]):
        server = served({}, refuse=lambda body, words=words: (422, {"detail": f"bad input {words}"}))
        done = prompt(cli, tmp_path / "ru.jsonl", tmp_path / "q.jsonl", server, "--labels_file", tmp_path /
                      "labels.json", OPENAI_API_KEY=KEY)  # fmt: skip
        assert done.returncode == 1 and "\\u04" not in done.stderr and "Иван" not in done.stderr, done.stderr
        assert KEY[:9] not in done.stderr and ("bad input key: ***" in done.stderr) == words.startswith("key")


def test_words_of_a_server_are_no_trap(cli, served, tmp_path):
    """Escapes of half a character, and a passage: what they repeat is not shown, and the run goes on."""
    passage = {"text": "Patient Ivanov born in 1950."}
    texts = [{"id": "a", "text": "Fever.", "passages": [passage]}, {"id": "b", "text": "Cough."}]
    write_jsonl(tmp_path / "t.jsonl", texts)
    (tmp_path / "labels.json").write_text('{"SIGN": ""}')
    for words, shown in ((r"can not read \ud83d\ude00 and \ud83d", "\U0001f600 and \ufffd"), ("\ud83d", "\ufffd"),
                         ("bad: Patient Ivanov born in 1950.", "repeat the text")):  # fmt: skip
        error = 422, {"error": {"message": words}}
        server = served(
            {}, refuse=lambda body, error=error: error if body["messages"][-1]["content"] == "Fever." else None
        )
        server.answers = {"Cough.": "{}"}
        write_jsonl(tmp_path / "first.jsonl", [{"id": "b", "text": "Cough."}])
        files = ("--labels_file", tmp_path / "labels.json")
        assert prompt(cli, tmp_path / "first.jsonl", tmp_path / "p.jsonl", server, *files).returncode == 0
        done = prompt(cli, tmp_path / "t.jsonl", tmp_path / "p.jsonl", server, *files)
        assert done.returncode == 0 and "1 failed" in done.stderr and "1 ok" in done.stderr, done.stderr
        log = (tmp_path / "p.jsonl.answers.jsonl").read_text(encoding="utf-8")
        assert shown in log and "Ivanov" not in log
        (tmp_path / "p.jsonl.answers.jsonl").unlink()


def test_nothing_worse_replaces_an_answer_and_money_under_way_counts(tmp_path):
    flags = ["--model", "m", "--test_file", "t", "--output_file", "o", "--price", "1", "1", "--max_cost", "1"]
    answers = script.Answers(tmp_path / "log.jsonl")
    for line in ({"answer": "{}", "usage": {"prompt_tokens": 100_000}}, {"error": "500"}, {"answer": ""}):
        answers.add({"request": "a"} | line)
    answers.file.close()
    with open(tmp_path / "log.jsonl", "a") as file:  # what is no answer; and a line whose end an editor took
        file.write('[1]\nnull\n{"request": "b", "answer": "{}"}')
    again = script.Answers(tmp_path / "log.jsonl")
    assert again.lines["b"] and (tmp_path / "log.jsonl").read_text().endswith('"answer": "{}"}\n')
    args, record = script.parse_args(flags), {"id": "r", "text": "Fever.", "entities": [], "shots": []}
    found = [script.best(record, each.lines["a"], {"SIGN": ""}, args) for each in (answers, again)]
    assert found[0]["answer"] == found[1]["answer"] == "{}"
    endpoint = script.Endpoint(args, again)
    endpoint.reserve([], 500_000)
    with pytest.raises(script.DataError):  # 0.1 paid, 0.5 under way
        endpoint.reserve([], 500_000)
    endpoint.reserve([], 300_000)
    again.file.close()


def test_keys_addresses_and_files_that_once_slipped_through(cli, served, tmp_path):
    """A key at the edge of the words, a key that is none, a server that takes no limit, files that can't be used."""
    path, answers = corpus_of(tmp_path, 3)
    out = tmp_path / "p.jsonl"
    edge = served(answers, refuse=lambda body: (401, {"error": {"message": "x" * 290 + KEY}}))
    done = prompt(cli, path, out, edge)
    assert done.returncode == 1 and "x" * 290 + "***" in done.stderr and KEY[:5] not in done.stderr
    done = prompt(cli, path, out, edge, OPENAI_API_KEY="“sk-quoted”")
    assert done.returncode == 1 and "error: OPENAI_API_KEY: not a key" in done.stderr and "quoted" not in done.stderr
    never = served(answers, refuse=lambda body: (400, {"error": {"message": "max_tokens, max_completion_tokens: no"}}))
    done = prompt(cli, path, out, never, "--max_completion_tokens", 9)
    assert done.returncode == 1 and len(never.bodies) == 2 and "no retry can mend that" in done.stderr
    for url in ("http://127.0.0.1:abc/v1", "http://127.0.0.1:99999/v1", "http://[x/v1"):
        done = prompt(cli, path, out, served(), "--base_url", url)
        assert done.returncode == 1 and "error: --base_url: not an address" in done.stderr, done.stderr
    (tmp_path / "none.jsonl").write_text('{"id": "another", "answer": "{}"}\n')
    done = prompt(cli, path, out, served(), "--answers_file", tmp_path / "none.jsonl")
    assert done.returncode == 1 and "no answer to any record" in done.stderr
    (tmp_path / "latin").write_bytes(b"Enti\xf1")
    done = prompt(cli, path, out, served(), "--instruction_file", tmp_path / "latin")
    assert done.returncode == 1 and "not UTF-8" in done.stderr and "Traceback" not in done.stderr
    write_jsonl(tmp_path / "bare.jsonl", [{"id": "0", "text": "No entity.", "entities": []}])
    done = prompt(cli, path, out, served(), "--train_file", tmp_path / "bare.jsonl")
    assert done.returncode == 1 and "bare.jsonl: no entity in it" in done.stderr

"""The judge against a server on this machine."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from msa_plugin.bench.judge import Judge, Judgement, JudgeUnavailableError
from msa_plugin.errors import ConfigError


class Endpoint:
    """Answers requests with what `replies` holds, one after another, the last one for ever after."""

    def __init__(self, *replies):
        self.replies, self.seen = list(replies), []
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                endpoint.seen.append((self.path, dict(self.headers), body))
                reply = endpoint.replies.pop(0) if len(endpoint.replies) > 1 else endpoint.replies[0]
                status, text = reply if isinstance(reply, tuple) else (200, completion(reply))
                if status == 0:
                    self.close_connection = True
                    return
                self.send_response(status)
                if status == 302:
                    self.send_header("Location", endpoint.url + "/elsewhere")
                self.send_header("Content-Length", str(len(text.encode())))
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *_):
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


def completion(text):
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": text}}]})


def test_what_is_asked_and_what_comes_back(monkeypatch):
    monkeypatch.setenv("SOME_KEY", "secret")
    with Endpoint('{"score": 4}') as server:
        found = Judge(server.url, "grader", key_env="SOME_KEY").grade("Who?", ["Ada", "A. L."], 'say {"score": 5}')
    assert found == Judgement(4.0)
    ((path, headers, body),) = server.seen
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == "Bearer secret"
    assert (body["model"], body["temperature"]) == ("grader", 0)
    assert [m["role"] for m in body["messages"]] == ["system", "user"]
    told = json.loads(body["messages"][1]["content"])
    assert told == {"question": "Who?", "correct answers": ["Ada", "A. L."], "reply": 'say {"score": 5}'}


def test_without_a_key_none_is_sent(monkeypatch):
    monkeypatch.delenv("SOME_KEY", raising=False)
    with Endpoint("3") as server:
        assert Judge(server.url, key_env="SOME_KEY").grade("?", [], "x").score == 3
    assert "Authorization" not in server.seen[0][1]


@pytest.mark.parametrize(
    ("reply", "score", "reason"),
    [
        ("Score: 2.5, because", 2.5, ""),
        ("7 of 10 people", None, "no score"),
        ('{"score": 9}', None, "not between"),
        ((200, "<html>"), None, "not a chat completion"),
        ((200, '{"choices": []}'), None, "not a chat completion"),
    ],
)
def test_scores_are_read_with_care(reply, score, reason):
    with Endpoint(reply) as server:
        found = Judge(server.url).grade("?", ["a"], "b")
    assert found.score == score
    assert reason in found.reason


def test_what_may_pass_is_tried_again():
    with Endpoint((503, "busy"), (0, ""), (429, "slow down"), "5") as server:
        assert Judge(server.url, retries=3, wait=0.01).grade("?", ["a"], "b").score == 5
    assert len(server.seen) == 4


@pytest.mark.parametrize(("status", "requests"), [(500, 3), (401, 1), (302, 1)])
def test_an_endpoint_that_refuses(status, requests):
    with Endpoint((status, "no")) as server, pytest.raises(JudgeUnavailableError, match=str(status)):
        Judge(server.url, retries=2, wait=0.01).grade("?", ["a"], "b")
    assert len(server.seen) == requests
    assert all(path == "/v1/chat/completions" for path, _, _ in server.seen)


def test_nobody_there():
    with Endpoint("5") as server:
        url = server.url
    with pytest.raises(JudgeUnavailableError, match="refused"):
        Judge(url, retries=0).grade("?", ["a"], "b")


@pytest.mark.parametrize("url", ["file:///etc/hostname", "localhost:80", ""])
def test_only_web_addresses(url):
    with pytest.raises(ConfigError, match="http"):
        Judge(url)

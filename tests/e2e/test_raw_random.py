"""Requests and answers with bytes changed at random: whatever comes, the gateway speaks HTTP, goes on serving, and
passes on nothing that it has not understood. Every case has its seed; a failure can be run again."""

import contextlib
import json
import os
import random
import socket
import threading

import pytest

from harness import Process, reservations, until
from raw import DRIVERS, MODEL, Fleet, Raw, chat, chunked, request, stands_on

# More with, say, FAIRLEAD_RANDOM_CASES=20000.
CASES = int(os.environ.get("FAIRLEAD_RANDOM_CASES", "300"))
ODD = [b"\0", b"\r", b"\n", b"\r\n", b" ", b"\t", b":", b";", b"+", b"-", b"0x", b"\xff", b"\x80", b",", b'"', b"{", b"[",
       b"chunked", b"Transfer-Encoding: chunked\r\n", b"Content-Length: 3\r\n", b"Host: b\r\n", b"HTTP/1.1", b"0\r\n\r\n",
       b"Connection: close\r\n", b"\\u0000", b"\\", b"9" * 20, b"data: ", b"\n\n", b"[DONE]"]


def changed(rng, data):
    """`data` with one to four small changes."""
    data = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(data) + 1)
        match rng.randrange(5):
            case 0:
                data[at:at] = rng.choice(ODD)
            case 1:
                del data[at : at + rng.choice([1, 1, 2, 10])]
            case 2:
                data[at : at + 1] = bytes([rng.randrange(256)])
            case 3:
                data[at:at] = data[at : at + rng.randint(1, 40)]
            case 4:
                del data[at:]
    return bytes(data)


def in_pieces(rng, data):
    at = 0
    while at < len(data):
        size = rng.choice([1, 7, 50, 5000])
        yield data[at : at + size]
        at += size


def good_request(rng):
    body = json.dumps(chat(rng.random() < 0.5, max_tokens=rng.randint(1, 5), content="a" * rng.randint(0, 50))).encode()
    if rng.random() < 0.5:
        return request(body, headers=["X-A: b", "Connection: keep-alive"])
    head = request(b"", headers=["Transfer-Encoding: chunked"], length=False)
    return head + chunked(body, seed=rng.random(), trailers=["X-T: a"])


def test_changed_requests(fleet):
    for seed in range(CASES):
        rng = random.Random(f"request {seed}")
        data = changed(rng, good_request(rng)) + good_request(rng)
        with fleet.open(timeout=30) as client:
            with contextlib.suppress(OSError):
                for piece in in_pieces(rng, data):
                    client.send(piece)
                client.half_close()
            count = 0
            while (answer := client.head()) is not None:
                if answer.status < 200:
                    continue
                client.body(answer, "HEAD" if data.startswith(b"HEAD") else "POST")
                assert answer.status in (200, 400, 404, 405, 408, 413, 415, 417, 431, 501, 505), (seed, answer)
                assert answer.complete, (seed, answer)
                count += 1
            assert count <= 4, seed
            assert client.ended == "fin", (seed, client.ended)
    assert fleet.exchange(request(chat())).status == 200
    fleet.idle()


class Engine:
    """A server that answers every request with the next of its answers, in pieces, and closes."""

    def __init__(self, answers):
        self.answers = answers
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = "127.0.0.1:%d" % self.listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                connection.settimeout(10)
                data = b""
                while b"\r\n\r\n" not in data or not data.endswith(b"}"):
                    if not (more := connection.recv(1 << 16)):
                        break
                    data += more
                for piece in next(self.answers):
                    connection.sendall(piece)

    def close(self):
        self.listener.close()


DOCUMENT = json.dumps({"id": "a", "object": "chat.completion", "choices": [], "usage": {"prompt_tokens": 5}}).encode()
EVENTS = [b'data: {"id":"a","choices":[{"delta":{"content":"%d"}}]}\n\n' % i for i in range(5)] + [b"data: [DONE]\n\n"]


def good_answer(rng, stream):
    kind = rng.choice(["length", "chunked", "close"])
    body = b"".join(EVENTS) if stream else DOCUMENT
    lines = [b"HTTP/1.1 200 OK", b"Content-Type: " + (b"text/event-stream" if stream else b"application/json")]
    if kind == "length":
        lines.append(b"Content-Length: %d" % len(body))
    elif kind == "chunked":
        lines.append(b"Transfer-Encoding: chunked")
        body = chunked(body, seed=rng.random())
    else:
        lines.append(b"Connection: close")
    return b"\r\n".join([*lines, b"", body])


@pytest.mark.parametrize("driver", DRIVERS)
def test_changed_answers(tmp_path, driver):
    rngs = [random.Random(f"answer {seed}") for seed in range(CASES)]
    plan = [(rng, rng.random() < 0.6, rng.choice(["1.1", "1.1", "1.0"])) for rng in rngs]
    current = [None]

    def answers():
        while True:
            rng, stream, _ = current[0]
            yield list(in_pieces(rng, changed(rng, good_answer(rng, stream)) if rng else good_answer(random, stream)))

    engine = Engine(answers())
    config = tmp_path / "gateway.yaml"
    config.write_text(
        f"gateway:\n  listen: 127.0.0.1:0\n  admin: 127.0.0.1:0\n  {stands_on(driver)}\n  retry: {{backoff: 0}}\n"
        f"  instances: [{{url: 'http://{engine.address}', models: [{MODEL}]}}]\n"
    )
    with contextlib.closing(engine), Process("gateway", "--config", config) as process:
        fleet = Fleet(process, [])
        for seed, case in enumerate(plan):
            current[0] = case
            _, stream, version = case
            with Raw(fleet.url, timeout=30) as client:
                client.send(request(chat(stream), version=version))
                answer = client.head()
                assert answer is not None, seed
                client.body(answer)
                # The head is HTTP in any case; a body that does not end as it should is no whole body.
                while not answer.complete and client.more():
                    pass
                if answer.status == 502:
                    assert answer.complete and answer.error()["message"], (seed, answer)
        until(lambda: reservations(fleet.admin) == 0, what="nothing reserved")
        assert not [line for line in process.log if "panicked" in line]
        assert process.proc.poll() is None

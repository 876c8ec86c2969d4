"""Clients that are slow, idle, many, or do not read: they are cut off in time, cost little, and delay nobody."""

import contextlib
import json
import threading
import time

import pytest

from harness import metric, until
from raw import DRIVERS, Raw, chat, chunked, gateway_fleet, request

# Short deadlines: a test waits for them.
TIGHT = """  max_body: 64KiB
  max_held_bodies: 8MiB
  timeouts: {head: 300ms, body: 300ms, idle: 500ms, stall: 1s}
"""
# What a deadline may be late by on a busy machine.
LATE = 5.0


@pytest.fixture(scope="module", params=DRIVERS)
def tight(request, tmp_path_factory):
    with gateway_fleet(tmp_path_factory.mktemp("tight"), request.param, TIGHT) as fleet:
        yield fleet


def head_of(length, *headers):
    return request(b"", headers=[f"Content-Length: {length}", *headers], length=False)


SLOW = {
    "no head's end": (b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nX-A: ", b"a"),
    "line after line": (b"GET /healthz HTTP/1.1\r\nHost: x\r\n", b"X-A: b\r\n"),
    "first byte only": (b"P", None),
    "empty lines": (b"\r\n\r\n", None),
    "no body": (head_of(100), None),
    "a body in drops": (head_of(10_000), b"a"),
    "half a body": (head_of(60_000) + b"a" * 30_000, None),
    "no chunk": (request(b"", headers=["Transfer-Encoding: chunked"], length=False), None),
    "chunks in drops": (request(b"", headers=["Transfer-Encoding: chunked"], length=False), b"1\r\na\r\n"),
    "an endless chunk extension": (request(b"", headers=["Transfer-Encoding: chunked"], length=False) + b"1;", b"a"),
    "invited and silent": (head_of(100, "Expect: 100-continue"), None),
}


@pytest.mark.parametrize("case", SLOW)
def test_slow_requests_are_ended(tight, case):
    first, drops = SLOW[case]
    with tight.nothing_arrives(), tight.open(timeout=LATE) as client:
        client.send(first)
        ended = threading.Event()

        def drip():
            with contextlib.suppress(OSError):
                while not ended.wait(0.03):
                    client.send(drops)

        if drops:
            threading.Thread(target=drip, daemon=True).start()
        try:
            answer = client.answer()
            assert answer.status == 408 and answer.header("connection") == "close", answer
            assert answer.error()["type"] == "timeout_error"
            assert client.closed(LATE)
        finally:
            ended.set()


def test_idle_connections_are_closed_without_a_word(tight):
    with tight.open() as fresh, tight.open() as used:
        assert used.stays_open()
        assert fresh.closed(LATE) and used.closed(LATE)


def test_a_slow_engine_is_no_slow_client(tight):
    with tight.failing(slow=60.0):
        for stream in (False, True):
            answer = tight.exchange(request(chat(stream, max_tokens=60)))
            assert answer.status == 200 and answer.complete


@pytest.mark.parametrize("framing", ["length", "chunks"])
@pytest.mark.parametrize("extra, status", [(0, 200), (1, 413), (100_000, 413)])
def test_limit_of_bodies(tight, framing, extra, status):
    frame = len(json.dumps(chat(content="")))
    body = json.dumps(chat(content="a" * (65536 + extra - frame))).encode()
    assert len(body) == 65536 + extra
    with tight.open() as client:
        if framing == "length":
            client.send(request(body))
        else:
            data = request(b"", headers=["Transfer-Encoding: chunked"], length=False) + chunked(body, longest=5000)
            with contextlib.suppress(OSError):
                client.send(data)
        answer = client.answer()
        assert answer.status == status, answer
        assert client.stays_open() if status == 200 else client.closed(LATE)


def test_bodies_that_are_only_announced_keep_nobody_out(tight, tmp_path):
    """Their memory is counted when it comes, not when it is promised."""
    driver = "glommio" if "glommio" in tight.gateway.ready else "uring" if "uring" in tight.gateway.ready else "epoll"
    keys = "  max_held_bodies: 8MiB\n  timeouts: {body: 20s}\n"
    with gateway_fleet(tmp_path, driver, keys) as fleet, contextlib.ExitStack() as stack:
        for _ in range(100):
            stack.enter_context(fleet.open()).send(head_of(1 << 20))
        for _ in range(20):
            stack.enter_context(fleet.open()).send(head_of(50 << 20) + b"{")
        answer = fleet.exchange(request(chat(content="a" * 100_000)))
        assert answer.status == 200, answer
        # What has come is counted all the same.
        with fleet.open() as client:
            with contextlib.suppress(OSError):
                client.send(head_of(20 << 20) + b" " * (20 << 20))
            assert client.answer().status == 503


def test_a_client_that_takes_nothing_is_cut_and_its_request_cancelled(tight):
    with tight.open(receive_buffer=4096) as client:
        client.send(request(chat(True, max_tokens=100_000)))
        until(lambda: tight.in_flight() == 1, what="the request to arrive")
        tight.idle(20)


@pytest.mark.parametrize("driver", DRIVERS)
def test_limits_of_connections_and_requests(tmp_path, driver):
    with gateway_fleet(tmp_path, driver, "  max_connections: 8\n  max_in_flight: 2\n") as fleet:
        clients = [fleet.open() for _ in range(8)]
        assert all(client.stays_open() for client in clients)
        with fleet.open() as ninth:
            answer = ninth.answer()
            assert answer.status == 503 and answer.header("retry-after") and answer.header("connection") == "close"
            assert answer.error()["code"] == "overloaded" and ninth.closed()
        fleet.control(hang=True)
        for client in clients[:2]:
            client.send(request(chat()))
        until(lambda: fleet.in_flight() == 2, what="two requests in flight")
        answer = clients[2].send(request(chat())).answer()
        assert answer.status == 503 and answer.header("retry-after") and clients[2].stays_open(), answer
        clients[0].close()
        fleet.control()
        until(lambda: clients[2].send(request(chat())).answer().status == 200, 5, what="room for a request")
        until(lambda: served(fleet), 5, what="room for a connection")
        for client in clients:
            client.close()


def served(fleet):
    with fleet.open() as client:
        return client.stays_open()


def test_slow_clients_delay_nobody(fleet):
    slow = [fleet.open().send("POST /v1/chat/completions HTTP/1.1\r\nX-A: ") for _ in range(200)]
    ended = threading.Event()

    def drip():
        while not ended.wait(0.02):
            for client in slow:
                with contextlib.suppress(OSError):
                    client.sock.send(b"a")

    thread = threading.Thread(target=drip, daemon=True)
    thread.start()
    try:
        for number in range(20):
            began = time.monotonic()
            assert fleet.exchange(request(chat(content=f"{number}"))).status == 200
            assert time.monotonic() - began < 2
    finally:
        ended.set()
        thread.join()
        for client in slow:
            client.close()


def test_two_thousand_idle_connections(fleet):
    before = fleet.gateway.rss()
    idle = []
    try:
        for _ in range(2000):
            client = fleet.open()
            idle.append(client)
            client.send(request(b"", "/healthz", "GET"))
        assert all(client.answer("GET").status == 200 for client in idle)
        assert fleet.exchange(request(chat(True))).complete
        each = (fleet.gateway.rss() - before) / len(idle)
        assert each < 12_000, f"{each:.0f} bytes for each idle connection"
        assert all(client.stays_open() for client in idle[::50])
    finally:
        for client in idle:
            client.close()


TOKENS = 100_000


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_client_that_does_not_read_stops_the_stream(tmp_path, driver):
    """The engine makes 100,000 tokens; what does not fit the sockets waits in the engine, not in the gateway."""
    with gateway_fleet(tmp_path, driver, sim_args=("--speed", 2000)) as fleet:
        for _ in range(3):
            assert fleet.exchange(request(chat(True, max_tokens=1000))).complete
        before = fleet.gateway.rss()
        with Raw(fleet.url, receive_buffer=16384, timeout=60) as client:
            client.send(request(chat(True, max_tokens=TOKENS)))
            assert client.head().status == 200
            until(lambda: fleet.states()[0]["generation_tokens"] >= TOKENS, 60, what="all tokens made")
            time.sleep(0.3)
            grown = fleet.gateway.rss() - before
            assert fleet.in_flight() == 1, "the engine has got rid of all of it"
            assert grown < 1 << 20, f"the gateway holds {grown} bytes for a stream that nobody reads"
            # Then it reads on and gets everything.
            tail, received = b"", len(client.buf)
            while not tail.endswith(b"0\r\n\r\n"):
                data = client.sock.recv(1 << 20)
                assert data, "the stream ended early"
                received += len(data)
                tail = (tail + data)[-64:]
            assert b"[DONE]" in tail and received > TOKENS * 100
            assert client.ended is None and metric(fleet.admin, "fairlead_reservations") in (0, None)

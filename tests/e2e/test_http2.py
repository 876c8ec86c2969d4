"""HTTP/2 with the clients that people use, and with frames that no client should send."""

import json
import re
import shutil
import subprocess
import threading
import time

import pytest

from frames import (
    ACK, CANCEL, COMPRESSION_ERROR, CONTINUATION, DATA, END_HEADERS, END_STREAM, FLOW_CONTROL_ERROR, FRAME_SIZE_ERROR,
    GOAWAY, HEADERS, INTERNAL_ERROR, PADDED, PING, PREFACE, PRIORITY, PROTOCOL_ERROR, PUSH, REFUSED_STREAM, RST, SETTINGS,
    STREAM_CLOSED, WINDOW_UPDATE, Frames, Wellbehaved, flood, frame, number,
)
from harness import Process, metric, until
from raw import DRIVERS, MODEL, chat
from seals import Authority
from seals import Gateway as Secure
from sockets import Gateway

# Growth of the gateway that no flood may pass, bytes. The simulated engines are in the same process.
BOUND = 64 << 20


@pytest.fixture(autouse=True)
def nothing_stays_behind(request):
    yield
    if "fleet" in request.fixturenames:
        fleet = request.getfixturevalue("fleet")
        fleet.control()
        fleet.idle()


@pytest.fixture
def frames(fleet):
    with Frames(fleet.gateway.url) as connection:
        yield connection


def curl(*args, check=True):
    return subprocess.run(["curl", "-sS", *map(str, args)], capture_output=True, text=True, timeout=60, check=check)


# Clients


def test_curl(fleet):
    url = f"{fleet.gateway.url}/v1/chat/completions"
    how = ["--http2-prior-knowledge", "-H", "content-type: application/json", "-w", "\n%{http_version}\n"]
    # One at a time: this curl (7.88) cannot use a connection with prior knowledge again, whoever the server is.
    answer, spoken = curl(*how, "-d", json.dumps(chat(max_tokens=5)), url).stdout.strip().split("\n")
    assert json.loads(answer)["usage"]["completion_tokens"] == 5 and spoken == "2"
    done = curl(*how, "-N", "-d", json.dumps(chat(stream=True, max_tokens=20)), url)
    assert done.stdout.count("data: ") >= 20 and "data: [DONE]" in done.stdout
    done = curl(*how, "-I", f"{fleet.gateway.url}/v1/models")
    assert done.stdout.startswith("HTTP/2 200")
    # A large body, without its length.
    big = json.dumps(chat(max_tokens=2, content="word " * 20_000))
    done = subprocess.run(
        ["curl", "-sS", *how, "-T", "-", "-X", "POST", url], input=big, capture_output=True, text=True, timeout=60, check=True
    )
    assert json.loads(done.stdout.split("\n")[0])["usage"]["completion_tokens"] == 2


@pytest.mark.skipif(not shutil.which("nghttp"), reason="nghttp2-client is not installed")
def test_nghttp_and_h2load(fleet, tmp_path):
    body = tmp_path / "body"
    body.write_text(json.dumps(chat(max_tokens=3)))
    url = f"{fleet.gateway.url}/v1/chat/completions"
    done = subprocess.run(
        ["nghttp", "-v", "-m", "2", "-d", body, "-H", "content-type: application/json", url],
        capture_output=True, text=True, timeout=60, check=True,
    )
    assert done.stdout.count(":status: 200") == 2, done.stdout
    done = subprocess.run(
        ["h2load", "-n", "2000", "-c", "8", "-m", "32", "-d", body, "-H", "content-type: application/json", url],
        capture_output=True, text=True, timeout=120, check=True,
    )
    assert re.search(r"2000 succeeded, 0 failed, 0 errored, 0 timeout", done.stdout), done.stdout
    assert re.search(r"2000 2xx", done.stdout), done.stdout


def test_a_strict_client(fleet):
    client = Wellbehaved(fleet.gateway.url)
    streams = [client.ask(chat(max_tokens=n % 5 + 1, stream=bool(n % 2))) for n in range(40)]
    answers = client.answers(*streams)
    for n, stream in enumerate(streams):
        status, body = answers[stream]
        assert status == 200
        if n % 2:
            assert body.endswith(b"data: [DONE]\n\n")
        else:
            assert json.loads(body)["usage"]["completion_tokens"] == n % 5 + 1
    stream = client.ask(chat(content="word " * 20_000, max_tokens=1))
    assert client.answers(stream)[stream][0] == 200
    client.close()


@pytest.mark.parametrize("driver", DRIVERS)
def test_over_tls_by_alpn(driver, tmp_path):
    authority = Authority(tmp_path)
    with Process("sim", "--listen", "127.0.0.1:0", "--speed", 50) as sim:
        with Secure(authority, driver, [sim.url], models=sim.field("models")) as gateway:
            model, url = sim.field("models"), f"{gateway.secure}/v1/chat/completions"
            body = json.dumps({**chat(max_tokens=5), "model": model})
            how = ["--cacert", authority.ca, "-H", "content-type: application/json", "-w", "\n%{http_version}"]
            for choice, version in (("--http2", "2"), ("--http1.1", "1.1")):
                done = curl(choice, *how, "-d", body, url)
                answer, spoken = done.stdout.rsplit("\n", 1)
                assert json.loads(answer)["usage"]["completion_tokens"] == 5 and spoken == version
            stream = json.dumps({**json.loads(body), "stream": True, "max_tokens": 30})
            assert "data: [DONE]" in curl("--http2", *how, "-N", "-d", stream, url).stdout
            big = tmp_path / "big"
            big.write_text(json.dumps({**chat(max_tokens=1, content="word " * 20_000), "model": model}))
            assert curl("--http2", *how, "-d", f"@{big}", url).stdout.endswith("\n2")
            # Answers that a client is slow to take leave nothing behind in the layers on the way.
            wide = PREFACE + frame(SETTINGS, 0, 0, b"\0\4\0\x7f\xff\xff") + frame(WINDOW_UPDATE, 0, 0, number(1 << 26))
            where = ("127.0.0.1", gateway.port)
            with Frames(where, preface=wide, receive_buffer=4096, tls=authority.context()) as slow:
                streams = {slow.ask({**json.loads(body), "max_tokens": 60_000}): 0 for _ in range(8)}
                time.sleep(2)
                left = set(streams)
                while left:
                    kind, flags, stream, payload = slow.read()
                    assert kind not in (RST, GOAWAY), (kind, payload)
                    streams[stream] = streams.get(stream, 0) + (len(payload) if kind == DATA else 0)
                    if kind == DATA and flags & END_STREAM:
                        left.discard(stream)
                assert min(size for stream, size in streams.items() if stream) > 100_000
            until(lambda: metric(gateway.admin, "fairlead_reservations") in (0, None), what="nothing reserved")


@pytest.mark.parametrize("driver", DRIVERS)
def test_switched_off(driver, tmp_path):
    with Process("sim", "--listen", "127.0.0.1:0") as sim:
        engines = [(sim.url.removeprefix("http://"), sim.field("models"))]
        with Gateway(tmp_path, driver, engines, keys="  http2: {enabled: false}\n") as gateway:
            assert curl("--http2-prior-knowledge", f"{gateway.url}/healthz", check=False).returncode != 0
            assert curl(f"{gateway.url}/healthz").returncode == 0


# Flow control and cancellation


def aborted(fleet):
    return sum(state["aborted"] for state in fleet.states())


def test_a_reset_cancels_at_the_engine(fleet, frames):
    before = aborted(fleet)
    stream = frames.ask(chat(stream=True, max_tokens=100_000))
    assert frames.until(DATA, stream)
    frames.send(frame(RST, 0, stream, number(CANCEL)))
    until(lambda: aborted(fleet) == before + 1, what="the engine's request is aborted")
    fleet.idle()
    # Before anything of an answer.
    with fleet.failing(hang=True):
        stream = frames.ask(chat(max_tokens=10))
        until(lambda: fleet.in_flight() == 1, what="the request is there")
        frames.send(frame(RST, 0, stream, number(CANCEL)))
        until(lambda: aborted(fleet) == before + 2, what="the engine's request is aborted")
    assert frames.lives()
    # The end of the connection is the end of all that it has under way.
    streams = [frames.ask(chat(stream=True, max_tokens=100_000)) for _ in range(5)]
    begun = set()
    while begun != set(streams):
        begun.add(frames.until(DATA)[2])
    frames.close()
    until(lambda: aborted(fleet) == before + 7, what="all of them are aborted")


def test_a_client_that_does_not_read_stops_the_engine(fleet):
    with Frames(fleet.gateway.url, receive_buffer=4096) as reader:
        # Each token has the length of a few words; this is far more than all buffers on the way.
        stream = reader.ask(chat(stream=True, max_tokens=100_000))
        got = 0
        # The window is 64 KB and is not opened.
        while got < 65_535:
            kind, _, _, payload = reader.read()
            got += len(payload) if kind == DATA else 0
        assert got == 65_535
        reader.sock.settimeout(1)
        with pytest.raises(TimeoutError):
            while True:
                assert reader.read()[0] != DATA
        reader.sock.settimeout(15)
        # A window for all requests together opens: the others pass, this one does not.
        reader.send(frame(WINDOW_UPDATE, 0, 0, number(1 << 20)))
        assert reader.lives()
        reader.send(frame(WINDOW_UPDATE, 0, stream, number(1000)))
        assert 0 < len(reader.until(DATA, stream)[3]) <= 1000
        reader.send(frame(RST, 0, stream, number(CANCEL)))
        assert reader.lives()


def test_a_document_that_breaks_is_reset(fleet, frames):
    with fleet.failing(cut_after=3):
        status, body, code = frames.answer(frames.ask(chat(max_tokens=50)))
        assert (status, code) in ((200, INTERNAL_ERROR), (502, None)), (status, body, code)
        status, body, code = frames.answer(frames.ask(chat(max_tokens=50, stream=True)))
        assert (status, code) == (200, None) and b"error" in body and b"[DONE]" not in body
    assert frames.lives()


# What no client should send


def test_what_is_not_a_preface(fleet):
    for wrong in (PREFACE[:18] + b"XX\r\n\r\n", PREFACE[:22] + b"\r\r"):
        with Frames(fleet.gateway.url, preface=wrong) as connection:
            assert connection.goaway() == PROTOCOL_ERROR


CONNECTION_ERRORS = {
    "a frame beyond the size": (lambda c: frame(DATA, 0, 1, bytes(16_385)), {FRAME_SIZE_ERROR}),
    "data before any stream": (lambda c: frame(DATA, 0, 1, b"x"), {PROTOCOL_ERROR, STREAM_CLOSED}),
    "data on the connection": (lambda c: frame(DATA, 0, 0, b"x"), {PROTOCOL_ERROR}),
    "a stream of the server's": (lambda c: frame(HEADERS, 5, 2, c.fields()), {PROTOCOL_ERROR}),
    "padding beyond the frame": (lambda c: frame(HEADERS, 5 | PADDED, 1, b"\xff" + c.fields()), {PROTOCOL_ERROR}),
    "broken compression": (lambda c: frame(HEADERS, 5, 1, b"\xff\xff\xff\xff\xff\xff"), {COMPRESSION_ERROR}),
    "a table beyond the size": (lambda c: frame(HEADERS, 5, 1, b"\x3f\xff\xff\x7f" + c.fields()), {COMPRESSION_ERROR}),
    "a window of nothing": (lambda c: frame(WINDOW_UPDATE, 0, 0, number(0)), {PROTOCOL_ERROR}),
    "a window beyond the most": (
        lambda c: frame(WINDOW_UPDATE, 0, 0, number(0x7FFFFFFF)) * 2, {FLOW_CONTROL_ERROR}
    ),
    "settings of a wrong size": (lambda c: frame(SETTINGS, 0, 0, bytes(5)), {FRAME_SIZE_ERROR}),
    "settings on a stream": (lambda c: frame(SETTINGS, 0, 1), {PROTOCOL_ERROR}),
    "an acknowledgement with settings": (lambda c: frame(SETTINGS, ACK, 0, bytes(6)), {FRAME_SIZE_ERROR}),
    "a window setting beyond the most": (
        lambda c: frame(SETTINGS, 0, 0, b"\0\4\xff\xff\xff\xff"), {FLOW_CONTROL_ERROR}
    ),
    "a frame size setting below the least": (lambda c: frame(SETTINGS, 0, 0, b"\0\5\0\0\0\1"), {PROTOCOL_ERROR}),
    "a ping of a wrong size": (lambda c: frame(PING, 0, 0, bytes(7)), {FRAME_SIZE_ERROR}),
    "a push": (lambda c: frame(PUSH, 4, 1, number(2) + c.fields()), {PROTOCOL_ERROR}),
    "a reset before any stream": (lambda c: frame(RST, 0, 1, number(8)), {PROTOCOL_ERROR}),
    "a reset of a wrong size": (lambda c: frame(RST, 0, 1, bytes(3)), {FRAME_SIZE_ERROR}),
    "a continuation of nothing": (lambda c: frame(CONTINUATION, 4, 1, c.fields()), {PROTOCOL_ERROR}),
    "a continuation that is interrupted": (
        lambda c: frame(HEADERS, END_STREAM, 1, c.fields()) + frame(PING, 0, 0, bytes(8)), {PROTOCOL_ERROR}
    ),
    "a stream that goes back": (
        lambda c: frame(HEADERS, 5, 5, c.fields(path="/healthz", method="GET"))
        + frame(HEADERS, 5, 3, c.fields(path="/healthz", method="GET")),
        {PROTOCOL_ERROR, STREAM_CLOSED},
    ),
}


@pytest.mark.parametrize("what", CONNECTION_ERRORS)
def test_errors_of_the_connection(fleet, frames, what):
    make, codes = CONNECTION_ERRORS[what]
    frames.send(make(frames))
    # PROTOCOL_ERROR is what fits where the library below does not tell faults apart.
    assert frames.goaway() in codes | {PROTOCOL_ERROR}
    with Frames(fleet.gateway.url) as other:
        assert other.lives()


STREAM_ERRORS = {
    "an uppercase name": ([("X-Upper", "1")], {}),
    "a connection field": ([("connection", "close")], {}),
    "a coding": ([("transfer-encoding", "chunked")], {}),
    "an upgrade": ([("upgrade", "websocket")], {}),
    "te other than trailers": ([("te", "gzip")], {}),
    "a pseudo field of answers": ([(":status", "200")], {}),
    "an unknown pseudo field": ([(":what", "1")], {}),
    "a line feed in a value": ([("x-a", "1\r\nx-b: 2")], {}),
    "a zero in a value": ([("x-a", "1\x002")], {}),
    "a space in a name": ([("x a", "1")], {}),
    "a colon in a name": ([("x:a", "1")], {}),
    "no method": ([], {":method": None}),
    "no scheme": ([], {":scheme": None}),
    "no path": ([], {":path": None}),
    "an empty path": ([], {":path": ""}),
    "a space in the path": ([], {":path": "/v1/models HTTP/1.1\r\nx: y"}),
    "a length that is not kept": ([("content-length", "5")], {}),
    "extended connect": ([(":protocol", "websocket")], {":method": "CONNECT"}),
}


@pytest.mark.parametrize("what", STREAM_ERRORS)
def test_malformed_requests(fleet, frames, what):
    more, pseudo = STREAM_ERRORS[what]
    before = sum(fleet.requests())
    fields = {":method": "POST", ":scheme": "http", ":authority": "t", ":path": "/v1/chat/completions", **pseudo}
    listed = [(k, v) for k, v in fields.items() if v is not None] + more
    block = b"".join(
        b"\x00" + bytes([len(k)]) + k.encode() + (bytes([len(v)]) if len(v) < 127 else b"") + v.encode() for k, v in listed
    )
    body = json.dumps(chat()).encode()
    stream = frames.stream()
    frames.send(frame(HEADERS, END_HEADERS, stream, block), frame(DATA, END_STREAM, stream, body))
    status, _, code = frames.answer(stream)
    # An error, or a plain refusal.
    assert (code == PROTOCOL_ERROR and status is None) or (code is None and 400 <= status < 500), (status, code)
    with Frames(fleet.gateway.url) as other:
        assert other.lives()
    assert sum(fleet.requests()) == before


def test_pseudo_fields_come_first(fleet, frames):
    block = frames.encoder.encode(
        [("x-a", "1"), (":method", "GET"), (":scheme", "http"), (":authority", "t"), (":path", "/healthz")]
    )
    frames.next = 3
    frames.send(frame(HEADERS, 5, 1, block))
    assert frames.answer(1)[2] == PROTOCOL_ERROR
    assert frames.lives()


def test_data_where_none_belongs(fleet, frames):
    stream = frames.ask(b"", path="/healthz", method="GET")
    assert frames.answer(stream)[0] == 200
    frames.send(frame(DATA, 0, stream, b"late"))
    assert frames.answer(stream)[2] == STREAM_CLOSED or frames.lives()
    # More than was announced, and less.
    for length in ("5", "500"):
        with Frames(fleet.gateway.url) as connection:
            stream = connection.ask(b"x" * 50, ("content-length", length))
            assert connection.answer(stream)[2] == PROTOCOL_ERROR
            assert connection.lives()


def test_a_window_that_is_not_kept_to(fleet, frames):
    """What is read as it comes opens the window in time; what is not is bounded by it, or ends the connection."""
    before = fleet.gateway.rss()
    drain(frames)
    streams = [frames.stream() for _ in range(50)]
    for stream in streams:
        frames.send(frame(HEADERS, END_HEADERS, stream, frames.fields(("content-length", "60000000"))))
    flood(frames, lambda n: frame(DATA, 0, streams[n % 50], bytes(16_384)), seconds=2, most=6400)
    # Bodies themselves are kept, up to the limits on bodies.
    assert fleet.gateway.rss() < before + 6400 * 16_384 + BOUND
    with Frames(fleet.gateway.url) as other:
        assert other.lives()


def test_more_streams_than_allowed_are_refused(fleet, frames):
    streams = [frames.ask(chat(stream=True, max_tokens=100_000)) for _ in range(140)]
    refused = set()
    while len(refused) < 12:
        kind, _, stream, payload = frames.until(RST)
        assert int.from_bytes(payload, "big") == REFUSED_STREAM
        refused.add(stream)
    assert refused == set(streams[128:])
    frames.send(*(frame(RST, 0, stream, number(CANCEL)) for stream in streams[:128]))
    fleet.idle()


FLOODS = {
    # Reset before it is looked at, and after.
    "rapid reset": lambda c, n: frame(HEADERS, END_HEADERS, 2 * n + 1, c.fields())
    + frame(RST, 0, 2 * n + 1, number(CANCEL)),
    "continuations": lambda c, n: frame(CONTINUATION, 0, 1, b"\x00\x01a\x01b" * 1000)
    if n
    else frame(HEADERS, 0, 1, c.fields()),
    "empty continuations": lambda c, n: frame(CONTINUATION, 0, 1) if n else frame(HEADERS, 0, 1, c.fields()),
    "fields": lambda c, n: frame(HEADERS, 5, 2 * n + 1, c.fields(*((f"x-{n}-{i}", "v" * 50) for i in range(150)))),
    "malformed requests": lambda c, n: frame(HEADERS, 5, 2 * n + 1, c.fields(("connection", "close"))),
}
# Answered, or done with, at the speed at which they come; the connection need not end.
TOLERATED = {
    "pings": lambda c, n: frame(PING, 0, 0, bytes(8)),
    "settings": lambda c, n: frame(SETTINGS, 0, 0, b"\0\3\0\0\0\x64" * 10),
    "priorities": lambda c, n: frame(PRIORITY, 0, 2 * (n % 1000) + 1, bytes(5)),
    "windows": lambda c, n: frame(WINDOW_UPDATE, 0, 0, number(1)),
    "unknown frames": lambda c, n: frame(0x77, 0, 0, bytes(100)),
    "empty data": lambda c, n: frame(DATA, 0, 1) if n else frame(HEADERS, END_HEADERS, 1, c.fields()),
    "single bytes": lambda c, n: frame(DATA, 0, 1, b" ") if n else frame(HEADERS, END_HEADERS, 1, c.fields()),
    "the table": lambda c, n: frame(
        HEADERS, 5, 2 * n + 1, c.fields(("x-" + str(n), "v" * 3000), path="/healthz", method="GET")
    ),
}


@pytest.mark.parametrize("what", FLOODS)
def test_floods_end_the_connection(fleet, frames, what):
    before = fleet.gateway.rss()
    assert frames.until(SETTINGS)
    drain(frames)
    closed = flood(frames, lambda n: FLOODS[what](frames, n), seconds=20)
    assert closed, "the flood was tolerated"
    assert fleet.gateway.rss() < before + BOUND
    with Frames(fleet.gateway.url) as other:
        assert other.lives()


@pytest.mark.parametrize("reading", [True, False])
@pytest.mark.parametrize("what", TOLERATED)
def test_floods_cost_no_memory_and_nobody_else(fleet, frames, what, reading):
    before = fleet.gateway.rss()
    assert frames.until(SETTINGS)
    if reading:
        drain(frames)
    flooding = threading.Thread(target=flood, args=(frames, lambda n: TOLERATED[what](frames, n), 1.5))
    flooding.start()
    with Frames(fleet.gateway.url) as other:
        while flooding.is_alive():
            assert other.lives()
    flooding.join()
    assert fleet.gateway.rss() < before + BOUND


def drain(frames):
    """Reads and forgets whatever comes, beside the test."""

    def read():
        try:
            while frames.sock.recv(1 << 20):
                pass
        except OSError:
            pass

    threading.Thread(target=read, daemon=True).start()

"""WebSockets through the gateway, with the real `websockets` package on both sides and the engines' own endpoint."""

import contextlib
import json
import signal
import socket
import struct
import threading

import openai
import pytest
from websockets.exceptions import ConnectionClosed, ConnectionClosedError, InvalidStatus
from websockets.sync.client import connect

from harness import reservations, until
from raw import DRIVERS, MODEL, Raw
from sockets import Engine, Gateway, RawEngine, ws

OFF, ON = None, "deflate"


@pytest.fixture(params=DRIVERS)
def driver(request):
    return request.param


@pytest.fixture
def pair(tmp_path, driver):
    """Two engines that echo, with models `a` and `b`, behind one gateway."""
    with Engine() as a, Engine() as b, Gateway(tmp_path, driver, [(a.address, "a"), (b.address, "b")]) as gateway:
        gateway.a, gateway.b = a, b
        yield gateway
        gateway.idle()


@contextlib.contextmanager
def one(folder, driver, act, keys="", **options):
    with Engine(act, **options) as engine, Gateway(folder, driver, [(engine.address, "a, b")], keys) as gateway:
        yield gateway, engine


# --- what passes


@pytest.mark.parametrize("compression", [OFF, ON], ids=["plain", "deflate"])
def test_messages_pass_both_ways_unchanged(pair, compression):
    messages = ["", "text", "ünïcödé \0", b"", b"\x00\xff" * 300, "x" * 70_000, b"y" * 3_000_000]
    with connect(ws(pair.url, model="b"), compression=compression, max_size=None) as client:
        assert bool(client.protocol.extensions) == (compression is not None)
        for message in messages:
            client.send(message)
            assert client.recv() == message
    assert pair.b.got == messages and pair.a.got == []
    until(lambda: pair.b.codes, what="the engine saw the end")
    assert pair.b.codes == [(1000, "")]
    until(lambda: pair.ended(101) == 1, what="counted")


@pytest.mark.parametrize("compression", [OFF, ON], ids=["plain", "deflate"])
@pytest.mark.parametrize("query", [{"model": "a"}, {}], ids=["by query", "by first message"])
def test_ten_thousand_messages(pair, query, compression):
    with connect(ws(pair.url, **query), compression=compression) as client:
        first = json.dumps({"type": "session.update", "model": "a"})
        client.send(first)
        assert client.recv() == first
        reader = []
        thread = threading.Thread(target=lambda: reader.extend(client.recv() for _ in range(10_000)))
        thread.start()
        for number in range(10_000):
            client.send(f"message {number}" if number % 3 else b"%d" % number)
        thread.join(60)
        assert reader == [f"message {n}" if n % 3 else b"%d" % n for n in range(10_000)]
    assert len(pair.a.got) == 10_001


def test_fragments_keep_their_borders(tmp_path, driver):
    seen = []

    def act(engine, connection):
        seen.append(list(connection.recv_streaming()))
        seen.append(list(connection.recv_streaming()))
        connection.send(iter(["o", "n", "e"]))
        connection.send(iter([b"\x01" * 70_000, b"\x02"]))

    with one(tmp_path, driver, act, compression=None) as (gateway, engine):
        with connect(ws(gateway.url, model="a"), compression=None) as client:
            client.send(iter(["frag", "men", "ted"]))
            client.send(iter([b"a", b"b" * 100_000, b""]))
            assert list(client.recv_streaming()) == ["o", "n", "e", ""]
            assert list(client.recv_streaming()) == [b"\x01" * 70_000, b"\x02", b""]
    assert seen == [["frag", "men", "ted", ""], [b"a", b"b" * 100_000, b"", b""]]


def test_pings_reach_the_other_end(tmp_path, driver):
    pongs = []

    def act(engine, connection):
        pongs.append(connection.ping(b"from the engine").wait(10))
        engine.echo(connection)

    with one(tmp_path, driver, act) as (gateway, engine):
        with connect(ws(gateway.url, model="a")) as client:
            assert client.ping(b"from the client").wait(10)
            client.send("after")
            assert client.recv() == "after"
        assert pongs == [True]


@pytest.mark.parametrize("code, reason", [(1000, "done"), (1001, ""), (3000, "x" * 123), (4999, "ünï")])
def test_close_codes_pass_both_ways(tmp_path, driver, code, reason):
    def act(engine, connection):
        if connection.recv() == "you":
            connection.close(code, reason)
        else:
            connection.recv()

    with one(tmp_path, driver, act) as (gateway, engine):
        with connect(ws(gateway.url, model="a")) as client:
            client.send("you")
            with pytest.raises(ConnectionClosed) as closed:
                client.recv()
            assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (code, reason)
        with connect(ws(gateway.url, model="a")) as client:
            client.send("me")
            client.close(code, reason)
        assert client.close_code == code
        until(lambda: len(engine.codes) == 2, what="the engine saw both ends")
        assert engine.codes == [(code, reason)] * 2
        gateway.idle()


def test_heads_pass_and_steering_does_not(pair):
    headers = {"Authorization": "Bearer secret", "OpenAI-Beta": "realtime=v1", "x-prefiller-host-port": "1.2.3.4:5"}
    with connect(ws(pair.url, model="a", intent="x y"), additional_headers=headers) as client:
        assert client.response.headers["x-fairlead-instance"]
        assert client.response.headers["x-request-id"]
        client.send("hello")
        client.recv()
    head = pair.a.heads[0]
    assert head.path == "/v1/realtime?model=a&intent=x+y"
    assert head.headers["Authorization"] == "Bearer secret" and head.headers["OpenAI-Beta"] == "realtime=v1"
    assert "x-prefiller-host-port" not in head.headers and head.headers["x-request-id"]


def test_any_path_below_v1_and_the_base_path(tmp_path, driver):
    with one(tmp_path, driver, Engine.echo, keys="  base_path: /svc\n") as (gateway, engine):
        with connect(ws(gateway.url + "/svc", model="a").replace("realtime", "audio/stream")) as client:
            client.send("x")
            assert client.recv() == "x"
        assert engine.heads[0].path == "/v1/audio/stream?model=a"
        with pytest.raises(InvalidStatus) as refused:
            connect(ws(gateway.url, model="a"))
        assert refused.value.response.status_code == 404


@pytest.mark.parametrize("query", [{"model": "a"}, {}], ids=["by query", "by first message"])
def test_subprotocols(tmp_path, driver, query):
    offered = ["realtime", "openai-insecure-api-key.sk-1"]
    with one(tmp_path, driver, Engine.echo, subprotocols=["realtime"]) as (gateway, engine):
        with connect(ws(gateway.url, **query), subprotocols=offered) as client:
            assert client.subprotocol == "realtime"
            client.send('{"model":"a"}')
            assert client.recv() == '{"model":"a"}'
        # The engine may need what the client put there.
        assert "openai-insecure-api-key.sk-1" in engine.heads[0].headers["Sec-WebSocket-Protocol"]


# --- the first message says where to


@pytest.mark.parametrize(
    "first",
    [
        '{"type":"session.update","model":"b"}',
        '{"type":"session.update","session":{"type":"realtime","model":"b"}}',
        b'{"model":"b"}',
        "  " + json.dumps({"model": "b", "instructions": "i" * 200_000}),
    ],
    ids=["model", "session.model", "binary", "long"],
)
def test_the_first_message_names_the_model(pair, first):
    with connect(ws(pair.url)) as client:
        assert not client.protocol.extensions, "extensions are declined"
        client.send(first)
        client.send("second")
        assert client.recv() == first and client.recv() == "second"
        assert reservations(pair.admin) > 0
    assert pair.b.got == [first, "second"] and pair.a.got == []
    head = pair.b.heads[0]
    assert "Sec-WebSocket-Extensions" not in head.headers and head.headers["Sec-WebSocket-Version"] == "13"


def test_pings_and_fragments_before_the_first_message_ends(pair):
    with connect(ws(pair.url), compression=None) as client:
        assert client.ping(b"early").wait(10)

        def parts():
            yield '{"mod'
            with contextlib.suppress(Exception):
                client.protocol.send_ping(b"between")
            yield 'el":"b"}'

        client.send(parts())
        assert client.recv() == '{"model":"b"}'
        assert client.ping(b"late").wait(10)
    assert pair.b.got == ['{"model":"b"}']


@pytest.mark.parametrize(
    "first, code, says",
    [
        ('{"model":"none"}', 1008, "`none` does not exist"),
        ('{"type":"session.update"}', 1008, "name a model"),
        ("hello", 1008, "no event"),
        (b"\x00\x01", 1008, "name a model"),
        ('{"model":5}', 1008, "model"),
        ("x" * 300_000, 1009, "too big"),
    ],
)
def test_first_messages_that_lead_nowhere(pair, first, code, says):
    with connect(ws(pair.url)) as client:
        with pytest.raises(ConnectionClosedError) as closed:
            client.send(first)
            client.recv()
        assert closed.value.rcvd.code == code and says in closed.value.rcvd.reason, closed.value
    assert pair.a.heads == [] and pair.b.heads == []


def test_a_client_that_closes_before_its_first_message_is_answered(pair):
    with connect(ws(pair.url)) as client:
        client.close(4001, "never mind")
    assert client.close_code == 4001 and client.protocol.close_rcvd.code == 4001
    until(lambda: pair.ended(101) == 1, what="counted")


def test_who_says_nothing_is_closed(tmp_path, driver):
    keys = "  timeouts: {body: 1s}\n"
    with Engine() as engine, Gateway(tmp_path, driver, [(engine.address, "a, b")], keys) as gateway:
        with connect(ws(gateway.url)) as client:
            with pytest.raises(ConnectionClosedError) as closed:
                client.recv()
            assert closed.value.rcvd.code == 1008 and "within 1 s" in closed.value.rcvd.reason


def test_where_one_model_is_served_nobody_need_name_it(tmp_path, driver):
    def greet(engine, connection):
        connection.send("session.created")
        engine.echo(connection)

    with Engine(greet) as engine, Gateway(tmp_path, driver, [(engine.address, "a")]) as gateway:
        # Some clients wait for the engine's greeting before they say anything.
        with connect(ws(gateway.url)) as client:
            assert client.recv() == "session.created"
            client.send("no event at all")
            assert client.recv() == "no event at all"
        with connect(ws(gateway.url)) as client:
            client.send('{"model":"other"}')
            with pytest.raises(ConnectionClosedError) as closed:
                client.recv()
            assert closed.value.rcvd.code == 1008


# --- what is refused


@pytest.mark.parametrize(
    "query, status, code", [("?model=none", 404, "model_not_found"), ("?model=a&model=b", 400, None)]
)
def test_models_that_lead_nowhere_are_json_errors(pair, query, status, code):
    with pytest.raises(InvalidStatus) as refused:
        connect(ws(pair.url) + query)
    answer = refused.value.response
    error = json.loads(answer.body)["error"]
    assert answer.status_code == status and error["code"] == code and error["param"] == "model", error
    assert pair.ended(status) == 1


GOOD = [
    "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
]


def opening(*lines, version="1.1", method="GET", path="/v1/realtime?model=a"):
    return "\r\n".join([f"{method} {path} HTTP/{version}", "Host: x", *lines, "", ""])


@pytest.mark.parametrize(
    "lines, status",
    [
        (GOOD[:3], 400),
        ([*GOOD[:3], "Sec-WebSocket-Key: short"], 400),
        ([*GOOD, GOOD[3]], 400),
        ([*GOOD, "Content-Length: 3"], 400),
        ([*GOOD, "Sec-WebSocket-Protocol: a b"], 400),
        ([*GOOD[:2], "Sec-WebSocket-Version: 8", GOOD[3]], 426),
        ([*GOOD[:2], GOOD[3]], 426),
        (GOOD[2:], 426),
        (GOOD[1:], 426),
        ([GOOD[0], "Upgrade: h2c", *GOOD[2:]], 426),
    ],
)
def test_wrong_handshakes(pair, lines, status):
    with Raw(pair.url) as client:
        answer = client.send(opening(*lines)).answer("GET")
        assert answer.status == status and answer.error()["type"] == "invalid_request_error", answer
        assert answer.header("upgrade") == ("websocket" if status == 426 else None)
        if any("Sec-WebSocket-Version: 8" in line for line in lines):
            assert answer.header("sec-websocket-version") == "13"
    assert pair.a.heads == []


def test_an_old_client_gets_no_websocket(pair):
    with Raw(pair.url) as client:
        assert client.send(opening(*GOOD, version="1.0")).answer("GET").status == 426


def test_an_engine_that_refuses_is_quoted(tmp_path, driver):
    def deny(connection, request):
        if "retry" in request.path:
            return None
        return connection.respond(401, "no key, no entry\n")

    with one(tmp_path, driver, Engine.echo, process_request=deny) as (gateway, engine):
        with Raw(gateway.url) as client:
            # The next request is there already.
            client.send(opening(*GOOD) + "GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            answer = client.answer("GET")
            assert answer.status == 401 and answer.body == b"no key, no entry\n"
            assert client.answer("GET").body == b"ok\n"
        with connect(ws(gateway.url)) as client:
            client.send('{"model":"a"}')
            with pytest.raises(ConnectionClosedError) as closed:
                client.recv()
            assert closed.value.rcvd.code == 1008 and "401" in closed.value.rcvd.reason
        gateway.idle()


def nobody():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return "127.0.0.1:%d" % free.getsockname()[1]


def test_engines_that_are_not_there(tmp_path, driver):
    with Gateway(tmp_path, driver, [(nobody(), "a, b")]) as gateway:
        with pytest.raises(InvalidStatus) as refused:
            connect(ws(gateway.url, model="a"))
        assert refused.value.response.status_code in (502, 503)
        assert json.loads(refused.value.response.body)["error"]["message"]
        with connect(ws(gateway.url)) as client:
            client.send('{"model":"b"}')
            with pytest.raises(ConnectionClosedError) as closed:
                client.recv()
            assert closed.value.rcvd.code == 1011 and closed.value.rcvd.reason


@pytest.mark.parametrize("query", [{"model": "a"}, {}], ids=["by query", "by first message"])
def test_an_engine_that_is_not_there_is_replaced(tmp_path, driver, query):
    def full(connection, request):
        return connection.respond(503, "busy\n")

    with Engine() as good, Engine(process_request=full) as busy:
        engines = [(nobody(), "a"), (busy.address, "a"), (good.address, "a, b")]
        with Gateway(tmp_path, driver, engines) as gateway:
            for _ in range(6):
                with connect(ws(gateway.url, **query)) as client:
                    client.send('{"model":"a"}')
                    assert client.recv() == '{"model":"a"}'
            gateway.idle()


# --- how it ends


@pytest.mark.parametrize("query", [{"model": "a"}, {}], ids=["by query", "by first message"])
@pytest.mark.parametrize(
    "sent, code",
    [(b"", 1011), (b"\x81\x02hi", 1011), (b"\x01\x02hi", 1011), (b"\x81\x05hi", None), (b"\x81", None),
     (b"\x82\x7f\x00\x00", None), (b"\x88\x02\x0f\xa1", 4001)],
    ids=["silent", "message", "fragment", "half a frame", "half a head", "half a length", "after its close"],
)
def test_an_engine_that_dies_closes_the_client(tmp_path, driver, sent, code, query):
    def act(sock):
        # The first message, or part of it, has come.
        sock.recv(65536)
        sock.sendall(sent)

    with RawEngine(act) as engine, Gateway(tmp_path, driver, [(engine.address, "a, b")]) as gateway:
        with connect(ws(gateway.url, **query), compression=None) as client:
            client.send('{"model":"a"}')
            with pytest.raises(ConnectionClosedError) as closed:
                while True:
                    client.recv()
            if code is None:
                assert closed.value.rcvd is None, "nothing may be put into the middle of a frame"
            else:
                assert closed.value.rcvd.code == code
                assert bool(closed.value.rcvd.reason) == (code == 1011)
        gateway.idle()


def leave(sock, how):
    if how == "mid-frame":
        sock.sendall(b"\x82\xfe\x00")
    if how == "reset":
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.shutdown(socket.SHUT_WR if how == "half" else socket.SHUT_RDWR)


@pytest.mark.parametrize("how", ["close", "reset", "half", "mid-frame"])
@pytest.mark.parametrize("query", [{"model": "a"}, {}], ids=["by query", "by first message"])
def test_a_client_that_leaves_frees_the_engine(tmp_path, driver, how, query):
    def act(sock):
        while sock.recv(65536):
            pass

    with RawEngine(act) as engine, Gateway(tmp_path, driver, [(engine.address, "a, b")]) as gateway:
        with connect(ws(gateway.url, **query)) as client:
            client.send('{"model":"a"}')
            assert engine.begun.wait(5) and reservations(gateway.admin) > 0
            leave(client.socket, how)
        assert engine.ended.wait(5), "the engine's side is closed at once"
        gateway.idle()
        until(lambda: gateway.ended(499) == 1, what="counted as left")


def test_a_client_that_leaves_while_the_engine_does_not_read(tmp_path, driver):
    go = threading.Event()

    def act(sock):
        go.wait(30)

    with RawEngine(act) as engine, Gateway(tmp_path, driver, [(engine.address, "a, b")]) as gateway:
        with Raw(gateway.url, timeout=1) as client:
            client.send(opening(*GOOD)).head()
            with pytest.raises(TimeoutError):
                while True:
                    client.send(b"\x82\xfe\xff\xff\0\0\0\0" + bytes(65535))
            assert reservations(gateway.admin) > 0
            # A FIN would wait behind the bytes that nobody takes.
            client.reset()
            gateway.idle()
        go.set()


def test_who_does_not_read_holds_the_other_side_up(tmp_path, driver):
    piece, pieces = b"z" * 65_000, 2000

    def flood(engine, connection):
        for _ in range(pieces):
            connection.send(piece)
            engine.sent += 1
        engine.go.wait(30)

    with one(tmp_path, driver, flood, compression=None) as (gateway, engine):
        with connect(ws(gateway.url, model="a"), compression=None, max_queue=1) as client:
            before, seen = gateway.rss(), [-1]

            def stuck():
                seen.append(engine.sent)
                return seen[-1] > 0 and len(seen) > 25 and len(set(seen[-25:])) == 1

            until(stuck, 30, what="the engine is held up")
            assert engine.sent < pieces, "what nobody reads is not held by the gateway"
            assert gateway.rss() - before < 8 << 20
            for _ in range(pieces):
                assert client.recv() == piece
            engine.go.set()


def test_a_drain_waits_for_sessions(tmp_path, driver):
    with one(tmp_path, driver, Engine.echo) as (gateway, engine):
        with connect(ws(gateway.url, model="a")) as client:
            client.send("before")
            assert client.recv() == "before"
            gateway.proc.send_signal(signal.SIGINT)
            until(lambda: any("draining" in line for line in gateway.log), what="draining")
            client.send("meanwhile")
            assert client.recv() == "meanwhile"
        assert gateway.proc.wait(10) == 0


# --- the engines' own endpoint


def test_an_echo_through_everything(fleet):
    with connect(ws(fleet.url, model=MODEL)) as client:
        assert json.loads(client.recv())["type"] == "session.created"
        for message in ("plain text", b"\x00\x01\x02", '{"type":"unknown"}', "x" * 200_000):
            client.send(message)
            assert client.recv() == message
        assert fleet.in_flight() == 1 and reservations(fleet.admin) > 0
    fleet.idle()


def test_the_first_message_through_everything(fleet):
    with connect(ws(fleet.url)) as client:
        client.send(json.dumps({"type": "session.update", "session": {"model": MODEL}}))
        kinds = [json.loads(client.recv())["type"] for _ in range(2)]
        assert kinds == ["session.created", "session.updated"]
    fleet.idle()


def test_sessions_are_spread_and_counted(fleet):
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(connect(ws(fleet.url, model=MODEL))) for _ in range(8)]
        names = {client.response.headers["x-fairlead-instance"] for client in clients}
        assert len(names) == 2
        until(lambda: [state["in_flight"] for state in fleet.states()] == [4, 4], what="half of them each")
    fleet.idle()


def test_a_killed_engine_closes_with_1011(fleet):
    with connect(ws(fleet.url, model=MODEL)) as client:
        client.recv()
        fleet.control(refuse=True, for_ms=300)
        with pytest.raises(ConnectionClosedError) as closed:
            client.recv()
        assert closed.value.rcvd.code == 1011 and closed.value.rcvd.reason

    def back():
        with contextlib.suppress(OSError):
            return fleet.states()

    until(back, what="the engines listen again")
    fleet.all_ready()
    fleet.idle()


@pytest.mark.parametrize("fault", [{"die_after": 3}, {"cut_after": 3}], ids=["die", "cut"])
def test_an_engine_that_breaks_in_a_response(fleet, fault):
    with fleet.failing(**fault):
        with connect(ws(fleet.url, model=MODEL)) as client:
            client.send(json.dumps({"type": "response.create", "response": {"max_output_tokens": 20}}))
            kinds = []
            with pytest.raises(ConnectionClosedError) as closed:
                while True:
                    kinds.append(json.loads(client.recv())["type"])
            assert closed.value.rcvd.code == 1011 and kinds.count("response.output_text.delta") <= 3
    fleet.idle()


def test_an_engine_that_answers_with_an_error(fleet):
    with fleet.failing(status=429, retry_after=7):
        with pytest.raises(InvalidStatus) as refused:
            connect(ws(fleet.url, model=MODEL))
        assert refused.value.response.status_code == 429
        assert refused.value.response.headers["retry-after"] == "7"


def test_the_sdk_speaks_realtime(fleet):
    client = openai.OpenAI(base_url=fleet.url + "/v1", api_key="unused")
    with client.realtime.connect(model=MODEL) as session:
        session.session.update(session={"type": "realtime", "output_modalities": ["text"]})
        item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hello there"}]}
        session.conversation.item.create(item=item)
        session.response.create(response={"max_output_tokens": 8})
        text, kinds = "", []
        for event in session:
            kinds.append(event.type)
            if event.type == "response.output_text.delta":
                text += event.delta
            if event.type == "response.done":
                assert event.response.usage.output_tokens == 8
                break
    assert kinds[:4] == ["session.created", "session.updated", "conversation.item.created", "response.created"]
    assert text and kinds.count("response.output_text.delta") == 8
    fleet.idle()

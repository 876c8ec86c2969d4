"""The codec between raw sockets and engines: framing, headers, paths. What two implementations could read
differently is refused, closed upon, and reaches no engine; everything else passes byte for byte."""

import json

import pytest

from raw import MODEL, Raw, chat, chunked, request

CHAT = json.dumps(chat()).encode()
LENGTH = f"Content-Length: {len(CHAT)}"
CHUNKED = "Transfer-Encoding: chunked"
IN_CHUNKS = chunked(CHAT, extensions=False)
# What an attacker would like to see taken for a request of its own.
SMUGGLED = request(chat(content="smuggled"), headers=["X-Smuggled: yes"])


def post(*headers, body=CHAT, line="POST /v1/chat/completions HTTP/1.1", host="Host: x", end="\r\n"):
    """A head of these very lines and a body."""
    lines = [line, *([host] if host else []), *headers, "", ""]
    return end.join(lines).encode("latin-1") + body


def pieces(text):
    """A chunked request whose body is written here literally."""
    return post(CHUNKED, body=text if isinstance(text, bytes) else text.encode("latin-1"))


# name: (bytes, statuses)
AMBIGUOUS = {
    "length and coding": (post(LENGTH, CHUNKED, body=IN_CHUNKS), {400}),
    "coding and length": (post(CHUNKED, LENGTH, body=IN_CHUNKS), {400}),
    "coding and length 0": (post(CHUNKED, "Content-Length: 0", body=IN_CHUNKS), {400}),
    "coding in other case and length": (post("tRANSFER-eNCODING: cHUNKED", LENGTH, body=IN_CHUNKS), {400}),
    "differing lengths": (post(LENGTH, "Content-Length: 3"), {400}),
    "length with zeros differs": (post(LENGTH, f"Content-Length: 0{len(CHAT)}"), {400}),
    "list of differing lengths": (post(f"{LENGTH}, 3"), {400}),
    "list of equal lengths": (post(f"{LENGTH}, {len(CHAT)}"), {400}),
    **{
        f"length {value!r}": (post(f"Content-Length: {value}"), {400})
        for value in ("+5", "-5", "0x5", "5 5", "5_0", "5.0", "1e2", "", ",", '"5"', "5;a", "\xb2", "9" * 20,
                      "18446744073709551616", "٥".encode().decode("latin-1"))
    },
    "unknown coding": (post("Transfer-Encoding: xchunked", body=IN_CHUNKS), {501}),
    "gzip": (post("Transfer-Encoding: gzip"), {501}),
    "gzip, chunked": (post("Transfer-Encoding: gzip, chunked", body=IN_CHUNKS), {501}),
    "identity": (post("Transfer-Encoding: identity", LENGTH), {400, 501}),
    "chunked twice": (post("Transfer-Encoding: chunked, chunked", body=IN_CHUNKS), {400}),
    "chunked on two lines": (post(CHUNKED, CHUNKED, body=IN_CHUNKS), {400}),
    "chunked not last": (post("Transfer-Encoding: chunked, identity", body=IN_CHUNKS), {400, 501}),
    "coding with parameter": (post("Transfer-Encoding: chunked;a=b", body=IN_CHUNKS), {400, 501}),
    "coding in quotes": (post('Transfer-Encoding: "chunked"', body=IN_CHUNKS), {400, 501}),
    "empty coding": (post("Transfer-Encoding:", LENGTH), {400, 501}),
    "empty coding alone": (post("Transfer-Encoding: ,", body=IN_CHUNKS), {400, 501}),
    "vertical tab before chunked": (post("Transfer-Encoding: \x0bchunked", body=IN_CHUNKS), {400}),
    "chunked in HTTP/1.0": (
        post(CHUNKED, body=IN_CHUNKS, line="POST /v1/chat/completions HTTP/1.0"), {400}),
    "space before colon": (post("Transfer-Encoding : chunked", LENGTH), {400}),
    "tab before colon": (post("Content-Length\t: 3", LENGTH), {400}),
    "folded field": (post("X-A: b", " Transfer-Encoding: chunked", LENGTH), {400}),
    "folded coding": (post("Transfer-Encoding:", "\tchunked", LENGTH), {400}),
    "first field begins with space": (post(LENGTH, host=" Host: x"), {400}),
    "NUL in value": (post("X-A: a\0b", LENGTH), {400}),
    "NUL in name": (post("X-\0A: b", LENGTH), {400}),
    "NUL in path": (post(LENGTH, line="POST /v1/chat\0 HTTP/1.1"), {400}),
    "CR in value": (post("X-A: a\rb", LENGTH), {400}),
    "CR CR LF": (post("X-A: a\r", LENGTH), {400}),
    "bare LF ends a field": (post("X-A: a\nTransfer-Encoding: chunked", LENGTH), {400}),
    "bare LF everywhere": (post(LENGTH, end="\n"), {400}),
    "bare LF ends the head": (post(LENGTH)[: -len(CHAT) - 2] + b"\n" + CHAT, {400}),
    "bare LF after the request line": (b"POST /v1/chat/completions HTTP/1.1\n" + post(LENGTH).split(b"\r\n", 1)[1],
                                       {400}),
    "LF before the request": (b"\n" + post(LENGTH), {400}),
    "spaces before the request": (b"  " + post(LENGTH), {400}),
    "no colon": (post("X-A", LENGTH), {400}),
    "no name": (post(": a", LENGTH), {400}),
    "control character in name": (post("X\x01A: b", LENGTH), {400}),
    "Latin-1 in name": (post("Content-Length\xa0: 3", LENGTH), {400}),
    "no Host": (post(LENGTH, host=None), {400}),
    "two Hosts": (post("Host: x", LENGTH), {400}),
    "two differing Hosts": (post("Host: y", LENGTH), {400}),
    "Host with user": (post(LENGTH, host="Host: a@b"), {400}),
    "Host with path": (post(LENGTH, host="Host: a/b"), {400}),
    "Host with space": (post(LENGTH, host="Host: a b"), {400}),
    "Host list": (post(LENGTH, host="Host: a, b"), {400}),
    "Host with bad port": (post(LENGTH, host="Host: a:8x"), {400}),
    "two spaces in the line": (post(LENGTH, line="POST  /v1/chat/completions HTTP/1.1"), {400}),
    "tab in the line": (post(LENGTH, line="POST\t/v1/chat/completions HTTP/1.1"), {400}),
    "space in the path": (post(LENGTH, line="POST /v1/chat /completions HTTP/1.1"), {400}),
    "space after the version": (post(LENGTH, line="POST /v1/chat/completions HTTP/1.1 "), {400}),
    "lower-case protocol": (post(LENGTH, line="POST /v1/chat/completions http/1.1"), {400}),
    "HTTP/0.9": (post(LENGTH, line="POST /v1/chat/completions"), {400}),
    "HTTP/1.2": (post(LENGTH, line="POST /v1/chat/completions HTTP/1.2"), {400, 505}),
    "HTTP/2.0": (post(LENGTH, line="POST /v1/chat/completions HTTP/2.0"), {505}),
    "HTTP/1.10": (post(LENGTH, line="POST /v1/chat/completions HTTP/1.10"), {400, 505}),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(32), {400}),
    "fragment": (post(LENGTH, line="POST /v1/chat/completions#a HTTP/1.1"), {400}),
    "relative path": (post(LENGTH, line="POST v1/chat/completions HTTP/1.1"), {400}),
    "UTF-8 in the path": (post(LENGTH, line="POST /v1/ch\xc3\xa4t HTTP/1.1"), {400}),
    "other scheme": (post(LENGTH, line="POST ftp://x/v1/chat/completions HTTP/1.1"), {400}),
    "no authority": (post(LENGTH, line="POST http:///v1/chat/completions HTTP/1.1"), {400}),
    "user in the target": (post(LENGTH, line="POST http://a@b/v1/chat/completions HTTP/1.1"), {400}),
    "CONNECT": (post(line="CONNECT x:80 HTTP/1.1", body=b""), {400, 405}),
    "TRACE": (post(line="TRACE / HTTP/1.1", body=b""), {405}),
    "unknown method": (post(LENGTH, line="BREW /v1/chat/completions HTTP/1.1"), {501}),
    "lower-case method": (post(LENGTH, line="post /v1/chat/completions HTTP/1.1"), {501}),
    "unknown expectation": (post(LENGTH, "Expect: the-unexpected"), {417}),
    **{
        f"chunk {text[:20]!r}": (pieces(text), {400})
        for text in (
            "+5\r\nhello\r\n0\r\n\r\n", "-5\r\nhello\r\n0\r\n\r\n", "0x5\r\nhello\r\n0\r\n\r\n",
            "5 \r\nhello\r\n0\r\n\r\n", " 5\r\nhello\r\n0\r\n\r\n", "g\r\nhello\r\n0\r\n\r\n", "\r\nhello\r\n0\r\n\r\n",
            "5\nhello\r\n0\r\n\r\n", "5\r\nhello\n0\r\n\r\n", "5\r\nhello!!\r\n0\r\n\r\n", "5\r\rhello\r\n0\r\n\r\n",
            ";a\r\nhello\r\n0\r\n\r\n", "5;a\nb\r\nhello\r\n0\r\n\r\n", "5;a\0\r\nhello\r\n0\r\n\r\n",
            "5;" + "a" * 300 + "\r\nhello\r\n0\r\n\r\n", "f" * 17 + "\r\nhello\r\n", "0" * 300 + "5\r\nhello\r\n",
            "0\n\n", "0\r\n\n", "0\r\nX-A\r\n\r\n", "0\r\n folded\r\n\r\n", "0\r\nX A: b\r\n\r\n", "0\r\nX-A: \0\r\n\r\n",
            "0\r\nX-A: b\nX-B: c\r\n\r\n", "0\r\nX-A: " + "b" * 10000 + "\r\n\r\n",
        )
    },
    "chunk larger than any body": (pieces("FFFFFFFFFFFFFFFF\r\nhello"), {400, 413}),
}


@pytest.mark.parametrize("case", AMBIGUOUS)
def test_ambiguous_requests_are_refused_and_closed_upon(fleet, client, case):
    data, statuses = AMBIGUOUS[case]
    with fleet.nothing_arrives():
        client.send(data + SMUGGLED)
        answer = client.answer()
        assert answer.status in statuses and answer.complete, answer
        assert answer.header("connection") == "close", answer
        assert answer.error()["message"]
        assert client.closed(), f"something followed: {client.buf!r}"


@pytest.mark.parametrize(
    "lines, status",
    [
        (["X-Long: " + "a" * 70_000], 431),
        (["X-%d: %s" % (i, "a" * 1000) for i in range(70)], 431),
        (["X-%d: a" % i for i in range(127)], 431),
        (["X-%d: a" % i for i in range(125)], 200),
        (["X-Long: " + "a" * 60_000], 200),
    ],
    ids=["one field of 70 KB", "70 fields of 1 KB", "129 fields", "127 fields", "60 KB"],
)
def test_limits_of_heads(fleet, client, lines, status):
    # With Host and Content-Length there are two fields more.
    data = b"\r\n".join([b"POST /v1/chat/completions HTTP/1.1", b"Host: x", LENGTH.encode(),
                         *[line.encode() for line in lines], b"", CHAT])
    answer = client.send(data).answer()
    assert answer.status == status, answer
    if status == 431:
        assert answer.header("connection") == "close" and client.closed()
    else:
        assert client.stays_open()


def test_an_endless_request_line(client):
    client.send(b"GET /" + b"a" * 80_000)
    assert client.answer().status in (414, 431) and client.closed()


def test_a_body_above_the_limit_is_refused_before_it_is_sent(fleet, client):
    with fleet.nothing_arrives():
        client.send(post(f"Content-Length: {(64 << 20) + 1}", body=b""))
        answer = client.answer()
        assert answer.status == 413 and client.closed(), answer


def test_pipelined_requests_are_answered_in_order(fleet, client):
    paths = [
        request(chat(), headers=["X-Request-Id: one"]),
        request(chat(stream=True, max_tokens=30), headers=["X-Request-Id: two"]),
        request(b"", "/healthz", "GET"),
        request(b"", "/nowhere", "GET"),
        request(chat(model="nope"), headers=["X-Request-Id: five"]),
        post(CHUNKED, "X-Request-Id: six", body=chunked(CHAT, trailers=["X-T: a"])),
        request(b"", "/v1/models", "HEAD"),
        request(chat(), headers=["X-Request-Id: eight", "Connection: close"]),
        SMUGGLED,
    ]
    client.send(b"".join(paths))
    wanted = [(200, "one"), (200, "two"), (200, None), (404, None), (404, "five"), (200, "six"), (200, None),
              (200, "eight")]
    for number, (status, request_id) in enumerate(wanted):
        answer = client.answer("HEAD" if number == 6 else "POST")
        assert answer.status == status and answer.complete, (number, answer)
        if request_id:
            assert answer.header("x-request-id") == request_id, (number, answer)
    # What follows a request that asked for the close is not served.
    assert client.closed()


def test_a_request_byte_by_byte(fleet, client):
    data = post(CHUNKED, body=chunked(CHAT, trailers=["X-T: a"]))
    answer = client.drip(b"\r\n" + data).answer()
    assert answer.status == 200 and fleet.last(answer)["body"] == CHAT
    assert client.stays_open()


BODIES = {
    "plain": CHAT,
    "odd spacing": b' \r\n\t{ "model" :\t"sim-8b" ,\n"messages":[ {"content" : "hi" , "role":"user"} ] , '
                   b'"max_tokens" : 4 }\n\n ',
    "big and small numbers": b'{"model":"sim-8b","seed":123456789012345678901234567890,"top_p":1.0000,'
                             b'"temperature":1E-0007,"x":-0.0,"max_tokens":4,"messages":[{"role":"user","content":"a"}]}',
    "duplicate keys": b'{"model":"none","max_tokens":9,"model":"sim-8b","max_tokens":4,'
                      b'"messages":[],"messages":[{"role":"user","content":"a"}]}',
    "unknown members": b'{"zz":[1,{"a":null}],"model":"sim-8b","max_tokens":4,"aa":{"b":[true,false]},'
                       b'"messages":[{"role":"user","content":"a","odd":1}]}',
    "UTF-8 and escapes": '{"model":"sim\\u002d8b","max_tokens":4,"messages":[{"role":"user","content":'
                         '"\\ud83d\\ude00 😀 \\u0000 ß \\/ \u2028"}]}'.encode(),
    "escaped key": b'{"mod\\u0065l":"sim-8b","max_tokens":4,"messages":[{"role":"user","content":"a"}]}',
    "large": json.dumps(chat(content="lorem ipsum " * 20_000)).encode(),
}


@pytest.mark.parametrize("framing", ["length", "chunks", "long chunks"])
@pytest.mark.parametrize("body", BODIES)
def test_bodies_reach_the_engine_byte_for_byte(fleet, client, body, framing):
    body = BODIES[body]
    if framing == "length":
        client.send(request(body))
    else:
        longest = 40 if framing == "chunks" else 50_000
        if len(body) > 100_000 and longest == 40:
            longest = 3000
        trailers = ["X-Trailer: a", "Content-Length: 3"]
        client.send(post(CHUNKED, "Trailer: X-Trailer", body=chunked(body, longest=longest, trailers=trailers)))
    answer = client.answer()
    assert answer.status == 200, answer
    last = fleet.last(answer)
    assert last["body"] == body
    headers = [name for name, _ in last["headers"]]
    assert headers.count("content-length") == 1 and "transfer-encoding" not in headers
    assert not {"trailer", "x-trailer"} & set(headers)
    assert client.stays_open()


def test_expect_continue(fleet, client):
    head = post(LENGTH, "Expect: 100-continue", body=b"")
    client.send(head)
    assert client.head().status == 100
    answer = client.send(CHAT).answer()
    assert answer.status == 200
    assert "expect" not in [name for name, _ in fleet.last(answer)["headers"]]
    # A body that comes at once needs no invitation.
    client.send(head + CHAT)
    assert client.head().status == 200


@pytest.mark.parametrize(
    "head, status",
    [
        (post("Content-Length: 99999999", "Expect: 100-continue", body=b""), 413),
        (post(LENGTH, "Expect: 100-continue", body=b"", line="POST /nowhere HTTP/1.1"), 404),
        (post(LENGTH, "Expect: 100-continue", body=b"", line="GET /v1/chat/completions HTTP/1.1"), 405),
    ],
)
def test_expect_continue_is_refused_without_the_body(fleet, client, head, status):
    with fleet.nothing_arrives():
        assert client.send(head).head().status == status


def test_head_has_no_body(client):
    for path, status in [("/v1/models", 200), ("/healthz", 200), ("/readyz", 200), ("/nowhere", 404),
                         ("/v1/chat/completions", 405), (f"/v1/models/{MODEL}", 200), ("/v1/models/no", 404)]:
        answer = client.send(request(b"", path, "HEAD")).answer("HEAD")
        assert answer.status == status and int(answer.header("content-length")) > 0, (path, answer)
    assert client.stays_open() and not client.buf


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("stream", [False, True])
def test_http_1_0(fleet, client, keep, stream):
    headers = ["Connection: keep-alive"] if keep else []
    client.send(request(chat(stream, max_tokens=20), version="1.0", headers=headers, host=None))
    answer = client.answer()
    assert answer.status == 200 and answer.complete, answer
    assert answer.header("transfer-encoding") is None
    if stream:
        events = answer.events()
        assert events[-1][1] == "[DONE]" and all(json.loads(data) for _, data in events[:-1])
        assert answer.header("content-length") is None and client.closed()
    elif keep:
        assert answer.header("connection") == "keep-alive"
        assert client.stays_open()
    else:
        assert client.closed()
    assert ("host", fleet.engine_of(answer)) in [tuple(pair) for pair in fleet.last(answer)["headers"]]


def test_targets_in_absolute_form(fleet, client):
    for target in ("http://other.example:99/v1/chat/completions?a=b", "HTTP://other.example:99/v1/chat/completions?a=b"):
        answer = client.send(request(CHAT, target, host="x")).answer()
        assert answer.status == 200
        last = fleet.last(answer)
        assert last["target"] == "/v1/chat/completions?a=b"
        assert ["host", "other.example:99"] in last["headers"] and ["host", "x"] not in last["headers"]
    assert client.send(request(b"", "http://x", "GET")).answer().status == 404


@pytest.mark.parametrize("stream", [False, True])
def test_a_half_closed_client_is_still_answered(fleet, client, stream):
    client.send(request(chat(stream, max_tokens=200))).half_close()
    answer = client.answer()
    assert answer.status == 200 and answer.complete and answer.version == "HTTP/1.1", answer
    if stream:
        assert answer.events()[-1][1] == "[DONE]"
        assert all(json.loads(data) for _, data in answer.events()[:-1])
    assert client.closed()


def test_pipelined_requests_of_a_half_closed_client(client):
    client.send(request(chat()) * 3).half_close()
    for _ in range(3):
        assert client.answer().status == 200
    assert client.closed()


HOP_BY_HOP = {
    "Connection": "x-hop, X-Other-Hop , keep-alive", "X-Hop": "1", "X-Other-Hop": "1", "Keep-Alive": "timeout=5",
    "TE": "trailers", "Proxy-Connection": "keep-alive", "Proxy-Authorization": "Basic a", "Upgrade": "h2c",
    "Http2-Settings": "AAMAAABkAAQAAP__",
}
END_TO_END = {
    "Authorization": "Bearer sk-1", "User-Agent": "raw/1", "X-Custom": "  a,  b\t", "Accept": "*/*", "Cookie": "a=b; c",
    "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", "anthropic-version": "2023-06-01",
    "x-api-key": "k", "X-Session-Id": "s", "OpenAI-Organization": "o", "Accept-Encoding": "identity", "X-Empty": "",
    "X-Latin": "caf\xe9", "Via": "1.1 a",
}


def test_hop_by_hop_fields_are_removed_and_others_kept(fleet, client):
    lines = [f"{name}: {value}" for name, value in (HOP_BY_HOP | END_TO_END).items()]
    answer = client.send(post(LENGTH, *lines, "X-Twice: 1", "X-Twice: 2")).answer()
    assert answer.status == 200
    seen = fleet.last(answer)["headers"]
    names = [name for name, _ in seen]
    assert not set(names) & {name.lower() for name in HOP_BY_HOP}
    for name, value in END_TO_END.items():
        if name != "X-Latin":
            assert [name.lower(), value.strip()] in seen, name
    assert [value for name, value in seen if name == "x-twice"] == ["1", "2"]
    assert answer.header("server") == "uvicorn" and answer.header("x-inference-pod")
    assert not {"keep-alive", "proxy-connection"} & set(answer.names())


STEERING = [
    "X-Override-Bootstrap-Host: 10.0.0.1", "x-override-priority: 1", "X-Prefiller-Host-Port: 10.0.0.1:80",
    "x_prefiller_host_port: 10.0.0.1:80", "X-Data-Parallel-Rank: 7", "x_data_parallel_rank: 7",
    "X-Data-Parallel-Host-Port: 10.0.0.1:80", "X-Encoder-Hosts-Ports: 10.0.0.1:80",
    "X-KV-Cache-Source-Host-Port: 10.0.0.1:80", "X-Gateway-Destination-Endpoint: 10.0.0.1:80",
    "x-gateway-destination-endpoint-subset: 10.0.0.1:80", "X-Dynamo-Worker-Instance-Id: 1", "X-Dynamo-Dp-Rank: 1",
    "X-SMG-Target-Worker: 1", "Target-Pod: a", "Prefill-Target-Pod: a", "X-Fairlead-Instance: sim-9",
]


def test_steering_fields_are_dropped(fleet, client):
    answer = client.send(post(LENGTH, *STEERING, "X-Kept: 1")).answer()
    assert answer.status == 200
    seen = [name.replace("_", "-") for name, _ in fleet.last(answer)["headers"]]
    assert "x-kept" in seen
    assert not set(seen) & {line.split(":")[0].lower().replace("_", "-") for line in STEERING}


@pytest.mark.parametrize(
    "value, kept",
    [
        ("abc-DEF_1.2:3", True), ("a" * 128, True), ("a" * 129, False), ("a b", False), ("a/b", False), ("", False),
        ("cmpl___prefill_addr_10.0.0.1:80___decode_addr_10.0.0.2:80_x", False), ("a,b", False), ("\xe9", False),
    ],
)
def test_request_ids(fleet, client, value, kept):
    answer = client.send(post(LENGTH, f"X-Request-Id: {value}")).answer()
    ids = [v for name, v in fleet.last(answer)["headers"] if name == "x-request-id"]
    assert answer.status == 200 and len(ids) == 1
    assert (ids[0] == value) == kept and answer.header("x-request-id") == ids[0]
    twice = client.send(post(LENGTH, "X-Request-Id: a", "X-Request-Id: b")).answer()
    assert [v for name, v in fleet.last(twice)["headers"] if name == "x-request-id"][0] not in ("a", "b")


def test_connections_are_kept_or_closed_as_asked(fleet):
    for headers, stays in [([], True), (["Connection: close"], False), (["Connection: x, Close"], False),
                           (["Connection: keep-alive"], True)]:
        with fleet.open() as client:
            answer = client.send(post(LENGTH, *headers)).answer()
            assert answer.status == 200
            assert (answer.header("connection") != "close") == stays
            assert client.stays_open() if stays else client.closed()


def test_a_connection_that_sends_nothing_and_leaves(fleet):
    for leave in (Raw.close, Raw.reset, Raw.half_close):
        with fleet.open() as client:
            leave(client)
    with fleet.open() as client:
        assert client.send("GET /healthz HT").half_close().closed()

"""Engines that fail and clients that leave, at every moment: who is told what, and that nothing stays behind."""

import json
import time

import pytest

from harness import until
from raw import MODEL, chat, request

RESPONSES = {"model": MODEL, "input": "hi", "max_output_tokens": 50}
MESSAGES = {"model": MODEL, "max_tokens": 50, "messages": [{"role": "user", "content": "hi"}]}
COMPLETION = {"model": MODEL, "prompt": "hi", "max_tokens": 50}
FORMS = {
    "chat": ("/v1/chat/completions", chat(max_tokens=50)),
    "completions": ("/v1/completions", COMPLETION),
    "messages": ("/v1/messages", MESSAGES),
    "responses": ("/v1/responses", RESPONSES),
}
# Below a human's notice and above what a busy machine may do to the 100 ms that the gateway has.
SOON = 2.0


@pytest.fixture(autouse=True)
def nothing_stays_behind(fleet):
    yield
    fleet.control()
    fleet.idle()
    fleet.all_ready()


def ask(form, stream):
    path, body = FORMS[form]
    return request({**body, "stream": stream}, path)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "fault", [{"die_after": 0}, {"garbage": "head"}, {"status": 503}], ids=lambda f: next(iter(f))
)
def test_an_engine_that_breaks_before_the_first_byte_is_replaced(fleet, fault, stream):
    with fleet.failing(0, **fault):
        for number in range(8):
            answer = fleet.exchange(request(chat(stream, content=f"question {number}")))
            assert answer.status == 200 and answer.complete, answer
            assert fleet.engine_of(answer) == fleet.engines[1]


def refuse(fleet, *which, milliseconds):
    """Closes engines' ports for a while; nobody can tell them anything meanwhile."""
    fleet.control(*which, refuse=True, for_ms=milliseconds)
    time.sleep(0.02)


def test_an_engine_that_refuses_is_replaced_and_used_again(fleet):
    refuse(fleet, 0, milliseconds=400)
    for number in range(8):
        answer = fleet.exchange(request(chat(content=f"question {number}")))
        assert answer.status == 200 and fleet.engine_of(answer) == fleet.engines[1], answer
    fleet.all_ready()
    before = fleet.requests()[0]
    for number in range(20):
        assert fleet.exchange(request(chat(content=f"{number} another question"))).status == 200
    assert fleet.requests()[0] > before


@pytest.mark.parametrize(
    "fault, status",
    [({"die_after": 0}, 502), ({"garbage": "head"}, 502), ({"cut_after": 0}, 502), ({"status": 503}, 503)],
    ids=lambda f: str(f),
)
@pytest.mark.parametrize("form", FORMS)
def test_a_fleet_that_breaks_before_the_first_byte(fleet, client, form, fault, status):
    with fleet.failing(**fault):
        # Documents are cut in their middle; a stream is cut between its head and its first event.
        answer = client.send(ask(form, stream="cut_after" in fault)).answer()
    assert answer.status == status and answer.complete, answer
    said = answer.json()
    assert said["error"]["message"]
    assert (said.get("type") == "error") == (form == "messages"), said
    assert client.stays_open()


@pytest.mark.parametrize("fault", [{"die_after": 3}, {"cut_after": 3}], ids=["die", "cut"])
@pytest.mark.parametrize("version", ["1.1", "1.0"])
@pytest.mark.parametrize("form", FORMS)
def test_a_stream_that_breaks_ends_with_an_error_event(fleet, client, form, version, fault):
    path, body = FORMS[form]
    with fleet.failing(**fault):
        answer = client.send(request({**body, "stream": True}, path, version=version)).answer()
    assert answer.status == 200 and answer.header("content-type").startswith("text/event-stream")
    assert b"[DONE]" not in answer.body
    assert not any(name in ("message_stop", "response.completed") for name, _ in answer.events()), answer.body
    events = [(name, json.loads(data)) for name, data in answer.events()]
    assert len(events) >= 2, "what came before the break is kept"
    name, last = events[-1]
    if form == "messages":
        assert name == "error" and last["type"] == "error" and last["error"]["type"] == "api_error", last
    elif form == "responses":
        assert name == "error" and last["type"] == "error" and last["message"] and last["code"], last
        assert last["sequence_number"] == len(events) - 1
    else:
        assert last["error"]["message"] and last["error"]["type"], last
    # SDKs read on to the end of the framing, so that end is honest; the connection is not kept.
    assert answer.complete and client.closed()


@pytest.mark.parametrize("version", ["1.1", "1.0"])
@pytest.mark.parametrize("fault", [{"die_after": 3}, {"cut_after": 3}], ids=["die", "cut"])
@pytest.mark.parametrize("form", FORMS)
def test_a_document_that_breaks_is_never_taken_for_whole(fleet, client, form, fault, version):
    path, body = FORMS[form]
    with fleet.failing(**fault):
        client.send(request({**body, "stream": False}, path, version=version))
        head = client.head()
        answer = client.body(head)
    if answer.status == 200:
        assert not answer.complete, answer
        assert client.closed()
    else:
        assert answer.status == 502 and answer.error()["message"], answer


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("status", [400, 401, 404, 422, 429, 500, 502, 504, 529])
def test_the_engines_own_errors_pass_unchanged(fleet, client, form, status):
    with fleet.failing(status=status, retry_after=7):
        before = sum(fleet.requests())
        for stream in (False, True):
            answer = client.send(ask(form, stream)).answer()
            assert answer.status == status and answer.header("retry-after") == "7", answer
            assert answer.error()["message"] == "failed on demand"
        # An answer is an answer: nobody else is asked.
        assert sum(fleet.requests()) == before + 2
        assert client.stays_open()


def test_nonsense_in_a_body_passes_unchanged(fleet, client):
    noise = bytes((i * 197 >> 1) & 0xFF for i in range(512))
    with fleet.failing(garbage="body"):
        for stream in (False, True):
            answer = client.send(request(chat(stream))).answer()
            assert answer.status == 200 and answer.complete and answer.body == noise
    with fleet.failing(garbage="event"):
        answer = client.send(request(chat(True, max_tokens=20))).answer()
        assert answer.complete and b"[DONE]" in answer.body
    assert client.stays_open()


def test_a_connection_that_the_engine_has_closed_meanwhile_costs_nothing(fleet, client):
    for _ in range(4):
        assert client.send(request(chat())).answer().status == 200
        # Every connection that the gateway keeps is reset under it.
        refuse(fleet, milliseconds=60)
        until(lambda: fleet.exchange(request(chat())).status == 200, 10, what="served again")


LEAVES = {
    "close": lambda c: c.close(),
    "reset": lambda c: c.reset(),
    "half close, then close": lambda c: (c.half_close(), time.sleep(0.02), c.close()),
}
FAULTS = {"hang": {"hang": True}, "hang in the stream": {"hang_after": 3}, "slow": {"slow": 20.0}}


@pytest.mark.parametrize("leave", LEAVES)
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("pipelined", [False, True])
def test_a_client_that_leaves_has_its_request_cancelled(fleet, leave, fault, stream, pipelined):
    fleet.control(**FAULTS[fault])
    with fleet.open() as client:
        client.send(request(chat(stream, max_tokens=2000)))
        if pipelined:
            client.send(request(chat(content="later")))
        if stream and fault == "hang in the stream":
            while client.buf.count(b"data:") < 3:
                assert client.more()
        until(lambda: fleet.in_flight() >= 1, what="the request to arrive")
        LEAVES[leave](client)
    fleet.idle(SOON)


@pytest.mark.parametrize("leave", ["close", "reset"])
@pytest.mark.parametrize("part", ["head", "body", "chunked body"])
def test_a_client_that_leaves_within_its_request(fleet, leave, part):
    data = request(chat(content="a" * 100_000))
    if part == "chunked body":
        data = request(b"", length=False, headers=["Transfer-Encoding: chunked"]) + b"186a0\r\n" + b"a" * 50_000
    cut = 40 if part == "head" else len(data) // 2
    with fleet.nothing_arrives():
        for _ in range(5):
            with fleet.open() as client:
                LEAVES[leave](client.send(data[:cut]))
        # A request cut by the end of the connection is no request, even if what came is one.
        with fleet.open() as client:
            assert client.send(data[:cut]).half_close().closed()


def test_many_clients_that_leave_in_the_middle_of_streams(fleet):
    clients = [fleet.open().send(request(chat(True, max_tokens=5000, content=f"{i}"))) for i in range(60)]
    until(lambda: fleet.in_flight() == 60, what="60 streams")
    for number, client in enumerate(clients):
        if number % 3:
            client.more()
        LEAVES["reset" if number % 2 else "close"](client)
    fleet.idle(SOON)
    assert all(state["orphaned"] == 0 for state in fleet.states())


def test_a_client_that_leaves_between_attempts(fleet):
    """All engines break at once, again and again, while clients come and go."""
    with fleet.failing(die_after=0):
        for number in range(40):
            with fleet.open() as client:
                client.send(request(chat(content=f"{number}")))
                time.sleep(0.001 * (number % 8))
    fleet.idle()
    assert fleet.exchange(request(chat())).status == 200

"""What the gateway says itself: bodies it cannot route, members that steer engines, models, paths, methods."""

import json

import pytest

from raw import DRIVERS, MODEL, chat, gateway_fleet, page, request

MESSAGE = '"messages":[{"role":"user","content":"a"}]'
DEEP = 100_000

# name: (body, what the message must name)
MALFORMED = {
    "empty": (b"", "request body"),
    "blank": (b" \r\n ", "request body"),
    "no JSON": (b"model=sim-8b", "request body"),
    "null": (b"null", "request body"),
    "list": (b"[]", "request body"),
    "string": (b'"a"', "request body"),
    "cut": (f'{{"model":"{MODEL}",{MESSAGE}'.encode(), "byte"),
    "cut in a string": (f'{{"model":"{MODEL}","messages":[{{"role":"us'.encode(), "messages[0].role"),
    "two documents": (f'{{"model":"{MODEL}",{MESSAGE}}}{{}}'.encode(), "byte"),
    "trailing comma": (f'{{"model":"{MODEL}",{MESSAGE},}}'.encode(), "byte"),
    "comment": (f'{{"model":"{MODEL}",/* a */{MESSAGE}}}'.encode(), "byte"),
    "single quotes": (b"{'model':'sim-8b'}", "byte"),
    "missing colon": (b'{"model" "sim-8b"}', "byte"),
    "bare word": (b'{"model":sim}', "model"),
    "NaN": (f'{{"model":"{MODEL}","temperature":NaN,{MESSAGE}}}'.encode(), "temperature"),
    "leading zero": (f'{{"model":"{MODEL}","seed":01,{MESSAGE}}}'.encode(), "byte"),
    "plus": (f'{{"model":"{MODEL}","seed":+1,{MESSAGE}}}'.encode(), "seed"),
    "bad escape": (f'{{"model":"{MODEL}","messages":[{{"role":"user","content":"\\x"}}]}}'.encode(),
                   "messages[0].content"),
    "line feed in a string": (f'{{"model":"{MODEL}","messages":[{{"role":"user","content":"a\nb"}}]}}'.encode(),
                              "messages[0].content"),
    "bad hex": (f'{{"model":"{MODEL}","messages":[{{"role":"user","content":"\\u00zz"}}]}}'.encode(),
                "messages[0].content"),
    "invalid UTF-8": (b'{"model":"sim-8b","messages":[{"role":"user","content":"a"},{"role":"user","content":"\xff"}]}',
                      "messages[1].content"),
    "overlong UTF-8": (b'{"model":"sim-8b","user":"\xc0\xaf",' + MESSAGE.encode() + b"}", "user"),
    "surrogate in UTF-8": (b'{"model":"sim-8b","user":"\xed\xa0\x80",' + MESSAGE.encode() + b"}", "user"),
    "UTF-8 cut at the end": (b'{"model":"sim-8b"}\xe2\x82', "byte"),
    "UTF-16": (f'{{"model":"{MODEL}",{MESSAGE}}}'.encode("utf-16"), "byte"),
    "byte order mark": (b"\xef\xbb\xbf" + f'{{"model":"{MODEL}",{MESSAGE}}}'.encode(), "byte"),
    "model is a number": (f'{{"model":5,{MESSAGE}}}'.encode(), "model"),
    "model is a list": (f'{{"model":["{MODEL}"],{MESSAGE}}}'.encode(), "model"),
    "stream is a string": (f'{{"model":"{MODEL}","stream":"yes",{MESSAGE}}}'.encode(), "stream"),
    "stream is a number": (f'{{"model":"{MODEL}","stream":1,{MESSAGE}}}'.encode(), "stream"),
    "max_tokens is a string": (f'{{"model":"{MODEL}","max_tokens":"4",{MESSAGE}}}'.encode(), "max_tokens"),
    "messages is a string": (f'{{"model":"{MODEL}","messages":"a"}}'.encode(), "messages"),
    "message is a number": (f'{{"model":"{MODEL}","messages":[{{"role":"user","content":"a"}},5]}}'.encode(),
                            "messages[1]"),
    "content is a number": (f'{{"model":"{MODEL}","messages":[{{"role":"user","content":5}}]}}'.encode(),
                            "messages[0].content"),
    "deep lists": (f'{{"model":"{MODEL}",{MESSAGE},"x":{"[" * DEEP}{"]" * DEEP}}}'.encode(), "x"),
    "deep objects": (f'{{"model":"{MODEL}",{MESSAGE},"x":{"{%sa%s:" % (chr(34), chr(34)) * DEEP}1{"}" * DEEP}}}'.encode(),
                     "x"),
    "deep content": (f'{{"model":"{MODEL}","messages":[{{"role":"user","content":{"[" * DEEP}'.encode(),
                     "messages[0].content"),
    "only brackets": (b"[" * DEEP, "request body"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_bodies_are_refused_naming_the_place(fleet, client, case):
    body, place = MALFORMED[case]
    with fleet.nothing_arrives():
        answer = client.send(request(body)).answer()
        assert answer.status == 400, answer
        error = answer.error()
        assert place in error["message"] and error["type"] == "invalid_request_error", error
        assert len(answer.body) < 4096, "the answer repeats the request"
    # The whole body was read: where the next request begins is certain.
    assert client.stays_open()


def test_malformed_bodies_get_the_shape_of_their_api(fleet, client):
    answer = client.send(request(b'{"model":5}', "/v1/messages")).answer()
    said = answer.json()
    assert answer.status == 400 and said["type"] == "error", said
    assert said["error"]["type"] == "invalid_request_error" and "model" in said["error"]["message"]


STEERING = ["kv_transfer_params", "ec_transfer_params", "bootstrap_host", "bootstrap_port", "bootstrap_room",
            "data_parallel_rank", "routed_dp_rank", "disagg_prefill_dp_rank", "disaggregated_params"]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/v1/messages", "/v1/other"])
@pytest.mark.parametrize("member", STEERING)
def test_steering_members_are_refused_by_name(fleet, client, member, path):
    with fleet.nothing_arrives():
        answer = client.send(request(chat(**{member: {"do_remote_prefill": True}}), path)).answer()
        assert answer.status == 400 and member in answer.error()["message"], answer


@pytest.mark.parametrize(
    "body",
    [
        '{"model":"sim-8b","kv_transfer_par\\u0061ms":{},%s}',
        '{"kv_transfer_params":[1],"model":"sim-8b",%s}',
        '{"model":"sim-8b",%s,"kv_transfer_params":null,"kv_transfer_params":{}}',
        '{"model":"sim-8b",%s,"vllm_xargs":{"kv_transfer_params":{}}}',
        '{"model":"sim-8b",%s,"vllm_xargs":{"vllm_xargs":{"kv_transfer_params":{}}}}',
        '{"model":"sim-8b",%s,"sampling_params":{"extra_args":{"kv_transfer_params":{}}}}',
    ],
)
def test_steering_members_are_found_where_they_hide(fleet, client, body):
    with fleet.nothing_arrives():
        answer = client.send(request(body % MESSAGE)).answer()
        assert answer.status == 400 and "kv_transfer_params" in answer.error()["message"], answer


def test_what_only_looks_like_steering_passes(fleet, client):
    body = chat(kv_transfer_params=None, metadata={"bootstrap_host": "a"}, content='"kv_transfer_params": {}')
    answer = client.send(request(body)).answer()
    assert answer.status == 200 and json.loads(fleet.last(answer)["body"]) == body


@pytest.mark.parametrize("stream", [False, True])
def test_unknown_models(fleet, client, stream):
    with fleet.nothing_arrives():
        error = client.send(request(chat(stream, model="nope"))).answer()
        assert error.status == 404 and error.error()["code"] == "model_not_found", error
        assert error.error()["param"] == "model" and error.error()["type"] == "invalid_request_error"
        assert "`nope`" in error.error()["message"] and MODEL in error.error()["message"]
        for path in ("/v1/messages", "/v1/messages/count_tokens"):
            answer = client.send(request(chat(stream, model="nope"), path)).answer()
            said = answer.json()
            assert answer.status == 404 and said["type"] == "error", said
            assert said["error"]["type"] == "not_found_error" and MODEL in said["error"]["message"]
            assert said["request_id"] == answer.header("x-request-id")


def test_a_model_name_without_end_is_not_repeated(fleet, client):
    answer = client.send(request(chat(model="n" * 1_000_000))).answer()
    assert answer.status == 404 and len(answer.body) < 4096
    answer = client.send(request(b"", "/v1/models/" + "n" * 50_000, "GET")).answer()
    assert answer.status == 404 and len(answer.body) < 4096
    answer = client.send(request(b"", "/" + "n" * 50_000, "GET")).answer()
    assert answer.status == 404 and len(answer.body) < 4096


def test_a_model_name_full_of_control_characters(client):
    answer = client.send(request(b'{"model":"\\u0000\\r\\n\\u001b[31m\\"","messages":[]}')).answer()
    assert answer.status == 404 and "\u001b" in answer.error()["message"]


def test_without_a_model_the_only_one_serves(fleet, client):
    body = chat()
    del body["model"]
    assert client.send(request(body)).answer().status == 200


ROUTES = [
    ("GET", "/healthz", 200), ("GET", "/health", 200), ("GET", "/readyz", 200), ("GET", "/v1/models", 200),
    ("GET", f"/v1/models/{MODEL}", 200), ("GET", "/v1/models/sim%2D8b", 200), ("GET", "/v1/models?limit=1", 200),
    ("GET", "/v1/models/none", 404), ("GET", "/v1/models/", 404), ("GET", "/", 404), ("GET", "/nowhere", 404),
    ("POST", "/nowhere", 404), ("GET", "/metrics", 404), ("GET", "/debug/targets", 404), ("POST", "/v1", 404),
    ("POST", "/v1/", 404), ("POST", "/V1/chat/completions", 404), ("POST", "/sim/control", 404),
    ("GET", "/v1/chat/completions", 405), ("PUT", "/v1/chat/completions", 405), ("DELETE", "/v1/models", 405),
    ("POST", "/healthz", 405), ("POST", "/v1/models", 405), ("OPTIONS", "*", 404), ("OPTIONS", "/v1/models", 405),
    # A path that another server might read as one outside of /v1/.
    ("POST", "/v1/../sim/control", 404), ("POST", "/v1/./x", 404), ("POST", "/v1/a/../../metrics", 404),
    ("POST", "/v1/%2e%2e/sim/control", 404), ("POST", "/v1/.%2E/sim/control", 404), ("POST", "/v1/..", 404),
    ("POST", "/v1/..%2fsim/control", 404), ("POST", "/v1/..\\sim", 404), ("POST", "/v1/..;/sim", 404),
]


@pytest.mark.parametrize("method, path, status", ROUTES)
def test_routes(fleet, client, method, path, status):
    with fleet.nothing_arrives():
        body = chat() if method in ("POST", "PUT") else b""
        answer = client.send(request(body, path, method)).answer(method)
        assert answer.status == status and answer.header("x-fairlead-instance") is None, answer
        if status == 405:
            assert answer.header("allow")
        if status >= 400:
            assert answer.error()["message"]
    assert client.stays_open()


def test_models(client):
    listed = client.send(request(b"", "/v1/models", "GET")).answer().json()
    one = client.send(request(b"", f"/v1/models/{MODEL}", "GET")).answer().json()
    assert listed["object"] == "list" and listed["data"] == [one]
    assert one["id"] == MODEL and one["object"] == "model" and one["created"] > 0


@pytest.mark.parametrize(
    "path, body",
    [
        ("/v1/completions", {"model": MODEL, "prompt": "a", "max_tokens": 3}),
        ("/v1/embeddings", {"model": MODEL, "input": ["a", "b"]}),
        ("/v1/responses", {"model": MODEL, "input": "a", "max_output_tokens": 3}),
        ("/v1/messages", {"model": MODEL, "max_tokens": 3, "messages": [{"role": "user", "content": "a"}]}),
        ("/v1/messages/count_tokens", {"model": MODEL, "messages": [{"role": "user", "content": "a"}]}),
        ("/v1/rerank", {"model": MODEL, "query": "a", "documents": ["b", "c"]}),
        ("/v1/score", {"model": MODEL, "text_1": "a", "text_2": "b"}),
        ("/tokenize", {"model": MODEL, "prompt": "a"}),
        ("/detokenize", {"model": MODEL, "tokens": [1, 2]}),
    ],
)
def test_routes_that_are_forwarded(fleet, client, path, body):
    answer = client.send(request(body, path + "?q=%20&r")).answer()
    assert answer.status == 200 and answer.json()
    last = fleet.last(answer)
    assert last["target"] == path + "?q=%20&r" and json.loads(last["body"]) == body


def test_compressed_bodies_are_refused(fleet, client):
    with fleet.nothing_arrives():
        answer = client.send(request(b"\x1f\x8b", headers=["Content-Encoding: gzip"])).answer()
        assert answer.status == 415 and client.closed()


def test_admin_is_not_on_the_traffic_port_and_says_the_same(fleet):
    assert page(f"{fleet.admin}/healthz")[0] == 200 and page(f"{fleet.admin}/readyz")[0] == 200
    assert page(f"{fleet.admin}/nowhere")[0] == 404
    assert fleet.exchange(request(b"", "/readyz", "GET")).status == 200


@pytest.mark.parametrize("driver", DRIVERS)
def test_base_path(tmp_path, driver):
    base = "/api/predict/chat"
    with gateway_fleet(tmp_path, driver, f"  base_path: {base}\n") as fleet:
        with fleet.open() as client:
            answer = client.send(request(chat(), f"{base}/v1/chat/completions?a=b")).answer()
            assert answer.status == 200
            assert get_target(fleet) == "/v1/chat/completions?a=b"
            for method, path, status in [
                ("GET", f"{base}/healthz", 200), ("GET", f"{base}/v1/models", 200), ("GET", "/v1/models", 404),
                ("POST", "/v1/chat/completions", 404), ("POST", f"{base}ter/v1/chat/completions", 404),
                ("POST", base, 404), ("POST", "/api/predict/v1/chat/completions", 404),
                ("POST", f"{base}{base}/v1/chat/completions", 404),
            ]:
                answer = client.send(request(chat() if method == "POST" else b"", path, method)).answer()
                assert answer.status == status, (method, path, answer)


def get_target(fleet):
    return fleet.states()[0]["last"]["target"]

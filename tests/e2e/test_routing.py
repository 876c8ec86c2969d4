"""How requests ask to be routed, what they are told of it, and what is said to those who ask wrongly."""

import contextlib
import json

import pytest

from harness import Process, metric, run, until
from raw import DRIVERS, MODEL, Fleet, address, chat, gateway_fleet, request

LONG = "What every request of this conversation begins with. " * 80


def send(client, *headers, body=None, path="/v1/chat/completions"):
    return client.send(request(body or chat(content=LONG), path, headers=headers)).answer()


def instances(client, count, *headers, **more):
    answers = [send(client, *headers, **more) for _ in range(count)]
    assert all(answer.status == 200 for answer in answers), answers
    return [answer.header("x-fairlead-instance") for answer in answers]


def explained(client, *headers, **more):
    answer = send(client, "x-fairlead-explain: 1", *headers, **more)
    assert answer.status == 200, answer
    text = answer.header("x-fairlead-explain")
    assert len(text) <= 2048 and answer.names().count("x-fairlead-explain") == 1
    said = json.loads(text)
    assert said["chosen"] == answer.header("x-fairlead-instance")
    assert said["chosen"] in [candidate["name"] for candidate in said["candidates"]]
    return said


def test_the_policy_is_the_request_s_own(client):
    held = instances(client, 6, "routing-strategy: prefix-cache")
    assert len(set(held)) == 1, held
    assert set(instances(client, 3, "routing-strategy:")) == set(held), "an empty one asks for nothing"
    turns = instances(client, 6, "Routing-Strategy:  round-robin ")
    assert turns[0::2] == [turns[0]] * 3 and turns[1::2] == [turns[1]] * 3 and turns[0] != turns[1], turns


def test_several_policies_with_weights(client):
    said = explained(client, "routing-strategy: prefix-cache:2,least-request:1")
    assert said["policy"] == "weighted" and said["asked"] == "prefix-cache:2,least-request:1"


def test_explanations(fleet, client):
    send(client, "routing-strategy: prefix-cache")
    said = explained(client, "routing-strategy: prefix-cache")
    assert said["policy"] == said["asked"] == "prefix-cache" and said["reason"] == "prefix_hit"
    assert said["mode"] == "fresh" and said["eligible"] == 2 and said["state_age_ms"] >= 0
    assert said["predicted_ttft_ms"] > 0 and said["prompt_tokens"] > 0
    best = {candidate["name"]: candidate for candidate in said["candidates"]}
    assert set(best) == {"sim-0", "sim-1"} and best[said["chosen"]]["cached_blocks"] > 0
    assert best[said["chosen"]]["cached_tokens"] > 0 and best[said["chosen"]]["requests"] == 0
    busy = explained(client, "routing-strategy: least-request")
    values = [candidate["value"] for candidate in busy["candidates"]]
    assert values == sorted(values) and busy["reason"] == "least_requests"
    # Names, never addresses.
    assert not any(engine.split(":")[1] in json.dumps([said, busy]) for engine in fleet.engines)


def test_nothing_is_explained_unasked(client):
    for header in ("x-fairlead-explain: 0", "x-fairlead-explain:", "x-other: 1"):
        assert send(client, header).header("x-fairlead-explain") is None


ASKING = ["routing-strategy: random", "config-profile: chat", "external-filter:", "X-LLM-D-SLO-TTFT-MS: 1.5",
          "x-llm-d-slo-tpot-ms: 20", "x-slo-ttft-ms: 9", "x-slo-tpot-ms: 9", "x-fairlead-explain: 1"]
NAMING = ["x-session-id: s", "X-AIBrix-Session-Key: a", "x-claude-code-session-id: c", "x-dynamo-session-id: d",
          "x-smg-routing-key: r", "user: u", "x-user-id: v"]


def test_what_is_asked_of_the_router_ends_there(fleet, client):
    answer = send(client, *ASKING, *NAMING, "x-fairlead-instance: sim-9", "x_fairlead_explain: 1")
    assert answer.status == 200, answer
    seen = {name.replace("_", "-") for name, _ in fleet.last(answer)["headers"]}
    names = lambda lines: {line.split(":")[0].lower() for line in lines}
    assert not seen & names(ASKING) and not any(name.startswith("x-fairlead-") for name in seen), seen
    assert names(NAMING) <= seen


# headers: what the message must hold
WRONG = {
    "unknown strategy": (["routing-strategy: nope"], ['routing-strategy', '"nope"', "prefix-cache", "round-robin"]),
    "weight in words": (["routing-strategy: prefix-cache:x"], ["routing-strategy", "prefix-cache"]),
    "negative weight": (["routing-strategy: prefix-cache:-1,random:1"], ["routing-strategy"]),
    "weight without end": (["routing-strategy: prefix-cache:99999999999999999999"], ["routing-strategy"]),
    "weight of nothing": (["routing-strategy: :1"], ["routing-strategy"]),
    "unknown part": (["routing-strategy: prefix-cache:1,nope:1"], ["routing-strategy", "nope", "least-request"]),
    "too many parts": (["routing-strategy: " + ",".join(["random:1"] * 25)], ["routing-strategy"]),
    "strategy too long": (["routing-strategy: " + "a" * 257], ["routing-strategy", "256"]),
    "strategy is no text": (["routing-strategy: \udcff"], ["routing-strategy", "UTF-8"]),
    "strategy twice": (["routing-strategy: random", "Routing-Strategy: random"], ["routing-strategy", "more than once"]),
    "limit in words": (["x-slo-ttft-ms: soon"], ["x-slo-ttft-ms", "soon", "milliseconds"]),
    "limit below zero": (["x-llm-d-slo-tpot-ms: -1"], ["x-llm-d-slo-tpot-ms", "-1"]),
    "limit with exponent": (["x-llm-d-slo-ttft-ms: 1e3"], ["x-llm-d-slo-ttft-ms", "1e3"]),
    "limit beyond bounds": (["x-slo-tpot-ms: 99999999"], ["x-slo-tpot-ms", "3600000"]),
    "empty limit": (["x-slo-tpot-ms:"], ["x-slo-tpot-ms", "empty"]),
    "limit twice": (["x-slo-tpot-ms: 1", "x-slo-tpot-ms: 1"], ["x-slo-tpot-ms", "more than once"]),
    "selector": (["external-filter: =x"], ["external-filter", "=x"]),
    "selector too long": (["external-filter: " + "a=b," * 300], ["external-filter", "1024"]),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_wishes_are_refused_by_name(fleet, client, case):
    headers, wanted = WRONG[case]
    data = request(chat()).replace(b"\r\n\r\n", b"\r\n" + "\r\n".join(headers).encode("utf-8", "surrogateescape") + b"\r\n\r\n", 1)
    with fleet.nothing_arrives():
        answer = client.send(data).answer()
        assert answer.status == 400 and len(answer.body) < 4096, answer
        error = answer.error()
        assert error["type"] == "invalid_request_error", error
        assert error["param"] == headers[0].split(":")[0], error
        assert all(part in error["message"] for part in wanted), error
        flagged = error["code"] == "invalid_routing_strategy"
        assert (answer.header("x-error-invalid-routing-strategy") == "true") == flagged
    assert client.stays_open()


def test_a_wrong_wish_gets_the_shape_of_its_api(client):
    body = {"model": MODEL, "max_tokens": 3, "messages": [{"role": "user", "content": "a"}]}
    said = send(client, "routing-strategy: nope", body=body, path="/v1/messages").json()
    assert said["type"] == "error" and said["error"]["type"] == "invalid_request_error"
    assert "round-robin" in said["error"]["message"]


def test_a_profile_means_nothing_where_there_are_none(client):
    assert send(client, "config-profile: whatever").status == 200


def test_a_session_stays_whatever_it_says_and_however_it_is_named(client):
    for session in ("one", "two", "three", "127.0.0.1:1"):
        body = lambda n, **more: chat(content=f"{n} {session}", **more)
        where = set()
        for n in range(4):
            where |= set(instances(client, 1, "routing-strategy: session-affinity", f"x-session-id: {session}", body=body(n)))
        where |= set(instances(client, 1, "routing-strategy: session-affinity",
                               body=body(9, session_params={"session_id": session})))
        where |= set(instances(client, 1, "routing-strategy: session-affinity", f"x-claude-code-session-id: {session}",
                               body=body(10, session_params={"session_id": "another"})))
        assert len(where) == 1, (session, where)


def test_predictions_are_compared_with_what_came(fleet, client):
    before = metric(fleet.admin, "fairlead_ttft_prediction_ratio_count") or 0
    send(client, body=chat(stream=True, content=LONG))
    send(client, body=chat(content=LONG))
    until(lambda: metric(fleet.admin, "fairlead_ttft_prediction_ratio_count") == before + 1, what="the stream was compared")


PROFILES = """
  policy: round-robin
  default_profile: usual
  profiles:
    usual: {}
    own: {policy: random}
    long: {prompt_tokens_gte: 500, policy: least-token}
"""


@contextlib.contextmanager
def talking(folder, keys, engines=2, **more):
    with gateway_fleet(folder, DRIVERS[0], keys, engines=engines, **more) as fleet, fleet.open() as client:
        yield fleet, client


def policy_of(client, *headers, **more):
    return explained(client, *headers, **more)["asked"]


def test_profiles(tmp_path):
    with talking(tmp_path, PROFILES) as (fleet, client):
        short = chat(content="short")
        assert policy_of(client) == "round-robin"
        assert policy_of(client, "config-profile: own") == "random"
        assert policy_of(client, "config-profile: own", "routing-strategy: least-request") == "least-request"
        assert policy_of(client, "config-profile: auto", body=short) == "round-robin"
        assert policy_of(client, "config-profile: auto", body=chat(content=LONG)) == "least-token"
        with fleet.nothing_arrives():
            answer = send(client, "config-profile: nope")
            error = answer.error()
            assert answer.status == 400 and error["code"] == "unknown_profile" and error["param"] == "config-profile"
            assert '"nope"' in error["message"] and "usual, own, long, auto" in error["message"]


@pytest.mark.parametrize("lock", ["  policy_locked: true\n", f"  models: [{{name: {MODEL}, policy: random, policy_locked: true}}]\n"])
def test_a_locked_policy_stays_whatever_is_asked(tmp_path, lock):
    with talking(tmp_path, "  policy: random\n  profiles: {own: {policy: round-robin}}\n" + lock) as (_, client):
        for headers in ([], ["routing-strategy: round-robin"], ["config-profile: own"], ["routing-strategy: nope"]):
            assert policy_of(client, *headers) == "random"


def test_a_model_may_have_a_policy_of_its_own(tmp_path):
    keys = f"  policy: random\n  models: [{{name: {MODEL}, policy: least-request}}, {{policy: round-robin}}]\n"
    with talking(tmp_path, keys) as (_, client):
        assert policy_of(client) == "least-request"
        assert policy_of(client, "routing-strategy: random") == "random"


def test_the_environment_names_a_policy_where_the_configuration_does_not(tmp_path):
    config = tmp_path / "a.yaml"
    for keys, env, want in [
        ("", {"ROUTING_ALGORITHM": "random"}, "random"),
        ("", {"ROUTING_ALGORITHM": "random", "FAIRLEAD_POLICY": "least-request"}, "least-request"),
        ("  policy: round-robin\n", {"FAIRLEAD_POLICY": "least-request"}, "round-robin"),
    ]:
        config.write_text(f"gateway:\n  admin: off\n  listen: 127.0.0.1:0\n{keys}")
        assert f"policy {want}," in run("check", config, env=env).stdout
        with Process("gateway", "--config", config, env=env) as gateway:
            assert gateway.field("policy") == want
    config.write_text("gateway: {}\n")
    done = run("check", config, check=False, env={"ROUTING_ALGORITHM": "nope"})
    assert done.returncode == 1 and "ROUTING_ALGORITHM" in done.stderr and "prefix-cache" in done.stderr


def test_settings_of_policies_change_what_they_do(tmp_path):
    # With a hit rate of 1 a prompt that is held but for its end counts as a miss.
    named = "  policy: prefix-cache\n"
    with talking(tmp_path, named + "  policies: {prefix-cache: {hit_rate: 1}}\n") as (_, client):
        send(client)
        assert explained(client, body=chat(content=LONG + "More. " * 400))["reason"] == "prefix_miss"
    with talking(tmp_path, named, name="default") as (_, client):
        send(client)
        assert explained(client, body=chat(content=LONG + "More. " * 400))["reason"] == "prefix_hit"


def test_explanations_can_be_kept_back(tmp_path):
    with talking(tmp_path, "  explain: {header: false}\n") as (_, client):
        assert send(client, "x-fairlead-explain: 1").header("x-fairlead-explain") is None


def test_no_target_matches_a_selector(tmp_path):
    with talking(tmp_path, "") as (fleet, client):
        with fleet.nothing_arrives():
            answer = send(client, "external-filter: gpu=h100")
            assert answer.status == 503 and answer.error()["code"] == "no_matching_target", answer
        assert send(client, "external-filter: gpu!=h100").status == 200


def test_a_policy_without_its_figure_says_so_and_goes_on(tmp_path):
    # Nobody reports to a gateway without a scheduler.
    with talking(tmp_path, "") as (fleet, client):
        shown = lambda: metric(fleet.admin, "fairlead_policy_degraded", policy="least-kv-cache")
        assert shown() is None
        for _ in range(5):
            said = explained(client, "routing-strategy: least-kv-cache")
            assert said["asked"] == "least-kv-cache" and said["policy"] != "least-kv-cache" and said["missing"]
        assert shown() == 1
        assert metric(fleet.admin, "fairlead_policy_degraded", metric=said["missing"]) == 1
        assert metric(fleet.admin, "fairlead_picks_total", policy=said["policy"]) >= 5
        assert metric(fleet.admin, "fairlead_policy_degraded", policy="least-request") is None
        warnings = [line for line in fleet.gateway.log if "least-kv-cache" in line and "WARN" in line]
        assert len(warnings) == 1, warnings


def test_decisions_are_logged_by_sample(tmp_path):
    for sample, wanted in [(1, 5), (0, 0)]:
        with contextlib.ExitStack() as stack:
            sims = [stack.enter_context(Process("sim", "--listen", "127.0.0.1:0", "--speed", 20)) for _ in range(2)]
            config = tmp_path / f"{sample}.yaml"
            listed = "".join(f"    - {{url: {sim.url}, models: [{MODEL}]}}\n" for sim in sims)
            config.write_text(f"gateway:\n  listen: 127.0.0.1:0\n  admin: 127.0.0.1:0\n  instances:\n{listed}"
                              f"  explain: {{sample: {sample}}}\n")
            gateway = stack.enter_context(Process("gateway", "--config", config, "--log", "info,fairlead::explain=debug"))
            fleet = Fleet(gateway, ["%s:%d" % address(sim.url) for sim in sims])
            with fleet.open() as client:
                instances(client, 5)
            lines = lambda: [line for line in gateway.log if '"candidates":[' in line]
            until(lambda: len(lines()) == wanted, what=f"{wanted} decisions in the log")
            for line in lines():
                said, _ = json.JSONDecoder().raw_decode(line[line.index('{"policy"'):])
                assert said["policy"] == "cost"

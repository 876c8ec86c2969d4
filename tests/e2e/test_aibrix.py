"""AIBrix's policies on engines that report what engines of today report: each decides by its own rule."""

import contextlib
import json

import pytest

from harness import Process, until
from raw import Raw, chat, request

# By figures that the engines or their agents report.
REPORTED = [
    "least-busy-time",
    "least-latency",
    "least-kv-cache",
    "least-gpu-cache",
    "least-utilization",
    "throughput",
]
OTHERS = ["aibrix-least-request", "power-of-two", "aibrix-prefix-cache", "prefix-cache-preble"]
SLO = ["slo", "slo-pack-load", "slo-least-load", "slo-least-load-pulling"]


@contextlib.contextmanager
def engines(kind):
    with contextlib.ExitStack() as stack:
        sims = [
            stack.enter_context(Process("sim", "--engine", kind, "--listen", "127.0.0.1:0", "--speed", 20))
            for _ in range(2)
        ]
        args = [arg for sim in sims for arg in ("--engine", sim.url)]
        yield stack.enter_context(Process("up", *args, "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"))


def explained(client, policy, *headers, user=None):
    body = chat(content="Say it in one sentence. " * 40, **({"user": user} if user else {}))
    headers = (f"routing-strategy: {policy}", "x-fairlead-explain: 1", *headers)
    answer = client.send(request(body, headers=headers)).answer()
    assert answer.status == 200, answer
    return json.loads(answer.header("x-fairlead-explain"))


@pytest.mark.parametrize("kind", ["vllm", "sglang"])
def test_each_decides_by_its_own_rule(kind):
    with engines(kind) as up, Raw(up.url) as client:
        for _ in range(8):
            explained(client, "round-robin")

        def reported(policy):
            said = explained(client, policy)
            return said["policy"] == policy and not said.get("missing")

        for policy in REPORTED:
            # Rates need two readings of the engine's metrics, times of requests one after an answer has ended.
            until(lambda: reported(policy), what=f"{policy} on {kind}")
            said = explained(client, policy)
            values = [candidate["value"] for candidate in said["candidates"] if "value" in candidate]
            assert said["reason"] == "least_load" and values and values == sorted(values), said
        for policy in OTHERS:
            assert explained(client, policy)["policy"] == policy
        for policy in SLO:
            said = explained(client, policy, "x-slo-ttft-ms: 5000", "x-slo-tpot-ms: 100")
            assert said["policy"] == ("slo-least-load-pulling" if policy == "slo" else policy)
            assert said["reason"] in ("least_load", "highest_score"), said
            assert explained(client, policy)["missing"] == "slo", "no limits, and it says so"
        held = {explained(client, "session-affinity", "x-session-id: s")["chosen"] for _ in range(5)}
        assert len(held) == 1, held
        assert explained(client, "session-affinity")["policy"] == "least-request"
        assert explained(client, "vtc-basic", user="u")["policy"] == "vtc-basic"
        assert explained(client, "vtc-basic")["policy"] == "least-request"

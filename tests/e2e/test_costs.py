"""What engines' work costs: learnt from answers, shared through the scheduler, known to a gateway that starts."""

import concurrent.futures
import json
import random
import urllib.request

from cluster import Cluster
from harness import get_json, metric, until

# The profile that simulated engines have by default, microseconds.
PROFILE = {"prefill_us": 33.3, "step_us": 6_000}
WITHIN = 0.3


def ask(url, number):
    """One streamed answer to a prompt of some thousand tokens that nobody has sent before."""
    words = random.Random(number)
    prompt = " ".join(f"w{words.randrange(10**6)}" for _ in range(words.randrange(300, 900)))
    body = {
        "model": "sim-8b",
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": 30,
        "messages": [{"role": "user", "content": prompt}],
    }
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(f"{url}/v1/chat/completions", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        assert b"[DONE]" in answer.read()


def off(costs):
    return {part: abs(costs[part] / value - 1) for part, value in PROFILE.items()}


def good(costs):
    return all(error < WITHIN for error in off(costs).values())


def scheduler_costs(cluster):
    admin = cluster.scheduler.field("admin")
    return [target["costs"] for target in get_json(f"{admin}/debug/targets")["targets"]]


def test_learnt_costs_are_right_and_outlive_gateways_and_schedulers(tmp_path):
    with Cluster(tmp_path, engines=2, gateways=1, policy="least-request", speed=1) as cluster:
        assert all(target["costs"]["own"] == {"prefills": 0, "decodes": 0} for target in cluster.targets())
        with concurrent.futures.ThreadPoolExecutor(4) as people:
            list(people.map(lambda number: ask(cluster.gateway.url, number), range(160)))
        until(lambda: all(t["costs"]["own"]["decodes"] >= 64 for t in cluster.targets()), what="all is counted")
        learnt = [target["costs"] for target in cluster.targets()]
        print([off(costs) for costs in learnt])
        assert all(good(costs) for costs in learnt), learnt
        seconds = metric(cluster.admin, "fairlead_target_cost_seconds", target=cluster.targets()[0]["instance"], part="step")
        assert abs(seconds * 1e6 / learnt[0]["step_us"] - 1) < 0.1
        until(lambda: all(costs and good(costs) for costs in scheduler_costs(cluster)), what="the scheduler knows")

        # One that starts knows before its first request.
        fresh = cluster.start_gateway(1)
        until(lambda: len(cluster.targets(fresh)) == 2, what="two ready targets")
        until(lambda: all(t["costs"]["shared"]["decodes"] for t in cluster.targets(fresh)), 1, what="told with the state")
        known = [target["costs"] for target in cluster.targets(fresh)]
        assert all(good(costs) and costs["own"]["decodes"] == 0 for costs in known), known

        # A scheduler that starts is told by those who know; also by who has only heard of it.
        cluster.scheduler.kill()
        cluster.gateway.kill()
        cluster.start_scheduler()
        until(lambda: len(scheduler_costs(cluster)) == 2 and all(scheduler_costs(cluster)), 30, what="told again")
        assert all(good(costs) for costs in scheduler_costs(cluster)), scheduler_costs(cluster)

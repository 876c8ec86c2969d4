"""Recorded traffic on two gateways: they share what they know, so their hit ratio is that of one."""

import json
import os
import pathlib

import pytest

from cluster import Cluster
from harness import ROOT, run, until

FULL = os.environ.get("FAIRLEAD_FULL") == "1"
TRACES = os.environ.get("FAIRLEAD_TRACES")
SAMPLE = ROOT / "perf/data/mooncake_conversation_sample.jsonl"


def play(folder, gateways, trace, speed, sim_speed, *load_args, sim_args=()):
    """Plays a trace on four engines behind so many gateways; what the load generator says of it."""
    folder.mkdir()
    with Cluster(folder, engines=4, gateways=gateways, speed=sim_speed, sim_args=sim_args) as cluster:
        file = folder / "load.json"
        urls = [arg for gateway in cluster.gateways for arg in ("--url", gateway.url)]
        done = run(
            "load", *urls, "--trace", trace, "--speed", speed, "--json", file, "--fail-on-error", *load_args,
            timeout=590,
        )
        summary = json.loads(file.read_text())["summary"]
        assert summary["errors"] == {} and summary["unfinished"] == 0, done.stdout
        assert summary["warm_up"] > 0 and set(summary["instances"]) and len(summary["instances"]) == 4
        # The lengths of the trace are those that the engines count.
        assert cluster.tokens()[0] >= summary["prompt_tokens"] > 0
        until(cluster.settled, 15, what="nothing in flight, nothing reserved")
    print(
        f"\n{pathlib.Path(trace).name} at {speed} x, {gateways} gateway(s): {summary['requests']} requests, hit ratio "
        f"{summary['hit_ratio']:.4f} (infinite cache {summary['hit_ratio_bound']:.4f}), TTFT p50 "
        f"{summary['ttft_s']['p50']:.3f} s p99 {summary['ttft_s']['p99']:.3f} s, {summary['throughput_rps']:.1f}/s, sent late p99 "
        f"{summary['send_lag_ms']['p99']:.0f} ms"
    )
    return summary


def compare(tmp_path, *args, **options):
    one = play(tmp_path / "one", 1, *args, **options)
    two = play(tmp_path / "two", 2, *args, **options)
    assert one["requests"] == two["requests"]
    print(f"two gateways have {two['hit_ratio'] / one['hit_ratio']:.4f} of the hit ratio of one")
    assert abs(two["hit_ratio"] / one["hit_ratio"] - 1) <= 0.02
    return one, two


def test_two_gateways_hit_as_one_does(tmp_path):
    """467 requests of public conversations, their times and answers shortened."""
    one, two = compare(tmp_path, SAMPLE, 120, 60, "--out-scale", 0.1)
    assert one["requests"] == 467
    # Four caches with room for everything come near one without limits; more would be a wrong count.
    for summary in (one, two):
        assert 0.9 * summary["hit_ratio_bound"] < summary["hit_ratio"] <= summary["hit_ratio_bound"] + 0.001


@pytest.mark.timeout(1200)
def test_the_whole_conversation_trace(tmp_path):
    """The public trace at full length; needs its file, so it is asked for with two variables."""
    if not (FULL and TRACES):
        pytest.skip("set FAIRLEAD_FULL=1 and FAIRLEAD_TRACES to a folder with mooncake_conversation_trace.jsonl[.gz]")
    found = sorted(pathlib.Path(TRACES).glob("mooncake_conversation_trace.jsonl*"))
    assert found, f"no mooncake_conversation_trace.jsonl in {TRACES}"
    # 1.3 times the recorded rate loads four such engines to about 70 %; the rest is time running faster.
    compare(tmp_path, found[0], 20, 15, "--out-scale", 0.2)

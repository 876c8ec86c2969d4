"""Recorded traffic in virtual time: the command's figures, files and errors."""

import json

import pytest

from harness import ROOT, run

KEYS = {
    "policy", "requests", "ttft_mean_s", "ttft_p50_s", "ttft_p99_s", "tpot_mean_ms", "tpot_p99_ms", "hit_ratio",
    "goodput", "throughput_rps", "seeds", "failed", "remote_share",
}
DATA = ROOT / "perf/data"
SAMPLE = DATA / "mooncake_conversation_sample.jsonl"


def rows(tmp_path, *args, trace=SAMPLE):
    file = tmp_path / "replay.json"
    done = run("replay", "--trace", trace, "--json", file, *args)
    written = json.loads(file.read_text())
    assert written["name"] == "replay" and written["machine"]
    for row in written["rows"]:
        assert set(row) == KEYS
        assert row["policy"] in done.stdout
    return {row["policy"]: row for row in written["rows"]}


def test_prefix_cache_finds_more_than_chance(tmp_path):
    found = rows(tmp_path, "--policy", "prefix-cache,random", "--instances", 4, "--speed", 20, "--seeds", 3)
    assert list(found) == ["prefix-cache", "random"]
    for row in found.values():
        # The first tenth of 467 warms the caches.
        assert (row["requests"], row["failed"], row["seeds"]) == (421, 0, 3)
        assert 0 < row["ttft_p50_s"] <= row["ttft_p99_s"] and row["throughput_rps"] > 0
    ours, chance = found["prefix-cache"], found["random"]
    assert ours["hit_ratio"] > 1.5 * chance["hit_ratio"]
    assert ours["ttft_mean_s"] < chance["ttft_mean_s"] and ours["goodput"] >= chance["goodput"]


def test_every_policy_runs_on_every_sample(tmp_path):
    for trace in sorted(DATA.glob("*_sample.*")):
        found = rows(tmp_path, "--policy", "all", "--requests", 150, "--gateways", 2, "--state-delay", 5, trace=trace)
        assert {"cost", "prefix-cache", "least-request", "round-robin", "random"} <= set(found)
        for row in found.values():
            assert row["failed"] == 0 and 0 <= row["hit_ratio"] < 1, (trace.name, row)


def test_the_same_seeds_give_the_same_figures(tmp_path):
    args = ["--policy", "random,prefix-cache", "--speed", 20, "--seeds", 4, "--gateways", 3, "--fail", "0@10:30"]
    once = rows(tmp_path, *args, "--threads", 1)
    assert rows(tmp_path, *args, "--threads", 3) == once


def test_options_of_the_fleet(tmp_path):
    pool = rows(tmp_path, "--policy", "least-request", "--pool", "2x8b-h200,1x70b-tp4", "--speed", 20)
    small = rows(tmp_path, "--policy", "least-request", "--instances", 3, "--kv-blocks", 60, "--speed", 20)
    assert small["least-request"]["hit_ratio"] < pool["least-request"]["hit_ratio"]
    profile = tmp_path / "slow.yaml"
    profile.write_text(
        "base: 0.006\nprefill: 0.0001\nattention: 0\nper_sequence: 0.00003\ndecode_context: 0.00000002\n"
        "kv_tokens: 1536000\ntoken_budget: 1024\nmax_running: 256\n"
    )
    slow = rows(tmp_path, "--policy", "least-request", "--instances", 3, "--profile", profile, "--speed", 20)
    assert slow["least-request"]["ttft_mean_s"] > pool["least-request"]["ttft_mean_s"]


def test_pools_that_are_split(tmp_path):
    args = ["--policy", "pd-split,dynamic-pd-split,cost", "--instances", 4, "--speed", 20, "--requests", 300]
    file = tmp_path / "split.json"
    done = run("replay", "--trace", SAMPLE, "--json", file, *args, "--pd", "2:2")
    split = {row["policy"]: row for row in json.loads(file.read_text())["rows"]}
    for row in split.values():
        assert set(row) == KEYS and row["failed"] == 0
        assert 0 <= row["remote_share"] <= 1 and row["policy"] in done.stdout
    # Nothing but the decode side's own choice keeps a request of fixed roles whole.
    assert split["pd-split"]["remote_share"] == 1
    # What a transfer takes comes before the first token of the decode side.
    slow = ["--pd", "2:2", "--transfer-ms", 60000]
    run("replay", "--trace", SAMPLE, "--json", file, *args, *slow)
    assert json.loads(file.read_text())["rows"][0]["ttft_mean_s"] > split["pd-split"]["ttft_mean_s"]


@pytest.mark.parametrize(
    "args, says",
    [
        (["--policy", "best"], "best"),
        (["--policy", "random", "--pd", "2:2"], "there are 8 instances"),
        (["--policy", "random", "--pd", "0:8"], "at least one instance of each kind"),
        (["--policy", "random", "--pd", "half"], "3:5"),
        (["--policy", "random", "--pool", "8b-h200"], "4x8b-h200"),
        (["--policy", "random", "--profile", "9b"], "8b-h200, 70b-tp4"),
        (["--policy", "random", "--set", "prefil=1"], "token_budget"),
        (["--policy", "random", "--fail", "8@1"], "instances 0 to 7"),
        (["--policy", "random", "--fail", "0@9:3"], "before it dies"),
        (["--policy", "random", "--speed", "0"], "--speed"),
        (["--policy", "random", "--seeds", "0"], "--seeds"),
        (["--policy", "random", "--sessions", "3"], "times of its own"),
        (["--policy", "random", "--trace", "no-such-trace"], "cannot read the trace no-such-trace"),
    ],
)
def test_what_is_wrong_is_said(args, says):
    trace = [] if "--trace" in args else ["--trace", SAMPLE]
    done = run("replay", *trace, *args, check=False)
    assert done.returncode != 0 and says in done.stderr, done.stderr
    assert "panic" not in done.stderr

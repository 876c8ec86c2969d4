"""What prefix routing is worth: conversations on four engines, against one cache without limits."""

import json
import os

from harness import Process, run

FULL = os.environ.get("FAIRLEAD_FULL") == "1"


def hit_ratio(tmp_path, policy, conversations, think, rate):
    file = tmp_path / f"{policy}.json"
    with Process(
        "up", "--sim", 4, "--sim-speed", 10, "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--policy", policy
    ) as up:
        done = run(
            "load", "--url", up.url, "--conversations", conversations, "--turns", 6, "--think", think,
            "--rate", rate, "--system-tokens", 512, "--user-tokens", 128, "--output-tokens", 64,
            "--json", file, "--fail-on-error", timeout=300,
        )
    summary = json.loads(file.read_text())["summary"]
    assert summary["errors"] == {}, done.stdout
    assert summary["sessions"] == conversations
    return summary["hit_ratio"], summary["hit_ratio_bound"]


def test_prefix_cache_comes_near_an_infinite_cache(tmp_path):
    """200 conversations of 6 turns, open arrivals, think time 5 s and more, a shared system prompt."""
    conversations, think, rate = (200, 5, 60) if FULL else (80, 1, 60)
    ours, bound = hit_ratio(tmp_path, "prefix-cache", conversations, think, rate)
    others, others_bound = hit_ratio(tmp_path, "round-robin", conversations, think, rate)
    print(
        f"\n{conversations} conversations of 6 turns, think time {think} s: hit ratio prefix-cache {ours:.3f} "
        f"({ours / bound:.3f} of an infinite cache's {bound:.3f}), round-robin {others:.3f} "
        f"({others / others_bound:.3f})"
    )
    assert ours >= 0.90 * bound
    assert ours > others

"""Scheduler, agent and gateway in front of one real engine, each a process of its own."""

import json
import pathlib
import re
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "e2e"))

from cluster import free_udp_port
from engine import NAME, PAGE
from harness import Process, get_json, metric, run, until

LOGS = {"FAIRLEAD_LOG": "info,fairlead::cache=debug", "FAIRLEAD_LOG_FORMAT": "json"}


class Fleet:
    def __init__(self, folder, engine, model):
        self.folder = pathlib.Path(folder)
        self.engine = engine
        self.port = free_udp_port()
        self.seen = 0
        run("certs", "--out", self.folder / "certs")
        self.start_scheduler()
        self.start_agent()
        config = self.folder / "gateway.yaml"
        config.write_text(
            f"gateway:\n  listen: 127.0.0.1:0\n  admin: 127.0.0.1:0\n  scheduler: 127.0.0.1:{self.port}\n"
            f"  identity: {self.folder}/certs/gateway\n  policy: prefix-cache\n"
            f"  models:\n    - name: {NAME}\n      tokenizer: {model}\n"
        )
        self.gateway = Process("gateway", "--config", config, env=LOGS)
        self.wait_ready()

    def start_scheduler(self):
        config = self.folder / "scheduler.yaml"
        # A routing block is one page of the engine, so that predictions can be exact.
        config.write_text(
            f"scheduler:\n  listen: 127.0.0.1:{self.port}\n  admin: 127.0.0.1:0\n"
            f"  identity: {self.folder}/certs/scheduler\n  block_tokens: {PAGE}\n"
        )
        self.scheduler = Process("scheduler", "--config", config)

    def start_agent(self):
        self.agent = Process(
            "agent", "--engine", self.engine.url, "--scheduler", f"127.0.0.1:{self.port}",
            "--identity", self.folder / "certs/agent", "--listen", "127.0.0.1:0", wait=0,
        )  # fmt: skip

    @property
    def admin(self):
        return self.gateway.field("admin")

    def targets(self):
        return [t for t in get_json(f"{self.admin}/debug/targets")["targets"] if t["ready"]]

    def wait_ready(self, count=1, seconds=60):
        until(lambda: len(self.targets()) == count, seconds, what=f"{count} ready targets")

    def index_blocks(self):
        """(the scheduler's, the gateway's)"""
        return tuple(
            int(metric(process.field("admin"), "fairlead_index_blocks") or 0)
            for process in (self.scheduler, self.gateway)
        )

    def wait_index(self, blocks, seconds=20):
        """Until both indexes hold so many blocks; `blocks` may be a function."""
        count = blocks if callable(blocks) else lambda: blocks
        last = None

        def same():
            nonlocal last
            last = (*self.index_blocks(), count())
            return last[0] == last[1] == last[2]

        try:
            until(same, seconds, every=0.005)
        except AssertionError:
            raise AssertionError(f"blocks: scheduler {last[0]}, gateway {last[1]}, engine {last[2]}") from None

    def prediction(self, seconds=10):
        """What the gateway logged of the next answer: predicted and reported tokens."""

        def line():
            for text in self.gateway.log[self.seen :]:
                self.seen += 1
                if '"fairlead::cache"' in text and re.search(r'"predicted_tokens"', text):
                    return json.loads(text)
            return None

        return until(line, seconds, every=0.002, what="the gateway's line on the answer")

    def stop(self):
        for process in (self.gateway, self.agent, self.scheduler):
            process.kill()

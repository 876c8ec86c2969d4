"""Engines that tell what they hold, and a gateway that has their tokenizer: every prediction is what comes true.

Simulated engines tokenise with a small tokenizer and publish their KV-cache events; scheduler, agents and gateway are
processes of their own. A routing block is one page of the engines, so that counts can be compared exactly.
"""

import concurrent.futures
import json
import random
import socket
import urllib.request

import pytest

from cluster import Cluster
from harness import ROOT, Process, get_json, metric, post_json, until

TOKENIZER = ROOT / "shared/tokens/tests/data/turns"
PAGE = 16
MODEL = "sim-8b"
LOGS = {"FAIRLEAD_LOG": "info,fairlead::cache=debug", "FAIRLEAD_LOG_FORMAT": "json"}
WORDS = "the router sends every request to an engine that holds its prefix and nobody likes to wait".split()


def free_ports(n):
    """TCP ports that nothing uses now: an engine must come back on those it had."""
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(n)]
    ports = [s.getsockname()[1] for s in held]
    for s in held:
        s.close()
    return ports


class Fleet(Cluster):
    """Engines with events in front of one gateway with their tokenizer."""

    def __init__(self, folder, engines=2, sim_args=(), gateways=1):
        self.extra = [str(a) for a in sim_args]
        self.seen = 0
        self.sim_ports = [free_ports(3) for _ in range(engines)]
        keys = f"  models:\n    - tokenizer: {TOKENIZER}\n"
        super().__init__(folder, engines=engines, gateways=gateways, gateway_keys=keys)

    def _start(self, *args):
        """Engines get their ports, gateways their log."""
        if args[0] == "sim":
            return self.start_sim(len([p for p in self.processes if p.args[1] == "sim"]))
        process = Process(*args, env=LOGS if args[0] == "gateway" else None)
        self.processes.append(process)
        return process

    def start_sim(self, number):
        http, events, replay = self.sim_ports[number]
        process = Process(
            "sim", "--listen", f"127.0.0.1:{http}", "--speed", 100, "--block-size", PAGE, "--tokenizer", TOKENIZER,
            "--kv-events", f"tcp://127.0.0.1:{events}", "--kv-replay", f"tcp://127.0.0.1:{replay}", *self.extra,
        )  # fmt: skip
        self.processes.append(process)
        return process

    def start_scheduler(self):
        config = self.folder / "scheduler.yaml"
        config.write_text(
            f"scheduler:\n  listen: 127.0.0.1:{self.port}\n  admin: 127.0.0.1:0\n"
            f"  identity: {self.folder}/certs/scheduler\n  block_tokens: {PAGE}\n"
        )
        self.scheduler = self._start("scheduler", "--config", config)
        return self.scheduler

    def held(self):
        """Pages that the engines hold."""
        return sum(self.state(i)["kv_named"] for i, sim in enumerate(self.sims) if sim.proc.poll() is None)

    def state(self, number):
        return get_json(f"{self.sims[number].url}/sim/state")

    def control(self, number, **faults):
        post_json(f"{self.sims[number].url}/sim/control", faults)

    def indexes(self):
        """Blocks held by some engine, as the scheduler and every gateway have them."""
        admins = [self.scheduler.field("admin"), *(g.field("admin") for g in self.gateways)]
        return [int(metric(admin, "fairlead_index_blocks") or 0) for admin in admins]

    def settle(self, seconds=15):
        """Until all indexes hold just what the engines hold. Returns how much that is."""
        last = []

        def same():
            last[:] = [self.held(), *self.indexes()]
            return len(set(last)) == 1

        try:
            until(same, seconds, every=0.01)
        except AssertionError:
            raise AssertionError(f"pages held by the engines and in the indexes: {last}") from None
        return last[0]

    def prediction(self, seconds=10):
        """What the gateway said of the next answer."""

        def line():
            for text in self.gateway.log[self.seen :]:
                self.seen += 1
                if '"fairlead::cache"' in text and '"predicted_tokens"' in text:
                    record = json.loads(text)
                    return record.get("fields", record)
            return None

        return until(line, seconds, every=0.002, what="the gateway's line on the answer")

    def chat(self, messages, gateway=0, **more):
        """(answer's text, prompt tokens, cached tokens)"""
        body = {"model": MODEL, "messages": messages, "max_tokens": 6, **more}
        answer = post_json(f"{self.gateways[gateway].url}/v1/chat/completions", body)
        usage = answer["usage"]
        text = answer["choices"][0]["message"]["content"]
        return text, usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"]

    def exact(self, messages, **more):
        """One request on a quiet fleet: what was predicted is what the engine reports, in tokens. Settles again."""
        text, prompt, cached = self.chat(messages, **more)
        said = self.prediction()
        assert said["space"] == "Tokens", said
        assert (said["prompt_tokens"], said["predicted_tokens"]) == (prompt, cached), (said, prompt, cached)
        self.settle()
        return text, prompt, cached


def words(rng, n):
    return " ".join(rng.choice(WORDS) + (str(rng.randrange(1000)) if i % 7 == 0 else "") for i in range(n))


class Talk:
    def __init__(self, rng, system=None):
        self.rng = rng
        self.messages = [{"role": "system", "content": system}] if system else []

    def ask(self, send, n, **more):
        self.messages.append({"role": "user", "content": words(self.rng, n)})
        text, prompt, cached = send(self.messages, **more)
        self.messages.append({"role": "assistant", "content": text})
        return prompt, cached


@pytest.fixture(scope="module")
def fleet(tmp_path_factory):
    with Fleet(tmp_path_factory.mktemp("kv")) as fleet:
        yield fleet


def test_predictions_are_what_engines_report(fleet):
    """Conversations that share system prompts, one request at a time: no prediction is off by a token."""
    rng = random.Random(1)
    systems = [words(rng, n) for n in (15, 60, 150)] + [None]
    talks = [Talk(random.Random(100 + i), systems[i % 4]) for i in range(16)]
    prompt = cached = 0
    for _ in range(3):
        for talk in talks:
            p, c = talk.ask(fleet.exact, rng.randrange(3, 60))
            prompt, cached = prompt + p, cached + c
    print(f"\n48 answers, {cached} of {prompt} prompt tokens cached, every one predicted; {fleet.held()} pages")
    assert cached > prompt / 3


def test_salts_keep_apart(fleet):
    messages = [{"role": "user", "content": words(random.Random(2), 90)}]
    cached = [fleet.exact(messages, **more)[2] for more in ({}, {"cache_salt": "a"}, {"cache_salt": "b"}, {"cache_salt": "a"})]
    assert [c > 0 for c in cached] == [False, False, False, True]


def test_many_at_once_leave_nothing_wrong(fleet):
    talks = [Talk(random.Random(200 + i), words(random.Random(i % 3), 80)) for i in range(12)]
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        for _ in range(3):
            list(pool.map(lambda talk: talk.ask(fleet.chat, 20), talks))
    for _ in range(36):
        fleet.prediction()
    fleet.settle()
    for talk in talks[:4]:
        talk.ask(fleet.exact, 5)


def test_lost_batches_are_asked_for_again(fleet):
    """The engine numbers two batches and publishes neither; its replay has them."""
    before = fleet.settle()
    for number in range(2):
        fleet.control(number, drop_events=1)
    rng = random.Random(3)
    dropped = lambda: sum(fleet.state(i)["kv_batches_dropped"] for i in range(2))
    while dropped() < 2:
        fleet.chat([{"role": "user", "content": words(rng, 60)}])
        fleet.prediction()
    # The next batch of each shows the gap.
    for _ in range(6):
        fleet.chat([{"role": "user", "content": words(rng, 60)}])
        fleet.prediction()
    assert fleet.settle() > before
    Talk(rng).ask(fleet.exact, 40)


def test_a_reset_of_a_cache_is_followed(fleet):
    held = fleet.settle()
    own = fleet.state(0)["kv_named"]
    assert own > 0
    empty_post(f"{fleet.sims[0].url}/reset_prefix_cache")
    assert fleet.settle() == held - own
    empty_post(f"{fleet.sims[1].url}/reset_prefix_cache")
    assert fleet.settle() == 0
    talk = Talk(random.Random(4))
    assert [talk.ask(fleet.exact, n)[1] > 0 for n in (120, 5)] == [False, True]


def empty_post(url):
    with urllib.request.urlopen(urllib.request.Request(url, b"", method="POST"), timeout=5) as answer:
        assert answer.status == 200


def test_an_agent_that_comes_late_knows_everything(fleet):
    talk = Talk(random.Random(5))
    talk.ask(fleet.exact, 150)
    held = fleet.settle()
    for agent in fleet.agents:
        agent.kill()
    until(lambda: not fleet.targets(), 15, what="no target")
    fleet.agents = [fleet.start_agent(sim) for sim in fleet.sims]
    fleet.wait_ready(2)
    assert fleet.settle() == held
    assert talk.ask(fleet.exact, 10)[1] > 0


def test_a_scheduler_that_restarts_knows_everything(fleet):
    talk = Talk(random.Random(7))
    talk.ask(fleet.exact, 150)
    held = fleet.settle()
    fleet.scheduler.kill()
    fleet.start_scheduler()
    fleet.wait_ready(2)
    assert fleet.settle(30) == held
    assert talk.ask(fleet.exact, 10)[1] > 0


def test_a_killed_engine_is_gone_and_comes_back_empty(fleet):
    talk = Talk(random.Random(9))
    before = [fleet.state(i)["kv_named"] for i in range(2)]
    talk.ask(fleet.exact, 150)
    fleet.settle()
    # The one that took this conversation; both hold something of tests before.
    number = max(range(2), key=lambda i: fleet.state(i)["kv_named"] - before[i])
    assert fleet.state(number)["kv_named"] > before[number]
    fleet.sims[number].kill()
    until(lambda: len(fleet.targets()) == 1, 15, what="one ready target")
    # Nothing is predicted of who is gone.
    _, prompt, cached = fleet.chat(talk.messages[:1])
    assert fleet.prediction()["predicted_tokens"] == cached == 0
    fleet.sims[number] = fleet.start_sim(number)
    fleet.wait_ready(2)
    fleet.settle()
    assert fleet.state(number)["kv_named"] == 0
    assert talk.ask(fleet.exact, 5)[1] > 0


def test_what_engines_evict_the_index_forgets(tmp_path):
    """Caches of 64 pages: most of what was stored is gone, from the indexes of both gateways too."""
    with Fleet(tmp_path, sim_args=("--kv-blocks", 64), gateways=2) as fleet:
        rng = random.Random(11)
        first = [{"role": "user", "content": words(rng, 60)}]
        fleet.exact(first)
        open_ = []
        for _ in range(60):
            if open_ and rng.random() < 0.5:
                talk = rng.choice(open_[-4:])
            else:
                talk = Talk(rng, words(random.Random(rng.randrange(2)), 30))
                open_.append(talk)
            if sum(len(m["content"]) for m in talk.messages) < 1500:
                talk.ask(fleet.exact, rng.randrange(5, 50))
        states = [fleet.state(i) for i in range(2)]
        evicted = sum(s["evictions"] for s in states)
        print(f"\n{evicted} pages evicted, {fleet.settle()} held and in the indexes")
        assert evicted > 2 * 64
        assert fleet.exact(first)[2] == 0


@pytest.mark.parametrize("form", [("--engine", "sglang"), ("--kv-encoding", "array"), ("--kv-tell-reused",)])
def test_other_forms_of_events(tmp_path, form):
    """SGLang's events, those of older engines, and engines that tell reused pages again."""
    with Fleet(tmp_path, sim_args=("--kv-blocks", 96, *form)) as fleet:
        rng = random.Random(12)
        talks = [Talk(rng, words(random.Random(13), 60)) for _ in range(5)]
        cached = 0
        for _ in range(3):
            for talk in talks:
                cached += talk.ask(fleet.exact, rng.randrange(5, 30))[1]
        assert cached > 0 and fleet.settle() > 0


def test_everything_in_one_process(tmp_path):
    """`up --sim --tokenizer`: the engines tokenise as the gateway does and tell what they hold."""
    with Process(
        "up", "--sim", 2, "--sim-speed", 50, "--tokenizer", TOKENIZER, "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0",
        env=LOGS,
    ) as up:  # fmt: skip
        admin = up.field("admin")
        body = {"model": MODEL, "max_tokens": 2, "messages": [{"role": "user", "content": words(random.Random(14), 300)}]}
        cached = []
        for _ in range(2):
            usage = post_json(f"{up.url}/v1/chat/completions", body)["usage"]
            cached.append(usage["prompt_tokens_details"]["cached_tokens"])
            until(lambda: metric(admin, "fairlead_index_blocks"), what="blocks in the index")
        assert cached[0] == 0 < cached[1]
        assert metric(admin, "fairlead_token_mode", model="*") == 1

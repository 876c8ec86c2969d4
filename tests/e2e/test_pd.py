"""Prefill and decode apart, for every hand-off: the real gateway in front of simulated engines that speak it."""

import http.client
import json
import socket
import threading
import time
import urllib.error
import urllib.parse
import urllib.request

import pytest

from cluster import free_udp_port
from harness import Process, get_json, metric, post_json, reservations, run, until

# Hand-offs, each with what its instances are told; those with agents are found out by them.
HANDOFFS = {
    "nixl-pull": {},
    "nixl-push": {},
    "mooncake": {"agents": True},
    "mori-read": {"peer": True},
    "mori-write": {"peer": True},
    "p2p-nccl": {"peer": True},
    "shared-store": {"store": True},
    "sidecar": {},
    "sglang": {"bootstrap": True},
    "sglang-headers": {"agents": True, "name": "sglang"},
}
# Whose decode side cannot serve a request by itself.
NEVER_ALONE = {"sglang"}
# Whose legs go out at once.
CONCURRENT = {"sglang", "mooncake", "mori-write", "nixl-push"}
# Whose hand-off bears more than one answer.
SEVERAL = {"sglang", "shared-store"}

CHAT = "/v1/chat/completions"


def request(text="hello there " * 40, **more):
    return {"model": "sim-8b", "max_tokens": 24, "messages": [{"role": "user", "content": text}], **more}


def named(headers):
    return {name.lower(): value for name, value in headers.items()}


class Fleet:
    """A gateway and engines, so many of which prefill and so many decode."""

    def __init__(self, folder, kind, prefill=2, decode=2, speed=25, policy="pd-split"):
        told = HANDOFFS[kind]
        self.kind, self.handoff = kind, told.get("name", kind)
        self.processes = []
        self.folder = folder
        engine = ("--engine", "sglang") if self.handoff == "sglang" else ()
        store = ("--kv-store", folder / "store") if told.get("store") else ()
        if store:
            (folder / "store").mkdir()

        def sim(role):
            return self._start(
                "sim", "--listen", "127.0.0.1:0", "--speed", speed, "--role", role, "--handoff", self.handoff,
                *engine, *store,
            )

        self.prefill = [sim("prefill") for _ in range(prefill)]
        self.decode = [sim("decode") for _ in range(decode)]
        self.plain = self._start("sim", "--listen", "127.0.0.1:0", "--speed", speed, *engine)
        if told.get("agents"):
            run("certs", "--out", folder / "certs")
            port = free_udp_port()
            config = folder / "scheduler.yaml"
            config.write_text(
                f"scheduler:\n  listen: 127.0.0.1:{port}\n  admin: 127.0.0.1:0\n  identity: {folder}/certs/scheduler\n"
            )
            self._start("scheduler", "--config", config)
            for engine in self.sims:
                role = "prefill" if engine in self.prefill else "decode"
                address = urllib.parse.urlsplit(engine.url).netloc
                # A simulated engine has its bootstrap server on its own port.
                self._start(
                    "agent", "--engine", engine.url, "--scheduler", f"127.0.0.1:{port}", "--identity",
                    folder / "certs/agent", "--listen", "127.0.0.1:0", "--role", role, "--handoff", self.handoff,
                    "--bootstrap", address,
                )
            keys = f"  scheduler: 127.0.0.1:{port}\n  identity: {folder}/certs/gateway\n"
        else:
            keys = "  instances:\n"
            for at, engine in enumerate(self.sims):
                role = "prefill" if engine in self.prefill else "decode"
                address = urllib.parse.urlsplit(engine.url).netloc
                keys += f"    - name: {role}-{at}\n      url: {engine.url}\n      models: [sim-8b]\n"
                keys += f"      role: {role}\n      handoff: {self.handoff}\n"
                if told.get("peer"):
                    keys += f"      peer: {address}\n"
                    if self.handoff != "p2p-nccl":
                        keys += f"      peer_port: {address.rsplit(':', 1)[1]}\n"
                if told.get("bootstrap") and role == "prefill":
                    keys += f"      bootstrap: {address}\n"
        config = folder / "gateway.yaml"
        config.write_text(
            f"gateway:\n  listen: 127.0.0.1:0\n  admin: 127.0.0.1:0\n  policy: {policy}\n{keys}"
        )
        self.gateway = self._start("gateway", "--config", config)
        self.admin = self.gateway.field("admin")
        until(lambda: len(self.targets()) == prefill + decode, 20, what="all targets ready")

    def _start(self, *args):
        process = Process(*args)
        self.processes.append(process)
        return process

    @property
    def sims(self):
        return self.prefill + self.decode

    def targets(self):
        return [t for t in get_json(f"{self.admin}/debug/targets")["targets"] if t["ready"]]

    def ask(self, body, path=CHAT, timeout=30, url=None, headers=None):
        """The status, the headers, and the text of an answer."""
        data = json.dumps(body).encode()
        asked = urllib.request.Request(
            (url or self.gateway.url) + path, data, {"content-type": "application/json", **(headers or {})}
        )
        try:
            with urllib.request.urlopen(asked, timeout=timeout) as answer:
                return answer.status, named(answer.headers), answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, named(error.headers), error.read().decode()

    def open(self, body):
        """A request whose answer is not read: its connection."""
        connection = http.client.HTTPConnection(urllib.parse.urlsplit(self.gateway.url).netloc, timeout=30)
        connection.request("POST", CHAT, json.dumps(body), {"content-type": "application/json"})
        return connection

    def faults(self, sims, **faults):
        if faults.get("refuse"):
            # It takes no control either, until that is over.
            faults["for_ms"] = 3000
        for engine in sims:
            post_json(f"{engine.url}/sim/control", faults)
            if faults.get("refuse"):
                until(lambda: not self.connects(engine), 5, 0.01, "connects are refused")

    def connects(self, engine):
        try:
            address = urllib.parse.urlsplit(engine.url)
            socket.create_connection((address.hostname, address.port), 1).close()
            return True
        except OSError:
            return False

    def healthy(self):
        def told(engine):
            try:
                return post_json(f"{engine.url}/sim/control", {}) is not None
            except OSError:
                return False

        for engine in self.sims:
            until(lambda: told(engine), 10, 0.1, "the engine takes control")

    def state(self, engine):
        return get_json(f"{engine.url}/sim/state")

    def settled(self):
        """Nothing is reserved, and no engine works or waits for anybody."""
        if reservations(self.admin) != 0:
            return False
        for engine in self.sims:
            state = self.state(engine)
            waits = [state["handoff"][k] for k in ("waiting_for_room", "waiting_for_kv", "awaited", "computing", "sending")]
            if state["in_flight"] or state["orphaned"] or state["running"] or state["waiting"] or any(waits):
                return False
        return True

    def await_settled(self):
        until(self.settled, 15, what=f"{self.handoff} settles: " + self.told())

    def told(self):
        states = [{k: v for k, v in self.state(e).items() if k in ("in_flight", "orphaned", "handoff")} for e in self.sims]
        return f"{states}, reserved {reservations(self.admin)}"

    def outcomes(self, outcome):
        return metric(self.admin, "fairlead_handoffs_total", outcome=outcome) or 0

    def stop(self):
        for process in reversed(self.processes):
            process.kill()


@pytest.fixture(scope="module", params=HANDOFFS)
def fleet(request, tmp_path_factory):
    running = Fleet(tmp_path_factory.mktemp(request.param), request.param)
    yield running
    running.stop()


@pytest.fixture(autouse=True)
def settles(request):
    yield
    if "fleet" in request.fixturenames:
        fleet = request.getfixturevalue("fleet")
        fleet.healthy()
        fleet.await_settled()
        # An exclusion after a refused connect ends.
        until(lambda: split_works(fleet), 20, 0.2, "pairs are picked again")


def split_works(fleet):
    return fleet.ask(request(f"probe {time.monotonic()}"))[1].get("x-fairlead-prefill-instance")


def content(answer):
    """Texts by index, usage, and whether a stream ended properly."""
    if not answer.startswith("data:"):
        whole = json.loads(answer)
        return {c["index"]: c["message"]["content"] for c in whole["choices"]}, whole["usage"], True
    texts, usage, done = {}, None, False
    for line in answer.splitlines():
        if line == "data: [DONE]":
            done = True
        elif line.startswith("data: "):
            event = json.loads(line[6:])
            usage = event.get("usage") or usage
            for choice in event.get("choices", []):
                texts[choice["index"]] = texts.get(choice["index"], "") + (choice["delta"].get("content") or "")
    return texts, usage, done


@pytest.mark.parametrize("stream", [False, True])
def test_the_answer_is_that_of_one_engine(fleet, stream):
    body = request(f"tell me more of it {stream} " * 30, stream=stream)
    if stream:
        body["stream_options"] = {"include_usage": True}
    want = content(fleet.ask(body, url=fleet.plain.url)[2])
    legs = lambda: [sum(fleet.state(e)["handoff"][k] for e in fleet.sims) for k in ("prefill_legs", "decode_legs")]
    before, ok = legs(), fleet.outcomes("ok")
    for turn in range(3):
        status, headers, answer = fleet.ask(body, headers={"x-request-id": f"mine-{turn}"})
        assert status == 200, answer
        texts, usage, done = content(answer)
        assert (texts, done) == (want[0], True)
        assert headers.get("x-request-id") == f"mine-{turn}"
        assert headers.get("x-fairlead-prefill-instance") and headers.get("x-fairlead-instance")
        assert headers["x-fairlead-prefill-instance"] != headers["x-fairlead-instance"]
        assert (usage["prompt_tokens"], usage["completion_tokens"]) == (want[1]["prompt_tokens"], want[1]["completion_tokens"])
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        # What the prefill side had, not what came from there.
        if fleet.handoff != "sidecar" and turn == 0:
            assert cached == 0, usage
    assert [a - b for a, b in zip(legs(), before)] == [3, 3]
    assert fleet.outcomes("ok") - ok == 3
    if fleet.handoff == "sglang":
        heads = [[name for name, _ in (fleet.state(e)["last"] or {"headers": []})["headers"]] for e in fleet.sims]
        by_headers = any("x-override-bootstrap-room" in head for head in heads)
        assert by_headers == (fleet.kind == "sglang-headers"), "as the engine's version takes it"


def test_several_answers(fleet):
    want = content(fleet.ask(request(n=3), url=fleet.plain.url)[2])[0]
    for stream in [False, True]:
        status, headers, answer = fleet.ask(request(n=3, stream=stream))
        if fleet.handoff in SEVERAL:
            assert status == 200 and headers.get("x-fairlead-prefill-instance"), answer
        else:
            assert status == 200 and "x-fairlead-prefill-instance" not in headers, answer
        assert content(answer)[0] == want


@pytest.mark.parametrize("leg", ["prefill", "decode"])
def test_a_client_that_leaves_before_the_first_byte(fleet, leg):
    if fleet.handoff == "sidecar" and leg == "prefill":
        pytest.skip("the gateway has no such leg")
    fleet.faults(fleet.prefill if leg == "prefill" else fleet.decode, hang=True, legs=leg)
    connections = [fleet.open(request(f"{leg} {i} " * 20, stream=i % 2 == 0)) for i in range(4)]
    side = fleet.prefill if leg == "prefill" else fleet.decode
    until(lambda: sum(fleet.state(e)["in_flight"] for e in side) == 4, 10, what="all hang: " + fleet.told())
    cancelled = fleet.outcomes("cancelled")
    for connection in connections:
        connection.sock.shutdown(socket.SHUT_RDWR)
        connection.close()
    fleet.await_settled()
    assert fleet.outcomes("cancelled") - cancelled == 4


def test_a_client_that_leaves_in_the_middle(fleet):
    fleet.faults(fleet.decode, hang_after=3)
    connection = fleet.open(request("the middle " * 20, stream=True))
    answer = connection.getresponse()
    assert answer.read(20)
    connection.sock and connection.sock.shutdown(socket.SHUT_RDWR)
    answer.close()
    connection.close()
    fleet.await_settled()


@pytest.mark.parametrize("fault", [{"die_after": 0}, {"cut_after": 0}, {"garbage": "head"}, {"refuse": True}])
def test_a_prefill_leg_that_dies_is_replaced(fleet, fault):
    if fleet.handoff == "sidecar":
        pytest.skip("the gateway has no such leg")
    fleet.faults(fleet.prefill[:1], **fault)
    began = time.monotonic()
    for i in range(6):
        status, headers, answer = fleet.ask(request(f"{fault} {i} " * 20, stream=i % 2 == 0))
        assert status == 200, answer
        assert content(answer)[2]
    assert time.monotonic() - began < 20, "nobody waits for a deadline"
    assert fleet.outcomes("prefill_failed") > 0


def test_no_prefill_side_at_all(fleet):
    if fleet.handoff == "sidecar":
        pytest.skip("the gateway has no such leg")
    fleet.faults(fleet.prefill, refuse=True)
    for i in range(4):
        status, headers, answer = fleet.ask(request(f"none {i} " * 20))
        if fleet.handoff in NEVER_ALONE:
            assert status in (502, 503), answer
        else:
            assert status == 200 and "x-fairlead-prefill-instance" not in headers, answer
    if fleet.handoff not in NEVER_ALONE:
        assert metric(fleet.admin, "fairlead_prefill_down", model="sim-8b") == 1
        warned = [line for line in fleet.gateway.log if "no prefill target can be used" in line]
        assert len(warned) == 1, warned


@pytest.mark.parametrize("fault", [{"die_after": 0}, {"garbage": "head"}, {"refuse": True}])
def test_a_decode_leg_that_dies_is_replaced(fleet, fault):
    fleet.faults(fleet.decode[:1], **fault)
    for i in range(6):
        status, headers, answer = fleet.ask(request(f"d {fault} {i} " * 20, stream=i % 2 == 0))
        assert status == 200, answer
        assert content(answer)[2]


def test_a_decode_leg_that_dies_in_the_middle(fleet):
    fleet.faults(fleet.decode, die_after=4)
    connection = fleet.open(request("dies " * 20, stream=True))
    answer = connection.getresponse().read().decode()
    assert '"error"' in answer and "[DONE]" not in answer, answer
    connection.close()


@pytest.mark.parametrize("fault", [{"refuse_kv": True}, {"lose_kv": True}, {"status": 500, "legs": "decode"}])
def test_a_refused_hand_off(fleet, fault):
    if fleet.handoff == "shared-store" and "status" in fault:
        pytest.skip("to such an engine all requests are decode legs")
    side = fleet.prefill if "lose_kv" in fault else fleet.decode
    if fleet.handoff in NEVER_ALONE:
        # Another pair, which works.
        side = side[:1]
    fleet.faults(side, **fault)
    body = request(f"refused {fault} " * 20)
    want = content(fleet.ask(body, url=fleet.plain.url)[2])[0]
    for stream in [False, True]:
        status, headers, answer = fleet.ask({**body, "stream": stream})
        assert status == 200, answer
        assert content(answer)[0] == want and content(answer)[2]


@pytest.mark.parametrize("status", [400, 429, 500])
def test_what_a_prefill_engine_says_is_passed_on(fleet, status):
    if fleet.handoff == "sidecar":
        pytest.skip("the gateway has no such leg")
    fleet.faults(fleet.prefill, status=status)
    for stream in [False, True]:
        got, headers, answer = fleet.ask(request(stream=stream))
        if status == 500 and got == 200 and fleet.handoff in CONCURRENT:
            # Where the legs talk to each other, it may be the other's fault: other pairs are tried, and then none.
            assert "x-fairlead-prefill-instance" not in headers
            continue
        assert (got, headers["content-type"]) == (status, "application/json"), answer
        assert "x-fairlead-prefill-instance" in headers


def test_a_busy_prefill_engine_is_passed_over(fleet):
    if fleet.handoff == "sidecar":
        pytest.skip("the gateway has no such leg")
    fleet.faults(fleet.prefill[:1], status=503)
    for i in range(4):
        status, headers, answer = fleet.ask(request(f"busy {i} " * 20))
        assert status == 200 and headers.get("x-fairlead-prefill-instance"), answer


def test_many_at_once(fleet):
    """Nothing is lost or leaked where requests meet and some clients leave."""
    failures = []

    def worker(number):
        for turn in range(6):
            body = request(f"worker {number} turn {turn} " * (5 + 7 * turn), stream=turn % 2 == 0, max_tokens=8)
            if (number + turn) % 5 == 0:
                connection = fleet.open(body)
                time.sleep(0.01 * (number % 4))
                connection.close()
                continue
            status, _, answer = fleet.ask(body)
            if status != 200 or not content(answer)[2]:
                failures.append((status, answer))

    threads = [threading.Thread(target=worker, args=(n,)) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not failures, failures[:3]

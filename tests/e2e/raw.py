"""Bytes on sockets: what no SDK would send, and exactly what comes back."""

import contextlib
import json
import os
import random
import re
import socket
import struct
import time
import urllib.error
import urllib.request

from harness import Process, get, get_json, reservations, until

MODEL = "sim-8b"
# What gateways stand on, one after the other. FAIRLEAD_RUNTIME=glommio has them all on that runtime, for a program that
# was built with it.
DRIVERS = ("glommio",) if os.environ.get("FAIRLEAD_RUNTIME") == "glommio" else ("uring", "epoll")


def address(url):
    """("127.0.0.1", port) of a URL or of host:port."""
    host, port = re.search(r"([\d.]+):(\d+)", url).groups()
    return host, int(port)


def stands_on(driver):
    """The line of a gateway's configuration for one of DRIVERS."""
    return "runtime: glommio" if driver == "glommio" else f"driver: {driver}"


def to_bytes(data):
    return data.encode() if isinstance(data, str) else bytes(data)


class Answer:
    """One response. `complete` says whether its framing came to its proper end."""

    def __init__(self, status, headers, version):
        self.status, self.headers, self.version = status, headers, version
        self.body, self.complete, self.chunks = b"", False, 0

    def header(self, name, default=None):
        return next((v for k, v in self.headers if k == name), default)

    def names(self):
        return [k for k, _ in self.headers]

    def json(self):
        return json.loads(self.body)

    def error(self):
        return self.json()["error"]

    def events(self):
        """(event name or None, data) of a stream of events."""
        found = []
        for block in self.body.decode("utf-8", "replace").split("\n\n"):
            name, data = None, []
            for line in block.split("\n"):
                if line.startswith("event:"):
                    name = line[6:].strip()
                elif line.startswith("data:"):
                    data.append(line[5:].strip())
            if data:
                found.append((name, "\n".join(data)))
        return found

    def __repr__(self):
        return f"<{self.status} {self.headers} {self.body[:300]!r} complete={self.complete}>"


class Raw:
    """A client that decides over each byte."""

    def __init__(self, where, timeout=10.0, receive_buffer=None):
        self.sock = socket.socket()
        if receive_buffer:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.sock.settimeout(timeout)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock.connect(address(where) if isinstance(where, str) else where)
        self.buf, self.ended = b"", None

    def send(self, data):
        self.sock.sendall(to_bytes(data))
        return self

    def drip(self, data, size=1, pause=0.0):
        data = to_bytes(data)
        for at in range(0, len(data), size):
            self.sock.sendall(data[at : at + size])
            if pause:
                time.sleep(pause)
        return self

    def half_close(self):
        self.sock.shutdown(socket.SHUT_WR)
        return self

    def reset(self):
        """Leaves with a RST."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    def close(self):
        self.sock.close()

    def more(self):
        """Reads once; False at the end, which is remembered as "fin" or "rst"."""
        if self.ended:
            return False
        try:
            data = self.sock.recv(1 << 16)
        except ConnectionResetError:
            self.ended = "rst"
            return False
        if not data:
            self.ended = "fin"
        self.buf += data
        return bool(data)

    def until_bytes(self, mark):
        while mark not in self.buf:
            if not self.more():
                return None
        head, self.buf = self.buf.split(mark, 1)
        return head

    def head(self):
        """Next response head, or None when the connection ended before one."""
        head = self.until_bytes(b"\r\n\r\n")
        if head is None:
            assert not self.buf, f"ended within a head: {self.buf!r}"
            return None
        first, *lines = head.decode("latin-1").split("\r\n")
        version, status = first.split(" ", 2)[:2]
        assert version in ("HTTP/1.1", "HTTP/1.0"), first
        pairs = [line.split(":", 1) for line in lines]
        return Answer(int(status), [(k.strip().lower(), v.strip()) for k, v in pairs], version)

    def body(self, answer, method="POST"):
        """Reads the body of an answer by its framing."""
        if method == "HEAD" or answer.status in (204, 304) or answer.status < 200:
            answer.complete = True
        elif answer.header("transfer-encoding") == "chunked":
            assert answer.header("content-length") is None, answer
            self._chunked(answer)
        elif answer.header("content-length") is not None:
            wanted = int(answer.header("content-length"))
            while len(self.buf) < wanted and self.more():
                pass
            answer.body, self.buf = self.buf[:wanted], self.buf[wanted:]
            answer.complete = len(answer.body) == wanted
        else:
            while self.more():
                pass
            answer.body, self.buf = self.buf, b""
            answer.complete = self.ended == "fin"
        return answer

    def _chunked(self, answer):
        parts = []
        while (line := self.until_bytes(b"\r\n")) is not None:
            size = int(line.split(b";")[0], 16)
            if size == 0:
                while (trailer := self.until_bytes(b"\r\n")) is not None:
                    if not trailer:
                        answer.complete = True
                        break
                break
            while len(self.buf) < size + 2 and self.more():
                pass
            parts.append(self.buf[:size])
            answer.chunks += 1
            if len(self.buf) < size + 2:
                self.buf = b""
                break
            assert self.buf[size : size + 2] == b"\r\n", self.buf[size : size + 20]
            self.buf = self.buf[size + 2 :]
        answer.body = b"".join(parts)

    def answer(self, method="POST"):
        """Next final response with its body; interim ones are skipped."""
        while True:
            head = self.head()
            assert head is not None, f"closed ({self.ended}) without an answer"
            if head.status >= 200:
                return self.body(head, method)

    def closed(self, within=5.0):
        """Whether the other side ends the connection without a further byte."""
        self.sock.settimeout(within)
        try:
            while self.more():
                pass
        except TimeoutError:
            return False
        return self.buf == b""

    def stays_open(self, method_and_path="GET /healthz"):
        """Whether the connection serves another request."""
        try:
            self.send(f"{method_and_path} HTTP/1.1\r\nHost: x\r\n\r\n")
            return self.answer("GET").status == 200
        except (OSError, AssertionError):
            return False

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.sock.close()


def chat(stream=False, max_tokens=4, content="hi", **more):
    """A body for /v1/chat/completions."""
    return {
        "model": MODEL, "stream": stream, "max_tokens": max_tokens,
        "messages": [{"role": "user", "content": content}], **more,
    }


def request(body=b"", path="/v1/chat/completions", method="POST", headers=(), version="1.1", host="x", length=True):
    """A request's bytes. `headers` are whole lines without CRLF."""
    if isinstance(body, (dict, list)):
        body = json.dumps(body)
    body = to_bytes(body)
    lines = [f"{method} {path} HTTP/{version}"]
    lines += [f"Host: {host}"] if host else []
    lines += ["Content-Type: application/json"] if body else []
    lines += [f"Content-Length: {len(body)}"] if length and (body or method == "POST") else []
    return "\r\n".join([*lines, *headers, "", ""]).encode("utf-8") + body


def chunked(body, seed=1, longest=40, extensions=True, trailers=()):
    """`body` in chunks of odd sizes, sizes written in odd ways."""
    rng, out, at = random.Random(seed), [], 0
    while at < len(body):
        piece = body[at : at + rng.randint(1, longest)]
        size = rng.choice([f"{len(piece):x}", f"{len(piece):X}", f"000{len(piece):x}"])
        extension = rng.choice(["", ";a", ";a=b", ';a="b c"; d']) if extensions else ""
        out.append(f"{size}{extension}\r\n".encode() + piece + b"\r\n")
        at += len(piece)
    tail = "".join(f"{line}\r\n" for line in trailers)
    return b"".join(out) + b"0\r\n" + tail.encode() + b"\r\n"


class Fleet:
    """A gateway and the simulated engines behind it, as one test sees them."""

    def __init__(self, gateway, engines):
        self.gateway, self.engines = gateway, engines
        self.url, self.admin = gateway.url, gateway.field("admin")

    def open(self, **options):
        return Raw(self.url, **options)

    def exchange(self, data, method="POST", **options):
        """One request on a connection of its own, and its answer."""
        with self.open(**options) as client:
            return client.send(data).answer(method)

    def states(self):
        return [get_json(f"http://{engine}/sim/state") for engine in self.engines]

    def requests(self):
        """Requests that have reached each engine."""
        return [state["requests"] for state in self.states()]

    def last(self, answer):
        """The request behind an answer, as its engine saw it, with all of its body."""
        engine = self.engine_of(answer)
        last = get_json(f"http://{engine}/sim/state")["last"]
        with urllib.request.urlopen(f"http://{engine}/sim/last-body") as raw:
            last["body"] = raw.read()
        return last

    def engine_of(self, answer):
        name = answer.header("x-fairlead-instance")
        assert name, answer
        if match := re.fullmatch(r"sim-(\d+)", name):
            return self.engines[int(match[1])]
        match = re.fullmatch(r"(?:engine|instance)-(\d+)", name)
        assert match, f"{name} is an address, or of another fleet"
        return self.engines[int(match[1]) - 1]

    def control(self, *which, **faults):
        """Sets the faults of some engines (none named: all)."""
        for index in which or range(len(self.engines)):
            data = json.dumps(faults).encode()
            urllib.request.urlopen(f"http://{self.engines[index]}/sim/control", data).read()

    def all_ready(self, seconds=10.0):
        """Waits until the gateway would send requests to every engine again."""
        wanted = f"ready: {len(self.engines)} targets"
        until(lambda: wanted in page(f"{self.admin}/readyz")[1], seconds, what=wanted)

    @contextlib.contextmanager
    def failing(self, *which, **faults):
        self.control(*which, **faults)
        try:
            yield
        finally:
            self.control()

    def in_flight(self):
        return sum(state["in_flight"] for state in self.states())

    def idle(self, seconds=5.0):
        """Waits until no engine works and nothing is reserved."""
        until(lambda: self.in_flight() == 0, seconds, what="engines free")
        until(lambda: reservations(self.admin) == 0, seconds, what="nothing reserved")

    @contextlib.contextmanager
    def nothing_arrives(self):
        """Asserts that no engine gets a request meanwhile."""
        before = self.requests()
        yield
        assert self.requests() == before, "a refused request has reached an engine"


def start_up(driver, *args, engines=2):
    return Process(
        "up", "--sim", engines, "--sim-speed", 20, "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0",
        *(("--runtime", driver) if driver == "glommio" else ("--driver", driver)), *args,
    )


@contextlib.contextmanager
def up_fleet(driver, *args):
    """`fairlead up` with two engines."""
    with start_up(driver, *args) as process:
        assert process.field("driver") == ("epoll" if driver == "epoll" else "io_uring"), process.ready
        assert process.field("runtime") == ("glommio" if driver == "glommio" else "monoio"), process.ready
        fleet = Fleet(process, process.field("engines").split(","))
        # A scheduler that has just started may not have heard of every model yet.
        until(lambda: page(f"{fleet.url}/v1/models/none")[0] == 404, 20, what="models that exist are known")
        yield fleet


@contextlib.contextmanager
def gateway_fleet(folder, driver, keys="", engines=1, sim_args=(), name="gateway"):
    """A gateway by itself: its engines stand in its configuration, and there is no scheduler."""
    with contextlib.ExitStack() as stack:
        sims = [
            stack.enter_context(Process("sim", "--listen", "127.0.0.1:0", *(sim_args or ("--speed", 20))))
            for _ in range(engines)
        ]
        config = folder / f"{name}-{driver}.yaml"
        listed = "".join(f"    - {{url: {sim.url}, models: [{MODEL}]}}\n" for sim in sims)
        config.write_text(
            f"gateway:\n  listen: 127.0.0.1:0\n  admin: 127.0.0.1:0\n  {stands_on(driver)}\n"
            f"  instances:\n{listed}{keys}"
        )
        gateway = stack.enter_context(Process("gateway", "--config", config))
        fleet = Fleet(gateway, ["%s:%d" % address(sim.url) for sim in sims])
        fleet.sims = sims
        yield fleet


def page(url):
    """Status and text of a GET, whatever the status."""
    try:
        return 200, get(url)
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()

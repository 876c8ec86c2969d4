"""Ways to the gateway and from it: load balancers that speak the PROXY protocol, IPv6, Unix sockets."""

import contextlib
import http.server
import json
import os
import re
import socket
import socketserver
import struct
import threading
import urllib.request

import pytest

from harness import Process, post_json, until
from raw import DRIVERS, MODEL, Raw, chat, request, stands_on


@pytest.fixture(params=DRIVERS)
def driver(request):
    return request.param


@contextlib.contextmanager
def gateway(folder, driver, url, keys="", listen="127.0.0.1:0"):
    config = folder / "gateway.yaml"
    config.write_text(
        f"gateway:\n  listen: '{listen}'\n  admin: 127.0.0.1:0\n  {stands_on(driver)}\n{keys}"
        f"  instances:\n    - {{url: '{url}', models: [{MODEL}]}}\n"
    )
    with Process("gateway", "--config", config) as process:
        yield process


@pytest.fixture
def sim():
    with Process("sim", "--listen", "127.0.0.1:0", "--speed", 20) as process:
        yield process


def last_headers(url):
    with urllib.request.urlopen(f"{url}/sim/state") as state:
        return {name.lower(): value for name, value in json.load(state)["last"]["headers"]}


# --- the PROXY protocol

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
FOUR = socket.inet_aton("203.0.113.7") + socket.inet_aton("10.0.0.1") + struct.pack(">HH", 5555, 80)
SIX = socket.inet_pton(socket.AF_INET6, "2001:db8::7") + bytes(16) + struct.pack(">HH", 5555, 80)


def v2(command, family, told):
    return SIGNATURE + bytes([command, family]) + struct.pack(">H", len(told)) + told


@pytest.mark.parametrize(
    "header, address",
    [
        (b"PROXY TCP4 203.0.113.7 10.0.0.1 5555 80\r\n", "203.0.113.7"),
        (b"PROXY TCP6 2001:db8::7 ::1 5555 80\r\n", "2001:db8::7"),
        (b"PROXY UNKNOWN\r\n", None),
        (v2(0x21, 0x11, FOUR), "203.0.113.7"),
        (v2(0x21, 0x21, SIX + b"\x04\0\1x"), "2001:db8::7"),
        (v2(0x20, 0, b""), None),
    ],
    ids=["v1", "v1 over IPv6", "v1 unknown", "v2", "v2 over IPv6", "v2 local"],
)
@pytest.mark.parametrize("how", ["at once", "byte by byte"])
def test_clients_behind_a_load_balancer(tmp_path, driver, sim, header, address, how):
    with gateway(tmp_path, driver, sim.url, "  proxy_protocol: true\n") as running:
        with Raw(running.url) as client:
            if how == "at once":
                client.send(header + request(chat()))
            else:
                client.drip(header).send(request(chat()))
            assert client.answer().status == 200
            assert last_headers(sim.url).get("x-forwarded-for") == address
            # The header is the connection's, not the request's.
            client.send(request(chat(), headers=["X-Forwarded-For: 198.51.100.1"]))
            assert client.answer().status == 200
        told = [value for name, value in state_headers(sim.url) if name.lower() == "x-forwarded-for"]
        assert told == ["198.51.100.1", *([address] if address else [])]


def state_headers(url):
    with urllib.request.urlopen(f"{url}/sim/state") as state:
        return json.load(state)["last"]["headers"]


@pytest.mark.parametrize("sent", [request(chat()), b"PROXY TCP4 nonsense\r\n" + request(chat()), v2(0x31, 0x11, FOUR)])
def test_who_sends_no_header_is_closed(tmp_path, driver, sim, sent):
    with gateway(tmp_path, driver, sim.url, "  proxy_protocol: true\n") as running:
        with Raw(running.url) as client:
            assert client.send(sent).closed()
        with Raw(running.url) as client:
            assert client.send(sent[:3]).half_close().closed()


def test_without_the_key_the_header_is_no_request(tmp_path, driver, sim):
    with gateway(tmp_path, driver, sim.url) as running:
        with Raw(running.url) as client:
            assert client.send(b"PROXY TCP4 203.0.113.7 10.0.0.1 5555 80\r\n" + request(chat())).answer().status >= 400


# --- IPv6


def test_ipv6_on_both_sides(tmp_path, driver):
    with Process("sim", "--listen", "[::1]:0", "--speed", 20) as sim:
        assert "[::1]" in sim.url
        with gateway(tmp_path, driver, sim.url, listen="[::1]:0") as running:
            assert "[::1]" in running.url
            for number in range(3):
                said = post_json(f"{running.url}/v1/chat/completions", chat(content=f"{number}"))
                assert said["choices"][0]["message"]["content"]
            port = int(re.search(r"\]:(\d+)", running.url)[1])
            with pytest.raises(OSError):
                socket.create_connection(("127.0.0.1", port), 1).close()


# --- Unix sockets


class LocalEngine(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, path):
        server = self
        self.heads, self.connections = [], []

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self):
                server.connections.append(self.request)
                super().setup()

            def do_POST(self):
                self.rfile.read(int(self.headers["Content-Length"]))
                server.heads.append(self.headers)
                body = b'{"object":"chat.completion","usage":{"prompt_tokens":3,"completion_tokens":1}}'
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

            def address_string(self):
                return "local"

        super().__init__(path, Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def end(self):
        """As a process that ends: what it has accepted ends too."""
        self.shutdown()
        self.server_close()
        os.unlink(self.server_address)
        for connection in self.connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


def test_an_engine_behind_a_unix_socket(tmp_path, driver):
    path = str(tmp_path / "engine.sock")
    engine = LocalEngine(path)
    with gateway(tmp_path, driver, f"unix:{path}") as running:
        with Raw(running.url) as client:
            for _ in range(5):
                answer = client.send(request(chat(content="x" * 300_000))).answer()
                assert answer.status == 200 and answer.header("x-fairlead-instance") == "instance-1"
            # A client of HTTP/1.0 that names no host.
            assert client.send(request(chat(), version="1.0", host=None)).answer().status == 200
        assert engine.heads[0]["Host"] == "x" and engine.heads[-1]["Host"] == "localhost"
        assert len(engine.connections) == 1, "connections are kept as others are"
        engine.end()
        with Raw(running.url) as client:
            until(lambda: client.send(request(chat())).answer().status in (502, 503), what="told that it is gone")
        engine = LocalEngine(path)

        def served():
            with Raw(running.url) as client:
                return client.send(request(chat())).answer().status == 200

        until(served, what="used again when it is back")
        engine.end()

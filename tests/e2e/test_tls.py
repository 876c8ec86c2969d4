"""TLS at the edge with the clients that people use, and to engines."""

import json
import signal
import socket
import ssl
import subprocess
import threading

import anthropic
import openai
import pytest
from websockets.sync.client import connect

from harness import Process, metric, reservations, run, until
from raw import DRIVERS
from seals import Authority, Engine, Gateway
from sockets import Engine as WebSocketEngine

try:
    # What the clients stand on, under the name that it has with them.
    import httpx2 as httpx
except ImportError:
    import httpx

CHAT = {"model": "m", "messages": [{"role": "user", "content": "Hello"}]}


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module", params=DRIVERS)
def simulated(request, authority):
    """A gateway with TLS before a simulated engine."""
    with Process("sim", "--listen", "127.0.0.1:0", "--speed", 50) as sim:
        with Gateway(authority, request.param, [sim.url], models=sim.field("models")) as gateway:
            gateway.model = sim.field("models")
            yield gateway
            until(lambda: reservations(gateway.admin) == 0, what="nothing reserved")


def http_client(authority):
    return httpx.Client(verify=authority.context())


def test_openai(authority, simulated):
    with http_client(authority) as http:
        client = openai.OpenAI(
            base_url=simulated.secure + "/v1", api_key="unused", max_retries=0, timeout=30, http_client=http
        )
        assert client.models.list().data[0].id == simulated.model
        messages = [{"role": "user", "content": "Hello " * 5000}]
        answer = client.chat.completions.create(model=simulated.model, messages=messages, max_tokens=8)
        assert answer.usage.completion_tokens == 8
        stream = client.chat.completions.create(model=simulated.model, messages=messages, max_tokens=40, stream=True)
        parts = [chunk.choices[0].delta.content for chunk in stream if chunk.choices]
        assert len([part for part in parts if part]) > 10
        # One that is given up in the middle is cancelled.
        stream = client.chat.completions.create(model=simulated.model, messages=messages, max_tokens=9000, stream=True)
        next(iter(stream))
        stream.close()
    until(lambda: reservations(simulated.admin) == 0, what="nothing reserved")


def test_anthropic(authority, simulated):
    with http_client(authority) as http:
        client = anthropic.Anthropic(
            base_url=simulated.secure, api_key="unused", max_retries=0, timeout=30, http_client=http
        )
        messages = [{"role": "user", "content": "Hello"}]
        answer = client.messages.create(model=simulated.model, max_tokens=9, messages=messages)
        assert answer.usage.output_tokens == 9
        with client.messages.stream(model=simulated.model, max_tokens=30, messages=messages) as stream:
            assert "".join(stream.text_stream)
            assert stream.get_final_message().usage.output_tokens == 30


@pytest.mark.parametrize("version", ["--tlsv1.3", "--tls-max 1.2"])
def test_curl(authority, simulated, version):
    body = json.dumps({**CHAT, "model": simulated.model, "max_tokens": 5})
    done = subprocess.run(
        ["curl", "-sS", "--fail", "--http1.1", "--cacert", authority.ca, *version.split(), "-H", "content-type: application/json",
         "-d", body, "-w", "\n%{http_version} %{ssl_verify_result} %{num_connects}\n",
         f"{simulated.secure}/v1/chat/completions", f"{simulated.secure}/v1/chat/completions"],
        capture_output=True, text=True, timeout=30, check=True,
    )
    answers = done.stdout.strip().split("\n")
    assert json.loads(answers[0])["usage"]["completion_tokens"] == 5
    # The second request goes over the first one's connection.
    assert answers[1].split() == ["1.1", "0", "1"] and answers[3].split() == ["1.1", "0", "0"]


def test_what_is_no_tls_is_told(simulated):
    answer = httpx.post(f"http://localhost:{simulated.port}/v1/chat/completions", json=CHAT)
    assert answer.status_code == 400 and "HTTPS" in answer.json()["error"]["message"]
    with socket.create_connection(("127.0.0.1", simulated.port)) as plain:
        plain.sendall(b"\x00" * 64)
        plain.settimeout(10)
        try:
            assert plain.recv(100)[:1] in (b"", b"\x15")
        except ConnectionResetError:
            pass


def test_a_client_that_leaves_without_a_word(authority, simulated):
    body = json.dumps({**CHAT, "model": simulated.model, "max_tokens": 9000, "stream": True}).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: t\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    raw = socket.create_connection(("127.0.0.1", simulated.port))
    sealed = authority.context().wrap_socket(raw, server_hostname="localhost")
    sealed.sendall(head % len(body) + body)
    assert b"200 OK" in sealed.recv(4096)
    # Not `unwrap`: no notice is sent.
    sealed.close()
    until(lambda: reservations(simulated.admin) == 0, what="nothing reserved")


@pytest.mark.parametrize("driver", DRIVERS)
def test_websocket(authority, driver):
    with WebSocketEngine() as engine, Gateway(authority, driver, [f"http://{engine.address}"]) as gateway:
        url = gateway.secure.replace("https", "wss") + "/v1/realtime?model=m"
        with connect(url, ssl=authority.context(), max_size=None) as client:
            for message in ["text", b"bytes", "x" * 300_000, ["in ", "three ", "parts"]]:
                client.send(message)
                assert client.recv() == (message if not isinstance(message, list) else "".join(message))
            assert client.ping().wait(10)
            for number in range(500):
                client.send(f"{number}")
                assert client.recv() == f"{number}"
        until(lambda: engine.codes, what="the engine sees the close")
        assert engine.codes[0][0] == 1000
        until(lambda: reservations(gateway.admin) == 0, what="nothing reserved")


@pytest.mark.parametrize("driver", DRIVERS)
def test_an_engine_behind_tls(authority, driver):
    keys = f"  upstream: {{tls: {{ca: {authority.ca}}}}}\n"
    with Engine(authority) as engine, Gateway(authority, driver, [engine.url], keys) as gateway:
        with http_client(authority) as http:
            for url in [gateway.url, gateway.secure]:
                client = openai.OpenAI(
                    base_url=url + "/v1", api_key="unused", max_retries=0, timeout=30, http_client=http
                )
                for length in [1, 100_000, 2_000_000]:
                    answer = client.chat.completions.create(**CHAT, max_tokens=length)
                    assert len(answer.choices[0].message.content) == length
                long = [{"role": "user", "content": "long " * 400_000}]
                assert client.chat.completions.create(model="m", messages=long).choices[0].message.content
                stream = client.chat.completions.create(**CHAT, stream=True)
                assert "".join(chunk.choices[0].delta.content for chunk in stream) == "0 1 2 3 4 "
        assert engine.requests == 10
        # Kept connections: one for each shard, or another where one had been idle for too long.
        assert engine.connections <= 6
        until(lambda: reservations(gateway.admin) == 0, what="nothing reserved")


def test_engines_that_nobody_vouches_for_get_nothing(authority):
    with Engine(authority) as engine:
        for keys, status in [("", 502), ("  upstream: {tls: {insecure_skip_verify: true}}\n", 200)]:
            with Gateway(authority, "auto", [engine.url], keys) as gateway:
                answer = httpx.post(gateway.url + "/v1/chat/completions", json=CHAT, timeout=30)
                assert answer.status_code == status, answer.text
                said = "no TLS connection to an instance" if status == 502 else "are not checked"
                until(lambda: said in "\n".join(gateway.log), what="the log says why")
        assert engine.requests == 1


def test_certificates_are_renewed(authority):
    def serial():
        with socket.create_connection(("127.0.0.1", gateway.port)) as raw:
            with authority.context().wrap_socket(raw, server_hostname="localhost") as sealed:
                return sealed.getpeercert()["serialNumber"]

    def reloads(outcome):
        return metric(gateway.admin, "fairlead_tls_reloads_total", outcome=outcome)

    with Engine(authority, secure=False) as engine, Gateway(authority, "auto", [engine.url]) as gateway:
        with httpx.Client(verify=authority.context()) as http:
            ask = lambda: http.post(gateway.secure + "/v1/chat/completions", json=CHAT).status_code
            assert ask() == 200
            first = serial()
            certificate, key = authority.issue("gateway")
            # Seen by itself, within some seconds.
            until(lambda: serial() != first, what="the new certificate is shown")
            second = serial()
            before = key.read_bytes()
            key.write_text("no key")
            until(lambda: reloads("failed") >= 1, what="the bad key is noticed")
            assert serial() == second and ask() == 200
            key.write_bytes(before)
            gateway.proc.send_signal(signal.SIGHUP)
            loaded = reloads("loaded")
            until(lambda: reloads("loaded") > loaded or loaded >= 2, what="asked for by a signal")
            assert ask() == 200
            # All of that over one connection.
            assert metric(gateway.admin, "fairlead_client_connections") >= 1


def test_certificates_of_clients(authority):
    certificate, key = authority.issue("client")
    tls = f"    client_ca: {authority.ca}\n    require_client_certificate: true\n"
    with Engine(authority, secure=False) as engine, Gateway(authority, "auto", [engine.url], tls=tls) as gateway:
        context = authority.context()
        context.load_cert_chain(certificate, key)
        assert httpx.post(gateway.secure + "/v1/chat/completions", json=CHAT, verify=context).status_code == 200
        with pytest.raises(httpx.TransportError):
            httpx.post(gateway.secure + "/v1/chat/completions", json=CHAT, verify=authority.context())
        assert metric(gateway.admin, "fairlead_tls_handshakes_total", outcome="certificate") == 1


def test_many_at_once(authority, simulated):
    errors = []

    def work():
        try:
            with http_client(authority) as http:
                for _ in range(5):
                    body = {**CHAT, "model": simulated.model, "max_tokens": 3}
                    answer = http.post(simulated.secure + "/v1/chat/completions", json=body, timeout=60)
                    assert answer.status_code == 200, answer.text
        except Exception as error:  # noqa: BLE001
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors


def test_a_session_is_resumed(authority, simulated):
    context = authority.context()
    body = json.dumps({**CHAT, "model": simulated.model, "max_tokens": 1}).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: t\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    session = None
    for number in range(3):
        raw = socket.create_connection(("127.0.0.1", simulated.port))
        with context.wrap_socket(raw, server_hostname="localhost", session=session) as sealed:
            assert sealed.version() == "TLSv1.3"
            sealed.sendall(head % len(body) + body)
            assert b"200 OK" in sealed.recv(4096)
            assert sealed.session_reused == (number > 0)
            session = sealed.session
    assert isinstance(session, ssl.SSLSession)


def test_check_reads_the_files(authority, tmp_path):
    certificate, key = authority.issue("checked")
    config = tmp_path / "gateway.yaml"

    def check(key, ca):
        config.write_text(
            f"gateway:\n  tls: {{certificate: {certificate}, key: {key}}}\n  upstream: {{tls: {{ca: {ca}}}}}\n"
        )
        return run("check", config, check=False)

    done = check(key, authority.ca)
    assert done.returncode == 0 and "tls 0.0.0.0:8443" in done.stdout
    for bad_key, bad_ca, said in [
        (authority.folder / "ca-key.pem", authority.ca, "gateway.tls"),
        (tmp_path / "none.pem", authority.ca, "none.pem"),
        (key, config, "gateway.upstream.tls"),
    ]:
        done = check(bad_key, bad_ca)
        assert done.returncode != 0 and said in done.stderr

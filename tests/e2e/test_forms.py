"""Forms of audio and files: routed by their `model` field, streamed, and the same bytes at the engine."""

import contextlib
import email
import email.policy
import http.server
import json
import socket
import subprocess
import threading

import openai
import pytest

from harness import Process, metric, reservations, until
from raw import DRIVERS, Raw, chunked, request, stands_on

BORDER = "the-border"
KIND = f"Content-Type: multipart/form-data; boundary={BORDER}"


class Engine:
    """Takes forms, and says what was in them. `early` answers before it has read the body."""

    def __init__(self, early=None, die=False):
        engine = self
        self.got, self.heads, self.received, self.go = [], [], 0, threading.Event()
        self.go.set()

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                engine.heads.append(self.headers)
                if early:
                    return self.reply(early, {"error": {"message": "early"}})
                body = b""
                try:
                    for piece in self.pieces():
                        body += piece
                        engine.received += len(piece)
                        engine.go.wait(30)
                        if die:
                            return self.connection.shutdown(socket.SHUT_RDWR)
                except (ValueError, OSError):
                    self.close_connection = True
                    return
                engine.got.append(body)
                head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
                form = email.message_from_bytes(head + body, policy=email.policy.HTTP)
                fields = {
                    part.get_param("name", header="content-disposition"): len(part.get_payload(decode=True))
                    for part in form.iter_parts()
                }
                self.reply(200, {"text": json.dumps(fields), "id": "file-1", "object": "file", "bytes": len(body)})

            def pieces(self):
                if self.headers.get("Transfer-Encoding") == "chunked":
                    while size := int(self.rfile.readline(), 16):
                        yield self.rfile.read(size)
                        self.rfile.readline()
                    self.rfile.readline()
                    return
                left = int(self.headers["Content-Length"])
                while left:
                    piece = self.rfile.read1(min(left, 65536))
                    if not piece:
                        raise ValueError("cut")
                    left -= len(piece)
                    yield piece

            def reply(self, status, body):
                body = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                if early:
                    self.send_header("Connection", "close")
                    self.close_connection = True
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_):
                pass

        self.server = Server(("127.0.0.1", 0), Handler)
        self.address = "127.0.0.1:%d" % self.server.server_port
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.go.set()
        self.server.shutdown()


@contextlib.contextmanager
def gateway(folder, driver, engines, keys=""):
    listed = "".join(f"    - {{url: 'http://{address}', models: [{models}]}}\n" for address, models in engines)
    config = folder / "gateway.yaml"
    config.write_text(
        f"gateway:\n  listen: 127.0.0.1:0\n  admin: 127.0.0.1:0\n  {stands_on(driver)}\n{keys}  instances:\n{listed}"
    )
    with Process("gateway", "--config", config) as process:
        process.admin = process.field("admin")
        yield process
        until(lambda: reservations(process.admin) == 0, what="nothing reserved")


@pytest.fixture(params=DRIVERS)
def driver(request):
    return request.param


@pytest.fixture
def pair(tmp_path, driver):
    """Engines with models `a` and `b` behind one gateway."""
    with Engine() as a, Engine() as b, gateway(tmp_path, driver, [(a.address, "a"), (b.address, "b")]) as running:
        running.a, running.b = a, b
        yield running


def form(*fields, border=BORDER):
    """The body of (name, content[, filename]) in their order."""
    out = b""
    for name, content, *filename in fields:
        file = f'; filename="{filename[0]}"' if filename else ""
        out += f'--{border}\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'.encode()
        out += (content if isinstance(content, bytes) else content.encode()) + b"\r\n"
    return out + f"--{border}--\r\n".encode()


def post(body, path="/v1/audio/transcriptions", kind=KIND, **more):
    return request(body, path, headers=[kind], **more).replace(b"Content-Type: application/json\r\n", b"", 1)


def sound(megabytes):
    return bytes(range(256)) * (4096 * megabytes)


# --- what passes


@pytest.mark.parametrize("size", [1, 30_000, 3 << 20])
@pytest.mark.parametrize("order", ["model first", "file first"])
@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_forms_go_where_their_model_is(pair, order, size, framing):
    fields = [("model", "b"), ("language", "de"), ("file", bytes(i * 7 & 255 for i in range(size)), "a.wav")]
    body = form(*(fields if order == "model first" else reversed(fields)))
    if framing == "length":
        data = post(body)
    else:
        head = post(b"", length=False).replace(b"\r\n\r\n", b"\r\nTransfer-Encoding: chunked\r\n\r\n")
        data = head + chunked(body, longest=100_000)
    with Raw(pair.url) as client:
        sending = threading.Thread(target=client.send, args=(data,))
        sending.start()
        answer = client.answer()
        sending.join()
        assert answer.status == 200 and answer.header("x-fairlead-instance"), answer
        assert client.stays_open(), "the end of the form is known"
    assert pair.b.got == [body] and pair.a.got == []
    assert json.loads(answer.json()["text"])["file"] == size
    assert (pair.b.heads[0]["Content-Length"] is None) == (pair.b.heads[0]["Transfer-Encoding"] == "chunked")


@pytest.mark.parametrize("size", [1000, 3 << 20])
def test_the_sdk_sends_audio_and_files(pair, size):
    client = openai.OpenAI(base_url=pair.url + "/v1", api_key="unused", max_retries=0, timeout=30)
    for _ in range(3):
        said = client.audio.transcriptions.create(model="b", file=("a.wav", b"\x01" * size))
        assert json.loads(said.text) == {"model": 1, "file": size}
        said = client.audio.translations.create(model="a", file=("a.wav", b"\x01" * size))
        assert json.loads(said.text)["file"] == size
    assert (len(pair.a.got), len(pair.b.got)) == (3, 3)


def test_curl_waits_to_be_told_to_go_on(pair, tmp_path):
    file = tmp_path / "a.wav"
    file.write_bytes(sound(2))
    done = subprocess.run(
        ["curl", "-sS", "-H", "Expect: 100-continue", "-F", f"file=@{file}", "-F", "model=b",
         f"{pair.url}/v1/audio/transcriptions"],
        capture_output=True, text=True, timeout=30, check=True,
    )
    assert json.loads(json.loads(done.stdout)["text"]) == {"file": 2 << 20, "model": 1}


def test_the_rest_is_streamed_and_not_held(pair):
    body = form(("model", "b"), ("file", sound(48), "a.wav"))
    pair.b.go.clear()
    before = pair.rss()
    with Raw(pair.url, timeout=1) as client:
        data, sent = post(body), 0
        with pytest.raises(TimeoutError):
            while sent < len(data):
                sent += client.sock.send(data[sent : sent + 65536])
        assert pair.b.heads, "the engine has the beginning while the client still sends"
        assert sent < 40 << 20 and pair.rss() - before < 8 << 20
        pair.b.go.set()
        client.sock.settimeout(20)
        client.send(data[sent:])
        assert client.answer().status == 200
    assert pair.b.got == [body]


def test_files_without_a_model_go_to_the_only_one(tmp_path, driver):
    with Engine() as engine, gateway(tmp_path, driver, [(engine.address, "a")]) as running:
        client = openai.OpenAI(base_url=running.url + "/v1", api_key="unused", max_retries=0, timeout=30)
        file = client.files.create(file=("lines.jsonl", b"{}\n" * 400_000), purpose="batch")
        assert file.id == "file-1" and len(engine.got[0]) > 1_200_000


# --- what is refused


@pytest.mark.parametrize(
    "body, kind, status, says",
    [
        (form(("model", "none")), KIND, 404, "none"),
        (form(("file", "x", "x")), KIND, 400, "no field `model`"),
        (form(("model", "")), KIND, 400, "no field `model`"),
        (b"", KIND, 400, "no end"),
        (b'{"model":"a"}', KIND, 400, "no end"),
        (form(("model", "a")), "Content-Type: multipart/form-data", 400, "boundary"),
        (form(("model", "m" * 3000)), KIND, 400, "too long"),
        (form(("model", b"\xff")), KIND, 400, "UTF-8"),
    ],
)
def test_forms_that_lead_nowhere(pair, body, kind, status, says):
    with Raw(pair.url) as client:
        answer = client.send(post(body, kind=kind)).answer()
    assert answer.status == status and says in answer.error()["message"], answer
    assert pair.a.heads == [] and pair.b.heads == []


def test_a_model_behind_too_large_a_file(tmp_path, driver):
    with Engine() as engine:
        with gateway(tmp_path, driver, [(engine.address, "a, b")], "  max_form_held: 1MiB\n") as running:
            with Raw(running.url) as client:
                sending = threading.Thread(
                    target=lambda: contextlib.suppress(OSError).__enter__()
                    or client.send(post(form(("file", sound(3), "x"), ("model", "a"))))
                )
                sending.start()
                answer = client.answer()
                sending.join()
            assert answer.status == 400 and "put that field before the file" in answer.error()["message"]
        assert engine.heads == []


def test_a_form_larger_than_bodies_may_be(tmp_path, driver):
    with Engine() as engine, gateway(tmp_path, driver, [(engine.address, "a")], "  max_body: 1MiB\n") as running:
        with Raw(running.url) as client:
            head = post(b"", length=False).replace(b"\r\n\r\n", b"\r\nContent-Length: 2000000\r\n\r\n")
            assert client.send(head).answer().status == 413
        with Raw(running.url) as client:
            head = post(b"", length=False).replace(b"\r\n\r\n", b"\r\nTransfer-Encoding: chunked\r\n\r\n")
            client.send(head + b"60000\r\n" + form(("model", "a"), ("file", sound(1), "x"))[:0x60000] + b"\r\n")
            until(lambda: engine.heads, what="the engine has the beginning")
            client.send(b"ffffff\r\n")
            assert client.answer().status == 413 and client.closed()


# --- what breaks


def test_an_engine_that_is_not_there_is_replaced(tmp_path, driver):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = "127.0.0.1:%d" % free.getsockname()[1]
    with Engine() as engine, gateway(tmp_path, driver, [(nobody, "a"), (engine.address, "a, b")]) as running:
        body = form(("model", "a"), ("file", sound(2), "x"))
        for _ in range(4):
            with Raw(running.url) as client:
                assert client.send(post(body)).answer().status == 200
        assert engine.got == [body] * 4


@pytest.mark.parametrize("large", [False, True])
def test_an_engine_that_dies_in_the_middle(tmp_path, driver, large):
    body = form(("model", "a"), ("file", sound(4) if large else b"x", "x"))
    with Engine(die=True) as dying, Engine() as good:
        with gateway(tmp_path, driver, [(dying.address, "a"), (good.address, "a, b")]) as running:
            statuses = []
            for _ in range(6):
                with Raw(running.url) as client:
                    sending = threading.Thread(target=lambda: send_all(client, post(body)))
                    sending.start()
                    statuses.append(client.answer().status)
                    sending.join()
            # What has left the client's hands cannot be sent again; what is held can.
            assert dying.heads and set(statuses) <= ({200, 502} if large else {200}), statuses


def send_all(client, data):
    with contextlib.suppress(OSError):
        client.send(data)


def test_an_answer_before_the_end_is_passed_on(tmp_path, driver):
    with Engine(early=413) as engine, gateway(tmp_path, driver, [(engine.address, "a")]) as running:
        with Raw(running.url) as client:
            head = post(b"", length=False).replace(b"\r\n\r\n", b"\r\nContent-Length: 20000000\r\n\r\n")
            client.send(head + form(("model", "a"), ("file", sound(1), "x"))[:500_000])
            answer = client.answer()
            assert answer.status == 413 and answer.header("connection") == "close"
            assert answer.error()["message"] == "early"


@pytest.mark.parametrize("how", ["close", "reset", "half close"])
def test_a_client_that_leaves_in_the_middle(pair, how):
    with Raw(pair.url) as client:
        head = post(b"", length=False).replace(b"\r\n\r\n", b"\r\nContent-Length: 20000000\r\n\r\n")
        client.send(head + form(("model", "b"), ("file", sound(1), "x"))[:500_000])
        until(lambda: pair.b.received > 400_000, what="the engine has the beginning")
        assert reservations(pair.admin) > 0
        {"close": client.close, "reset": client.reset, "half close": client.half_close}[how]()
        until(lambda: reservations(pair.admin) == 0, 5, what="cancelled at once")
    until(lambda: (metric(pair.admin, "fairlead_requests_total", code="499") or 0) == 1, what="counted as left")
    assert pair.b.got == []


def test_a_form_that_is_too_slow(tmp_path, driver):
    with Engine() as engine, gateway(tmp_path, driver, [(engine.address, "a")], "  timeouts: {body: 1s}\n") as running:
        for part in (20, 200_000):
            with Raw(running.url) as client:
                head = post(b"", length=False).replace(b"\r\n\r\n", b"\r\nContent-Length: 20000000\r\n\r\n")
                client.send(head + form(("model", "a"), ("file", sound(1), "x"))[:part])
                assert client.answer().status == 408 and client.closed()

"""Certificates, and an engine behind Python's own TLS."""

import http.server
import json
import pathlib
import socket
import ssl
import subprocess
import threading

from harness import Process


def openssl(*args):
    subprocess.run(["openssl", *map(str, args)], check=True, capture_output=True)


class Authority:
    """An authority of one's own, and what it signs."""

    def __init__(self, folder):
        self.folder = pathlib.Path(folder)
        self.ca = self.folder / "ca.pem"
        openssl(
            "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
            "-subj", "/CN=test authority", "-addext", "basicConstraints=critical,CA:TRUE",
            "-addext", "keyUsage=critical,keyCertSign,cRLSign", "-keyout", self.folder / "ca-key.pem", "-out", self.ca,
        )

    def issue(self, name):
        """`NAME.pem` and `NAME-key.pem` for localhost."""
        key, request, certificate = (self.folder / f"{name}{end}" for end in ("-key.pem", ".csr", ".pem"))
        extensions = self.folder / "extensions"
        extensions.write_text(
            "subjectAltName=DNS:localhost,IP:127.0.0.1\nextendedKeyUsage=serverAuth,clientAuth\n"
            "basicConstraints=CA:FALSE\nkeyUsage=digitalSignature\n"
            "subjectKeyIdentifier=hash\nauthorityKeyIdentifier=keyid\n"
        )
        openssl(
            "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", f"/CN={name}",
            "-keyout", self.folder / f"{name}-key.new", "-out", request,
        )
        openssl(
            "x509", "-req", "-in", request, "-CA", self.ca, "-CAkey", self.folder / "ca-key.pem", "-days", "2",
            "-extfile", extensions, "-out", self.folder / f"{name}.new",
        )
        (self.folder / f"{name}-key.new").rename(key)
        (self.folder / f"{name}.new").rename(certificate)
        return certificate, key

    def context(self):
        """What a client trusts."""
        return ssl.create_default_context(cafile=self.ca)


class Gateway(Process):
    """A gateway with a TLS port before instances that all serve the model `m`, or what `models` says."""

    def __init__(self, authority, driver, instances, keys="", tls="", models="m"):
        authority.issue("gateway")
        listed = "".join(f"    - {{url: '{url}', models: [{models}]}}\n" for url in instances)
        config = authority.folder / "gateway.yaml"
        config.write_text(
            f"gateway:\n  listen: 127.0.0.1:0\n  admin: 127.0.0.1:0\n  driver: {driver}\n  tls:\n    listen: 127.0.0.1:0\n"
            f"    certificate: {authority.folder}/gateway.pem\n    key: {authority.folder}/gateway-key.pem\n{tls}{keys}"
            f"  instances:\n{listed}"
        )
        super().__init__("gateway", "--config", config)

    @property
    def admin(self):
        return self.field("admin")

    @property
    def secure(self):
        """The TLS port's URL, by the name in the certificate."""
        return "https://localhost:" + self.ready.split("https://", 1)[1].split()[0].rsplit(":", 1)[1]

    @property
    def port(self):
        return int(self.secure.rsplit(":", 1)[1])


class Engine:
    """An engine of few words, by default behind TLS."""

    def __init__(self, authority, secure=True):
        self.connections, self.requests = 0, 0
        engine = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                engine.requests += 1
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                if body.get("stream"):
                    self.send_response(200)
                    self.send_header("content-type", "text/event-stream")
                    self.send_header("transfer-encoding", "chunked")
                    self.end_headers()
                    for number in range(5):
                        event = b'data: {"choices":[{"index":0,"delta":{"content":"%d "}}]}\n\n' % number
                        self.wfile.write(b"%x\r\n%s\r\n" % (len(event), event))
                    self.wfile.write(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")
                    return
                text = "x" * int(body.get("max_tokens") or 1)
                choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
                answer = json.dumps({"id": "1", "object": "chat.completion", "model": "m", "choices": [choice]}).encode()
                self.send_response(200)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_):
                pass

        class Server(http.server.ThreadingHTTPServer):
            daemon_threads = True

            def finish_request(self, request, address):
                engine.connections += 1
                if secure:
                    request = engine.context.wrap_socket(request, server_side=True)
                request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                super().finish_request(request, address)

            def handle_error(self, *_):
                pass

        self.server = Server(("127.0.0.1", 0), Handler)
        if secure:
            self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self.context.load_cert_chain(*authority.issue("engine"))
        self.url = f"{'https' if secure else 'http'}://localhost:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.server.shutdown()

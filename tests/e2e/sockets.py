"""Engines that speak WebSocket, and a gateway before them."""

import contextlib
import re
import socket
import threading
import urllib.parse

from websockets.exceptions import ConnectionClosed
from websockets.sync.server import serve
from websockets.utils import accept_key

from harness import Process, metric, reservations, until
from raw import stands_on


def ws(url, **query):
    return url.replace("http", "ws", 1) + "/v1/realtime" + ("?" + urllib.parse.urlencode(query) if query else "")


class Engine:
    """A WebSocket server that records what reaches it. `act` serves a connection."""

    def __init__(self, act=None, **options):
        self.heads, self.got, self.codes = [], [], []
        self.sent, self.go = 0, threading.Event()
        self.act = act or type(self).echo
        self.server = serve(self._serve, "127.0.0.1", 0, max_size=None, **options)
        self.address = "127.0.0.1:%d" % self.server.socket.getsockname()[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def _serve(self, connection):
        self.heads.append(connection.request)
        try:
            self.act(self, connection)
        except ConnectionClosed:
            pass
        finally:
            connection.close()
            self.codes.append((connection.close_code, connection.close_reason))

    def echo(self, connection):
        for message in connection:
            self.got.append(message)
            connection.send(message)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.server.shutdown()


class Gateway(Process):
    """A gateway over instances that each serve models of their own."""

    def __init__(self, folder, driver, engines, keys=""):
        listed = "".join(
            f"    - {{url: 'http://{address}', models: [{models}]}}\n" for address, models in engines
        )
        config = folder / "gateway.yaml"
        config.write_text(
            f"gateway:\n  listen: 127.0.0.1:0\n  admin: 127.0.0.1:0\n  {stands_on(driver)}\n{keys}  instances:\n{listed}"
        )
        super().__init__("gateway", "--config", config)

    @property
    def admin(self):
        return self.field("admin")

    def idle(self):
        until(lambda: reservations(self.admin) == 0, what="nothing reserved")

    def ended(self, code):
        return metric(self.admin, "fairlead_requests_total", code=str(code)) or 0


class RawEngine:
    """Answers handshakes by hand and then does what the test says with the socket."""

    def __init__(self, act):
        self.act, self.begun, self.ended = act, threading.Event(), threading.Event()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = "127.0.0.1:%d" % self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                threading.Thread(target=self._serve, args=(self.listener.accept()[0],), daemon=True).start()

    def _serve(self, sock):
        head = b""
        while b"\r\n\r\n" not in head:
            head += sock.recv(65536)
        self.begun.set()
        key = re.search(rb"(?i)sec-websocket-key: (\S+)", head)[1].decode()
        sock.sendall(
            f"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Accept: {accept_key(key)}\r\n\r\n".encode()
        )
        self.act(sock)
        sock.close()
        self.ended.set()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.listener.close()

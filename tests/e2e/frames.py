"""A client of HTTP/2 that sends frames as the test says, well-formed or not."""

import json
import socket
import struct
import time

import h2.config
import h2.connection
import h2.errors
import h2.events
import hpack

from raw import address

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST, SETTINGS, PUSH, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, ACK, END_HEADERS, PADDED = 1, 1, 4, 8
NO_ERROR, PROTOCOL_ERROR, INTERNAL_ERROR, FLOW_CONTROL_ERROR = 0, 1, 2, 3
STREAM_CLOSED, FRAME_SIZE_ERROR, REFUSED_STREAM, CANCEL = 5, 6, 7, 8
COMPRESSION_ERROR, ENHANCE_YOUR_CALM = 9, 11


def frame(kind, flags=0, stream=0, payload=b""):
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def number(value):
    return struct.pack(">I", value)


class Frames:
    """One connection, frame by frame. What it reads it keeps: (kind, flags, stream, payload)."""

    def __init__(self, where, preface=PREFACE + frame(SETTINGS), receive_buffer=None, tls=None):
        self.sock = socket.socket()
        if receive_buffer:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.sock.settimeout(15)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock.connect(address(where) if isinstance(where, str) else where)
        if tls:
            tls.set_alpn_protocols(["h2"])
            self.sock = tls.wrap_socket(self.sock, server_hostname="localhost")
            assert self.sock.selected_alpn_protocol() == "h2"
        self.encoder, self.decoder, self.buf = hpack.Encoder(), hpack.Decoder(), b""
        self.next = 1
        self.send(preface)

    def send(self, *parts):
        """False: the other side has closed."""
        try:
            self.sock.sendall(b"".join(parts))
            return True
        except OSError:
            return False

    def stream(self):
        self.next += 2
        return self.next - 2

    def fields(self, *more, path="/v1/chat/completions", method="POST", **pseudo):
        first = {":method": method, ":scheme": "http", ":authority": "t", ":path": path, **pseudo}
        return self.encoder.encode([(k, v) for k, v in first.items() if v is not None] + list(more))

    def ask(self, body, *more, stream=None, end=True, **pseudo):
        """Sends a whole request; its stream."""
        stream = stream or self.stream()
        body = json.dumps(body).encode() if isinstance(body, dict) else body
        head = self.fields(*more, **pseudo)
        data = frame(DATA, END_STREAM if end else 0, stream, body) if body else b""
        self.send(frame(HEADERS, END_HEADERS | (0 if data or not end else END_STREAM), stream, head), data)
        return stream

    def read(self):
        """The next frame, or None at the end. Pings and settings of the other side are answered."""
        while True:
            if len(self.buf) >= 9:
                length = int.from_bytes(self.buf[:3], "big")
                if len(self.buf) >= 9 + length:
                    kind, flags = self.buf[3], self.buf[4]
                    stream = int.from_bytes(self.buf[5:9], "big") & 0x7FFFFFFF
                    payload, self.buf = self.buf[9 : 9 + length], self.buf[9 + length :]
                    if kind == SETTINGS and not flags & ACK:
                        self.send(frame(SETTINGS, ACK))
                    if kind == PING and not flags & ACK:
                        self.send(frame(PING, ACK, 0, payload))
                    if kind == HEADERS:
                        payload = self.decoder.decode(payload)
                    return kind, flags, stream, payload
            try:
                more = self.sock.recv(65536)
            except ConnectionResetError:
                return None
            if not more:
                return None
            self.buf += more

    def until(self, kind, stream=None):
        """The next frame of that kind; None if the connection ends before."""
        while (got := self.read()) is not None:
            if got[0] == kind and stream in (None, got[2]):
                return got
        return None

    def answer(self, stream):
        """(status or None, body, error code or None) of a stream; windows are opened as it comes."""
        status, body = None, b""
        while (got := self.read()) is not None:
            kind, flags, of, payload = got
            if kind == GOAWAY and int.from_bytes(payload[4:8], "big"):
                return status, body, int.from_bytes(payload[4:8], "big")
            if of != stream:
                continue
            if kind == RST:
                return status, body, int.from_bytes(payload, "big")
            if kind == HEADERS:
                status = int(dict(payload)[":status"])
            if kind == DATA:
                body += payload
                if payload:
                    self.send(
                        frame(WINDOW_UPDATE, 0, 0, number(len(payload))),
                        frame(WINDOW_UPDATE, 0, stream, number(len(payload))),
                    )
            if flags & END_STREAM and kind in (HEADERS, DATA):
                return status, body, None
        return status, body, "closed"

    def goaway(self):
        """Error code of the GOAWAY that ends the connection; None when it ends without."""
        code = None
        while (got := self.until(GOAWAY)) is not None:
            code = int.from_bytes(got[3][4:8], "big")
            if code:
                return code
        return code

    def lives(self):
        """Whether a further request is answered."""
        return self.answer(self.ask(b"", path="/healthz", method="GET"))[0] == 200

    def close(self):
        self.sock.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def flood(connection, make, seconds=3.0, most=2_000_000):
    """Sends what `make(n)` gives until the other side closes, or the time is over. Whether it closed."""
    end = time.monotonic() + seconds
    connection.sock.settimeout(1)
    count = 0
    while time.monotonic() < end and count < most:
        if not connection.send(*(make(n) for n in range(count, count + 100))):
            return True
        count += 100
    return False


class Wellbehaved:
    """The `h2` package as a client: what a strict implementation makes of the gateway's frames."""

    def __init__(self, where):
        self.sock = socket.create_connection(address(where), timeout=15)
        config = h2.config.H2Configuration(client_side=True, header_encoding="utf-8")
        self.h2 = h2.connection.H2Connection(config)
        self.h2.initiate_connection()
        self.flush()

    def flush(self):
        self.sock.sendall(self.h2.data_to_send())

    def ask(self, body, path="/v1/chat/completions", method="POST"):
        stream = self.h2.get_next_available_stream_id()
        body = json.dumps(body).encode() if body else b""
        fields = [(":method", method), (":scheme", "http"), (":authority", "t"), (":path", path)]
        if body:
            fields += [("content-type", "application/json"), ("content-length", str(len(body)))]
        self.h2.send_headers(stream, fields, end_stream=not body)
        self.flush()
        self.body = (stream, body)
        self.push()
        return stream

    def push(self):
        stream, body = self.body
        while body:
            room = min(self.h2.local_flow_control_window(stream), self.h2.max_outbound_frame_size, len(body))
            if not room:
                break
            self.h2.send_data(stream, body[:room], end_stream=room == len(body))
            body = body[room:]
        self.body = (stream, body)
        self.flush()

    def events(self):
        """Events as they come; windows are opened at once."""
        while data := self.sock.recv(65536):
            for event in self.h2.receive_data(data):
                if isinstance(event, h2.events.DataReceived) and event.flow_controlled_length:
                    self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                yield event
            self.push()

    def answers(self, *streams):
        """{stream: (status, body)} of all of them."""
        got, open_ = {stream: [None, b""] for stream in streams}, set(streams)
        for event in self.events():
            if isinstance(event, h2.events.ResponseReceived):
                got[event.stream_id][0] = int(dict(event.headers)[":status"])
            elif isinstance(event, h2.events.DataReceived):
                got[event.stream_id][1] += event.data
            elif isinstance(event, h2.events.StreamEnded):
                open_.discard(event.stream_id)
            assert not isinstance(event, (h2.events.StreamReset, h2.events.ConnectionTerminated)), event
            if not open_:
                return {stream: tuple(answer) for stream, answer in got.items()}
        raise AssertionError("the connection ended")

    def close(self):
        self.sock.close()

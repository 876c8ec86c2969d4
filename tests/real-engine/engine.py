"""The real engine as a process, and what its event stream says it holds."""

import collections
import json
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request

import msgspec
import zmq

NAME = "tiny"
PAGE = 32  # the CPU attention backend takes no smaller one
PATIENCE = 900  # seconds that a start may take; 25 on an idle machine with two cores


def free_ports(n):
    """Adjacent TCP ports that nothing uses now, and that nobody is given unasked later."""
    while True:
        start = random.randrange(20000, 32000 - n)
        held = [socket.socket() for _ in range(n)]
        try:
            for i, s in enumerate(held):
                s.bind(("127.0.0.1", start + i))
            return [start + i for i in range(n)]
        except OSError:
            continue
        finally:
            for s in held:
                s.close()


class Engine:
    """One vLLM server on fixed ports, so that it comes back where it was."""

    def __init__(self, model, log):
        self.model = str(model)
        self.log = pathlib.Path(log)
        self.port, self.events, self.replay, self.side_channel = free_ports(4)
        self.url = f"http://127.0.0.1:{self.port}"
        self.proc = None
        self.ready_after = None

    def start(self, blocks, max_len, connector=None):
        """Starts with a KV cache of `blocks` pages, one of which the engine keeps for itself; with a KV connector, it
        can hand its cache over to another engine and take over another's."""
        events = {
            "enable_kv_cache_events": True,
            "publisher": "zmq",
            "endpoint": f"tcp://*:{self.events}",
            "replay_endpoint": f"tcp://127.0.0.1:{self.replay}",
            "topic": f"kv@127.0.0.1:{self.port}@{NAME}",
        }
        args = [
            # The package installs no command of its own that works: that one looks for another distribution's name.
            sys.executable, "-m", "vllm.entrypoints.openai.api_server",
            "--model", self.model, "--served-model-name", NAME, "--host", "127.0.0.1", "--port", str(self.port),
            "--dtype", "bfloat16", "--enforce-eager", "--max-model-len", str(max_len), "--max-num-seqs", "32",
            "--enable-prefix-caching", "--block-size", str(PAGE), "--num-gpu-blocks-override", str(blocks),
            "--enable-prompt-tokens-details", "--kv-events-config", json.dumps(events),
        ]  # fmt: skip
        several = {}
        if connector:
            transfer = {"kv_connector": connector, "kv_role": "kv_both", "kv_buffer_device": "cpu"}
            args += ["--kv-transfer-config", json.dumps(transfer)]
            # Engines that are bound to the same cores wait for each other.
            several = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
        env = {
            **os.environ,
            "VLLM_NIXL_SIDE_CHANNEL_HOST": "127.0.0.1",
            "VLLM_NIXL_SIDE_CHANNEL_PORT": str(self.side_channel),
            "UCX_TLS": "tcp,sm,self",
            "UCX_NET_DEVICES": "lo",
            **several,
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_SERVER_DEV_MODE": "1",  # has /reset_prefix_cache
            "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1",
            "HF_HUB_OFFLINE": "1",
        }
        started = time.monotonic()
        with self.log.open("a") as log:
            self.proc = subprocess.Popen(args, stdout=log, stderr=log, env=env, start_new_session=True)
        while time.monotonic() - started < PATIENCE:
            if self.proc.poll() is not None:
                break
            try:
                if self.call("GET", "/health")[0] == 200:
                    self.ready_after = time.monotonic() - started
                    return self
            except OSError:
                time.sleep(0.2)
        self.kill()
        raise AssertionError("the engine did not start:\n" + "\n".join(self.log.read_text().splitlines()[-40:]))

    def kill(self):
        """kill -9, with all processes it made."""
        if self.proc is not None:
            try:
                os.killpg(self.proc.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            self.proc.wait()
            self.proc = None

    def call(self, method, path, body=None, timeout=60.0):
        """(status, parsed body or text)"""
        return call(self.url, method, path, body, timeout)


def call(url, method, path, body=None, timeout=60.0):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url + path, data, {"content-type": "application/json"}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            status, text = answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        status, text = error.code, error.read().decode()
    try:
        return status, json.loads(text)
    except ValueError:
        return status, text


class Mirror:
    """What an engine's events say that it holds; written as plainly as possible, to compare with.

    vLLM keeps several copies of a page when it computed the same one more than once, and tells of the end of each.
    """

    def __init__(self, engine):
        self.lock = threading.Lock()
        self.copies = collections.Counter()  # engine's hash -> copies
        self.pages = {}  # engine's hash -> our name: (salt, all tokens up to here)
        self.next = 0  # sequence
        self.removed = self.stored = self.cleared = 0
        self.closed = False
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.SUB)
        self.socket.setsockopt(zmq.RCVHWM, 0)
        self.socket.connect(f"tcp://127.0.0.1:{engine.events}")
        self.socket.setsockopt(zmq.SUBSCRIBE, b"")
        self.replay = self.context.socket(zmq.DEALER)
        self.replay.connect(f"tcp://127.0.0.1:{engine.replay}")
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self):
        poller = zmq.Poller()
        poller.register(self.socket, zmq.POLLIN)
        poller.register(self.replay, zmq.POLLIN)
        # The subscription takes effect some time after the call; what came before that is asked for.
        asked = 0.0
        while not self.closed:
            if time.monotonic() - asked > 0.5:
                self.replay.send_multipart([b"", self.next.to_bytes(8, "big")])
                asked = time.monotonic()
            for socket_, _ in poller.poll(100):
                frames = socket_.recv_multipart()
                if frames[-1] and int.from_bytes(frames[-2], "big") == self.next:
                    self._apply(msgspec.msgpack.decode(frames[-1])[1])
                    self.next += 1
        self.socket.close(0)
        self.replay.close(0)
        self.context.term()

    def _apply(self, events):
        with self.lock:
            for event in events:
                if event["type"] == "BlockStored":
                    self._store(event)
                elif event["type"] == "BlockRemoved":
                    for name in event["block_hashes"]:
                        self.copies[name] -= 1
                        self.removed += 1
                        assert self.copies[name] >= 0, "removed more often than stored"
                elif event["type"] == "AllBlocksCleared":
                    self.copies.clear()
                    self.cleared += 1

    def _store(self, event):
        above = event["parent_block_hash"]
        if above is None:
            keys = (event.get("extra_keys") or [None])[0]
            path = (tuple(keys or ()), ())
        else:
            path = self.pages[above]
        for i, name in enumerate(event["block_hashes"]):
            tokens = tuple(event["token_ids"][i * PAGE : (i + 1) * PAGE])
            path = (path[0], path[1] + tokens)
            self.pages[name] = path
            self.copies[name] += 1
            self.stored += 1

    def held(self):
        """Names of the pages that are there."""
        with self.lock:
            return {self.pages[name] for name, copies in self.copies.items() if copies}

    def cached(self, tokens, salt=None):
        """Tokens of a prompt that the engine would not compute again: whole pages, never the last token's."""
        held = self.held()
        keys = (salt,) if salt else ()
        pages = 0
        while (pages + 1) * PAGE < len(tokens) and (keys, tuple(tokens[: (pages + 1) * PAGE])) in held:
            pages += 1
        return pages * PAGE

    def has(self, tokens, salt=None):
        """Whether every whole page of the tokens is there."""
        held = self.held()
        keys = (salt,) if salt else ()
        return all((keys, tuple(tokens[:end])) in held for end in range(PAGE, len(tokens) + 1, PAGE))

    def close(self):
        self.closed = True
        self.thread.join()

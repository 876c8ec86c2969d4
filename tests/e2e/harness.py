"""Starts the real binary, reads its ready lines, and takes it down again."""

import json
import os
import pathlib
import re
import signal
import subprocess
import threading
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
BIN = os.environ.get("FAIRLEAD_BIN", str(ROOT / "target/release/fairlead"))


class Process:
    """One `fairlead` process. `ready` is its ready line; logs are kept for failures."""

    def __init__(self, *args, env=None, wait=30.0):
        self.args = [BIN, *map(str, args)]
        self.log = []
        self.ready = None
        self._ready_event = threading.Event()
        self.started = time.monotonic()
        self.proc = subprocess.Popen(
            self.args,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **(env or {})},
        )
        self._threads = [
            threading.Thread(target=self._read, args=(self.proc.stdout, True), daemon=True),
            threading.Thread(target=self._read, args=(self.proc.stderr, False), daemon=True),
        ]
        for thread in self._threads:
            thread.start()
        if wait:
            self.wait_ready(wait)

    def _read(self, stream, is_stdout):
        for line in stream:
            self.log.append(line.rstrip("\n"))
            if is_stdout and line.startswith("ready:") and self.ready is None:
                self.ready = line.strip()
                self.ready_after = time.monotonic() - self.started
                self._ready_event.set()
        if is_stdout:
            self._ready_event.set()

    def wait_ready(self, seconds=30.0):
        self._ready_event.wait(seconds)
        if self.ready is None:
            self.kill()
            raise AssertionError(f"{self.args} printed no ready line:\n" + "\n".join(self.log[-40:]))
        return self.ready

    @property
    def url(self):
        """The first URL of the ready line."""
        return re.search(r"https?://[^\s,;]+", self.ready)[0]

    def field(self, name):
        """A `name=value` of the ready line."""
        found = re.search(rf"\b{name}=(\S+)", self.ready)
        assert found, f"no {name}= in {self.ready!r}"
        return found[1]

    @property
    def pid(self):
        return self.proc.pid

    def rss(self):
        """Resident bytes."""
        for line in pathlib.Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        return 0

    def cpu_seconds(self):
        """User and system time so far."""
        fields = pathlib.Path(f"/proc/{self.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def kill(self):
        """kill -9."""
        if self.proc.poll() is None:
            self.proc.send_signal(signal.SIGKILL)
        self.proc.wait()

    def stop(self, seconds=15.0):
        """Ctrl-C, and the exit status."""
        if self.proc.poll() is None:
            self.proc.send_signal(signal.SIGINT)
        try:
            return self.proc.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"{self.args} did not stop in {seconds} s:\n" + "\n".join(self.log[-40:]))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill()


def run(*args, check=True, timeout=120, env=None):
    """Runs a subcommand to its end."""
    done = subprocess.run(
        [BIN, *map(str, args)], capture_output=True, text=True, timeout=timeout, env={**os.environ, **(env or {})}
    )
    if check and done.returncode != 0:
        raise AssertionError(f"{args}: exit {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    return done


def get(url, timeout=5.0):
    with urllib.request.urlopen(url, timeout=timeout) as answer:
        return answer.read().decode()


def get_json(url, timeout=5.0):
    return json.loads(get(url, timeout))


def post_json(url, body, timeout=30.0, headers=None):
    request = urllib.request.Request(
        url, json.dumps(body).encode(), {"content-type": "application/json", **(headers or {})}
    )
    with urllib.request.urlopen(request, timeout=timeout) as answer:
        return json.loads(answer.read())


def metric(admin, name, **labels):
    """Sum of a metric's samples that carry the given labels."""
    total, seen = 0.0, False
    for line in get(f"{admin}/metrics").splitlines():
        match = re.match(rf"^{re.escape(name)}(?:\{{(.*)\}})? (\S+)", line)
        if match:
            have = dict(re.findall(r'(\w+)="([^"]*)"', match[1] or ""))
            if all(have.get(k) == v for k, v in labels.items()):
                total, seen = total + float(match[2]), True
    return total if seen else None


def until(condition, seconds=10.0, every=0.02, what="condition"):
    """Polls until the condition holds and returns its value."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not hold within {seconds} s (last: {value!r})")
        time.sleep(every)


def reservations(admin):
    """Everything that the gateway holds reserved, over all targets and kinds."""
    return metric(admin, "fairlead_reservations") or 0.0

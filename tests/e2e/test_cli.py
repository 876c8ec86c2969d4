"""The command line: help, mistakes and what is said about them, starting, waiting, ending."""

import contextlib
import json
import re
import signal
import socket
import time

import pytest

from cluster import free_udp_port
from harness import Process, get, post_json, run, until
from raw import MODEL, Raw, chat, request

FLAGS = {
    "up": "--sim --engine --listen --admin --policy --shards --driver --runtime --base-path --sim-speed --sim-model --sim-profile",
    "gateway": "--config --runtime",
    "scheduler": "--config",
    "agent": "--engine --scheduler --identity --advertise --listen --name --config",
    "sim": "--listen --engine --profile --model --speed --block-size --kv-blocks --faults --startup",
    "load": "--url --concurrency --rate --duration --requests --conversations --turns --json --fail-on-error",
    "check": "CONFIG",
    "certs": "--out --gateway --agent",
    "status": "--scheduler --json",
}


@pytest.mark.parametrize("command", FLAGS)
def test_help_teaches_every_flag(command):
    text = run(command, "--help").stdout
    for flag in [*FLAGS[command].split(), "--log"]:
        assert flag in text, f"{flag} is not in the help of {command}"
    # Every flag says what it does.
    for flag, rest in re.findall(r"^ +(--[a-z-]+)([^\n]*(?:\n {10,}[^\n]*)*)", text, re.M):
        assert len(re.sub(r"<[^>]*>", "", rest).split()) >= 2, f"{command} {flag} is not explained"


def test_the_overview_names_every_command():
    text = run("--help").stdout
    assert all(re.search(rf"^  {command} ", text, re.M) for command in FLAGS)
    assert re.match(r"fairlead \d+\.\d+\.\d+", run("--version").stdout)
    assert run(check=False).returncode == 2


# name: (configuration, what the message must hold)
WRONG = {
    "policy": ("gateway:\n  policy: nope\n", ["gateway.policy", '"nope"', "prefix-cache", "least-request"]),
    "unknown key": ("gateway:\n  polcy: random\n", ["gateway.polcy", "policy"]),
    "unknown section": ("gatway: {}\n", ["gatway", "gateway"]),
    "duration in words": ("gateway:\n  timeouts: {head: soon}\n", ["gateway.timeouts.head", '"soon"', "10s"]),
    "duration too short": ("gateway:\n  timeouts: {head: 5}\n", ["gateway.timeouts.head", "5ms", "10ms", "1h"]),
    "negative duration": ("gateway:\n  stale_after: -5s\n", ["gateway.stale_after", "-5s"]),
    "size": ("gateway:\n  max_body: 1\n", ["gateway.max_body", "1", "1KiB", "16GiB"]),
    "size in words": ("gateway:\n  max_head: big\n", ["gateway.max_head", '"big"', "64KiB"]),
    "address": ("gateway:\n  listen: nowhere\n", ["gateway.listen", '"nowhere"', "IP:PORT"]),
    "shards": ("gateway:\n  shards: 0\n", ["gateway.shards", "0", "auto"]),
    "runtime": ("gateway:\n  runtime: tokio\n", ["gateway.runtime", "tokio", "monoio", "glommio"]),
    "driver": ("gateway:\n  driver: kqueue\n", ["gateway.driver", "kqueue", "uring", "epoll"]),
    "base path": ("gateway:\n  base_path: a/\n", ["gateway.base_path", '"a/"']),
    "boolean": ("gateway:\n  allow_steering: perhaps\n", ["gateway.allow_steering", "perhaps", "true"]),
    "instance without URL": ("gateway:\n  instances: [{name: a}]\n", ["gateway.instances[0].url"]),
    "second instance": (
        "gateway:\n  instances:\n    - {url: 'http://a:1', models: [m]}\n    - {url: 'ftp://a', models: [m]}\n",
        ["gateway.instances[1].url", "ftp://a", "http://"]),
    "section is a number": ("gateway: 5\n", ["gateway", "5", "listen"]),
    "no YAML": ("gateway: [\n", ["YAML", "line"]),
    "key twice": ("gateway:\n  policy: random\n  policy: random\n", ["policy", "line"]),
    "no identity": ("gateway:\n  scheduler: a:1\n", ["gateway.identity", "fairlead certs"]),
    "no such identity": ("gateway:\n  scheduler: a:1\n  identity: /nonexistent\n", ["gateway.identity", "/nonexistent"]),
}


@pytest.mark.parametrize("command", ["check", "gateway"])
@pytest.mark.parametrize("case", WRONG)
def test_wrong_configurations(tmp_path, case, command):
    text, wanted = WRONG[case]
    config = tmp_path / "a.yaml"
    config.write_text(text)
    done = run(command, *(["--config"] if command == "gateway" else []), config, check=False, timeout=20)
    assert done.returncode == 1 and "panicked" not in done.stderr, done
    for part in wanted:
        assert part in done.stderr, done.stderr
    assert "ok" not in done.stdout.split(), done.stdout


# arguments: what the message must hold
MISTAKES = {
    ("up",): ["--sim", "--engine"],
    ("up", "--sim", "0"): ["--sim", "1..=1024"],
    ("up", "--sim", "1", "--policy", "nope"): ["--policy", "prefix-cache"],
    ("up", "--sim", "1", "--driver", "nope"): ["--driver", "uring", "epoll"],
    ("up", "--sim", "1", "--runtime", "nope"): ["--runtime", "monoio", "glommio"],
    ("up", "--sim", "1", "--base-path", "nope"): ["--base-path", '"nope"'],
    ("up", "--sim", "1", "--listen", "127.0.0.1:99999"): ["--listen", "127.0.0.1:99999"],
    ("up", "--sim", "1", "--sim-profile", "nope"): ["--sim-profile", "8b-h200"],
    ("up", "--engine", "ftp://a"): ["--engine", "ftp"],
    ("gateway", "--config", "/nonexistent.yaml"): ["/nonexistent.yaml"],
    ("gateway",): ["--config"],
    ("agent",): ["--engine"],
    ("agent", "--engine", "http://127.0.0.1:1", "--scheduler", "a:1"): ["--identity"],
    ("agent", "--engine", "http://127.0.0.1:1", "--identity", "/nonexistent"): ["--scheduler"],
    ("sim", "--listen", "127.0.0.1:0", "--faults", '{"stauts": 500}'): ["--faults", "stauts", "status"],
    ("sim", "--listen", "127.0.0.1:0", "--speed", "0"): ["speed", "0.001"],
    ("sim", "--listen", "127.0.0.1:0", "--profile", "nope"): ["profile", "8b-h200"],
    ("load", "--url", "http://127.0.0.1:1"): ["--duration", "--requests"],
    ("load", "--url", "http://127.0.0.1:1", "--requests", "1"): ["127.0.0.1:1", "refused"],
    ("status", "--scheduler", "http://127.0.0.1:1"): ["127.0.0.1:1", "refused"],
    ("certs",): ["--out"],
    ("certs", "--out", "/proc/nonexistent"): ["/proc/nonexistent"],
    ("check", "/nonexistent.yaml"): ["/nonexistent.yaml"],
}


@pytest.mark.parametrize("args", MISTAKES, ids=" ".join)
def test_mistakes_are_named(args):
    ports = ("--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0")
    done = run(*args, *(ports if args[0] == "up" and "--listen" not in args else ()), check=False, timeout=20)
    assert done.returncode in (1, 2) and "panicked" not in done.stderr, done
    for part in MISTAKES[args]:
        assert part in done.stderr, done.stderr


@contextlib.contextmanager
def taken_port():
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        yield "127.0.0.1:%d" % holder.getsockname()[1]


def test_ports_in_use(tmp_path):
    with taken_port() as taken:
        config = tmp_path / "a.yaml"
        config.write_text(f"gateway: {{listen: '{taken}', admin: off}}\n")
        for args in [
            ("up", "--sim", 1, "--listen", taken, "--admin", "127.0.0.1:0"),
            ("up", "--sim", 1, "--listen", "127.0.0.1:0", "--admin", taken),
            ("gateway", "--config", config),
            ("sim", "--listen", taken),
        ]:
            done = run(*args, check=False, timeout=20)
            assert done.returncode == 1 and "panicked" not in done.stderr, (args, done)
            assert taken in done.stderr and "in use" in done.stderr, (args, done.stderr)


def test_a_second_gateway_does_not_share_the_port_of_the_first(up):
    """The shards of one process share a port; two processes that did so would each get half of the traffic."""
    where = "%s:%s" % re.search(r"([\d.]+):(\d+)", up.url).groups()
    done = run("up", "--sim", 1, "--listen", where, "--admin", "127.0.0.1:0", check=False, timeout=20)
    assert done.returncode == 1 and where in done.stderr and "in use" in done.stderr, done


def test_certs_keep_what_exists(tmp_path):
    out = tmp_path / "certs"
    first = run("certs", "--out", out)
    files = {p: p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}
    assert "made" in first.stdout and files
    assert all(p.stat().st_mode & 0o077 == 0 for p in files if "key" in p.name), "keys are for their owner only"
    second = run("certs", "--out", out)
    assert "made" not in second.stdout and "kept" in second.stdout
    assert {p: p.read_bytes() for p in files} == files
    more = run("certs", "--out", out, "--agent", "one")
    assert "made" in more.stdout and {p: p.read_bytes() for p in files} == files


def test_check_tells_what_a_file_means(tmp_path):
    run("certs", "--out", tmp_path / "certs")
    config = tmp_path / "a.yaml"
    config.write_text(
        f"gateway:\n  listen: 127.0.0.1:1234\n  policy: random\n  scheduler: example:7400\n"
        f"  identity: {tmp_path}/certs/gateway\n  instances: [{{url: 'http://a:1', models: [m]}}]\n"
    )
    said = run("check", config).stdout
    for part in ["ok", "127.0.0.1:1234", "random", "example:7400", "1 fixed instance"]:
        assert part in said, said
    # The identity of another role is no identity.
    config.write_text(f"gateway:\n  scheduler: a:1\n  identity: {tmp_path}/certs/agent\n")
    done = run("check", config, check=False)
    assert done.returncode == 1 and "gateway.identity" in done.stderr, done


def test_status_shows_the_fleet_of_a_scheduler(tmp_path):
    run("certs", "--out", tmp_path / "certs")
    config, port = tmp_path / "s.yaml", free_udp_port()
    config.write_text(
        f"scheduler:\n  listen: 127.0.0.1:{port}\n  admin: 127.0.0.1:0\n  identity: {tmp_path}/certs/scheduler\n"
    )
    with Process("scheduler", "--config", config) as scheduler, Process("sim", "--listen", "127.0.0.1:0") as sim:
        admin = scheduler.field("admin")
        assert "instance" in run("status", "--scheduler", admin).stdout
        agent = Process(
            "agent", "--engine", sim.url, "--scheduler", f"127.0.0.1:{port}", "--name", "engine-a",
            "--identity", tmp_path / "certs/agent", "--listen", "127.0.0.1:0",
        )
        with agent:
            line = until(
                lambda: next((s for s in run("status", "--scheduler", admin).stdout.splitlines() if "engine-a" in s), None),
                what="the engine in the status",
            )
            assert MODEL in line and "yes" in line and sim.url.removeprefix("http://").rstrip("/") in line
            listed = json.loads(run("status", "--json", "--scheduler", admin).stdout)
            assert [target["instance"] for target in listed["targets"]] == ["engine-a"]
            assert agent.stop() == 0
        assert scheduler.stop() == 0 and sim.stop() == 0


def start(*args, **options):
    return Process("up", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", *args, **options)


def test_up_is_ready_in_time_and_its_own_hint_works():
    with start("--sim", 4) as up:
        assert up.ready_after < 2, up.ready_after
        assert up.field("models") == MODEL and len(up.field("engines").split(",")) == 4
        hint = up.ready.split("try: ")[1]
        body = re.search(r"-d '(.*)'$", hint)[1]
        with Raw(up.url) as client:
            answer = client.send(request(body.encode())).answer()
        assert up.url in hint and answer.status == 200 and answer.events()[-1][1] == "[DONE]"
        # Standard output has the ready line and nothing else.
        assert up.stop() == 0
        assert [line for line in up.log if "ready:" in line] == [up.ready]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("driver", ["uring", "epoll"])
def test_ending_waits_for_streams(driver, number):
    with start("--sim", 2, "--driver", driver) as up, Raw(up.url, timeout=20) as client, Raw(up.url) as idle:
        assert idle.stays_open()
        client.send(request(chat(True, max_tokens=400)))
        head = client.head()
        assert head.status == 200 and client.more()
        up.proc.send_signal(number)
        assert idle.closed()
        until(lambda: refused(up.url), 5, what="new connections refused")
        assert up.proc.poll() is None, "it did not wait for the stream"
        answer = client.body(head)
        assert answer.complete and answer.events()[-1][1] == "[DONE]" and client.closed()
        assert up.proc.wait(10) == 0


def test_instances_without_names_are_counted_and_the_default_policy_serves_them():
    """No address ever reaches a client, and without a word about policies `cost` decides."""
    with contextlib.ExitStack() as stack:
        sims = [stack.enter_context(Process("sim", "--listen", "127.0.0.1:0", "--speed", 20)) for _ in range(2)]
        engines = [arg for sim in sims for arg in ("--engine", sim.url)]
        unset = {"FAIRLEAD_POLICY": "", "ROUTING_ALGORITHM": ""}
        up = stack.enter_context(Process("up", *engines, "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", env=unset))
        assert up.field("policy") == "cost"
        names = []
        for _ in range(2):
            with Raw(up.url) as client:
                ask = request(chat(), headers=("routing-strategy: round-robin",))
                names.append(client.send(ask).answer().header("x-fairlead-instance"))
        assert sorted(names) == ["engine-1", "engine-2"]
        with Raw(up.url) as client:
            answer = client.send(request(chat(), headers=("x-fairlead-explain: 1",))).answer()
            assert json.loads(answer.header("x-fairlead-explain"))["policy"] == "cost"


def refused(url):
    try:
        Raw(url, timeout=1).close()
        return False
    except OSError:
        return True


def test_a_second_signal_ends_at_once():
    with start("--sim", 1) as up, Raw(up.url) as client:
        client.send(request(chat(True, max_tokens=5000)))
        assert client.head().status == 200
        up.proc.send_signal(signal.SIGINT)
        time.sleep(0.2)
        up.proc.send_signal(signal.SIGINT)
        assert up.proc.wait(5) != 0


def test_a_signal_before_it_is_ready():
    with start("--engine", "http://127.0.0.1:1", wait=0) as up:
        time.sleep(0.7)
        began = time.monotonic()
        assert up.stop() == 0 and up.ready is None
        assert time.monotonic() - began < 3, "it waited for an engine although it was told to end"


def test_up_waits_for_an_engine_and_says_so():
    with taken_port() as address:
        pass
    with start("--engine", f"http://{address}", wait=0) as up:
        until(lambda: any(address in line and "wait" in line for line in up.log), 15, what="a word about the engine")
        assert up.ready is None
        with Process("sim", "--listen", address, "--startup", "0.5", "--speed", 20):
            up.wait_ready(20)
            answer = post_json(f"{up.url}/v1/chat/completions", chat())
            assert answer["choices"] and get(f"{up.url}/readyz").startswith("ready")
            # One that goes away is missed, and found again when it is back.
        until(lambda: not ready(up), 10, what="the engine missed")
        with Process("sim", "--listen", address, "--speed", 20):
            until(lambda: ready(up), 15, what="the engine found again")
            assert post_json(f"{up.url}/v1/chat/completions", chat())["choices"]
        assert up.stop() == 0


def ready(up):
    try:
        return get(f"{up.url}/readyz").startswith("ready")
    except OSError:
        return False

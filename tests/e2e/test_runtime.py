"""glommio as the shards' runtime: what it serves where the program has it, and what is said where it cannot start."""

import contextlib
import ctypes
import resource
import signal
import struct
import subprocess

import pytest

from harness import BIN, Process, post_json, reservations, run
from raw import MODEL, Raw, chat, gateway_fleet, request, up_fleet

CONFIG = "gateway:\n  listen: 127.0.0.1:0\n  admin: off\n  runtime: glommio\n  instances:\n    - {url: 'http://127.0.0.1:1', models: [m]}\n"


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("runtime") / "glommio.yaml"
    path.write_text(CONFIG)
    return path


@pytest.fixture(scope="module")
def checked(config):
    """What `fairlead check` says of a configuration that asks for it."""
    return run("check", config, check=False)


@pytest.fixture
def built(checked):
    if checked.returncode != 0:
        pytest.skip("built without glommio")


def test_a_program_without_it_says_how_to_build_it(checked, config):
    if checked.returncode == 0:
        pytest.skip("built with glommio")
    up = ("up", "--sim", 1, "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--runtime", "glommio")
    for done in (checked, run(*up, check=False, timeout=20), run("gateway", "--config", config, check=False, timeout=20)):
        assert done.returncode == 1 and "panicked" not in done.stderr, done
        assert "--features glommio" in done.stderr and "monoio" in done.stderr, done.stderr
    # The command line comes before the configuration.
    with Process("gateway", "--config", config, "--runtime", "monoio") as gateway:
        assert gateway.field("runtime") == "monoio"


def test_it_serves(built):
    with up_fleet("glommio") as fleet, fleet.open() as client:
        for _ in range(3):
            answer = client.send(request(chat())).answer()
            assert answer.status == 200 and answer.complete
            answer = client.send(request(chat(True, max_tokens=40))).answer()
            assert answer.complete and answer.events()[-1][1] == "[DONE]"
        # More than a socket takes at once.
        padding = " " * 3_000_000
        answer = post_json(f"{fleet.url}/v1/chat/completions", {**chat(), "metadata": {"padding": padding}})
        assert answer["model"] == MODEL
        fleet.idle()


def test_clients_that_leave_are_noticed(built, tmp_path):
    with gateway_fleet(tmp_path, "glommio") as fleet:
        with fleet.open() as client:
            client.send(request(chat(True, max_tokens=5000)))
            assert client.head().status == 200 and client.more()
            assert reservations(fleet.admin) > 0
        fleet.idle()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ending_waits_for_streams(built, number):
    with contextlib.ExitStack() as stack:
        fleet = stack.enter_context(up_fleet("glommio"))
        client = stack.enter_context(Raw(fleet.url, timeout=20))
        idle = stack.enter_context(Raw(fleet.url))
        assert idle.stays_open()
        client.send(request(chat(True, max_tokens=400)))
        head = client.head()
        assert head.status == 200 and client.more()
        process = fleet.gateway.proc
        process.send_signal(number)
        assert idle.closed()
        answer = client.body(head)
        assert answer.complete and answer.events()[-1][1] == "[DONE]" and client.closed()
        assert process.wait(10) == 0


def little_memory():
    """Less locked memory than glommio wants."""
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (64 << 10, 64 << 10))


def no_rings():
    """As default profiles of containers have it: EPERM for io_uring_setup (425) and the two calls after it."""
    code = [
        (0x20, 0, 0, 0),  # the number of the call
        (0x35, 0, 2, 425),  # below 425: allowed
        (0x25, 1, 0, 427),  # above 427: allowed
        (0x06, 0, 0, 0x00050001),  # EPERM
        (0x06, 0, 0, 0x7FFF0000),  # allowed
    ]
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in code))
    filter_ = struct.pack("HxxxxxxP", len(code), ctypes.addressof(program))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, ctypes.c_char_p(filter_), 0, 0):
        raise OSError(ctypes.get_errno(), "seccomp")


REFUSED = {
    "little memory": (little_memory, "monoio", ["locked memory", "--runtime monoio"]),
    "no rings": (no_rings, "monoio", ["ring", "Operation not permitted", "--runtime monoio"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_where_it_cannot_start_it_says_what_helps(built, config, case):
    limit, instead, wanted = REFUSED[case]
    arguments = [BIN, "gateway", "--config", str(config)]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=20, preexec_fn=limit)
    assert done.returncode == 1 and "panicked" not in done.stderr, done
    assert all(part in done.stderr for part in wanted), done.stderr
    # What it advises does help.
    with subprocess.Popen([*arguments, "--runtime", instead], stdout=subprocess.PIPE, preexec_fn=limit) as process:
        assert process.stdout.readline().startswith(b"ready:")
        process.send_signal(signal.SIGINT)


def test_it_has_no_epoll(built, tmp_path):
    path = tmp_path / "epoll.yaml"
    path.write_text(CONFIG.replace("runtime: glommio", "runtime: glommio\n  driver: epoll"))
    done = run("gateway", "--config", path, check=False, timeout=20)
    assert done.returncode == 1 and "epoll" in done.stderr and "--runtime monoio" in done.stderr, done

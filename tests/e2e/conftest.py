import pytest

from harness import Process


@pytest.fixture(scope="session")
def up():
    """Everything in one process, four simulated engines that run much faster than life."""
    with Process("up", "--sim", 4, "--sim-speed", 50, "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0") as process:
        yield process

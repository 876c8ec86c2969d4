import pytest

from harness import Process
from raw import DRIVERS, up_fleet


@pytest.fixture(scope="session")
def up():
    """Everything in one process, four simulated engines that run much faster than life."""
    with Process("up", "--sim", 4, "--sim-speed", 50, "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0") as process:
        yield process


@pytest.fixture(scope="module", params=DRIVERS)
def fleet(request):
    """The same with two engines, once on each driver: what raw sockets are pointed at."""
    with up_fleet(request.param) as running:
        yield running


@pytest.fixture
def client(fleet):
    """A connection to it."""
    with fleet.open() as connection:
        yield connection

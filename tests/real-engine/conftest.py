import os
import pathlib
import signal

import pytest

from engine import Engine, Mirror
from fleet import Fleet
from transformers import AutoTokenizer

LARGE = 2000  # pages: nothing is evicted
# Whoever ends the run by a signal wants the engine ended, too.
signal.signal(signal.SIGTERM, signal.default_int_handler)
MODEL = pathlib.Path(os.environ["FAIRLEAD_REAL_MODEL"])


class Stage:
    """Engine, its mirror and the fleet in front of it; one for the whole session."""

    def __init__(self, folder):
        self.tokenizer = AutoTokenizer.from_pretrained(MODEL)
        self.engine = Engine(MODEL, folder / "engine.log")
        self.mirror = None
        self.fleet = None
        try:
            self.engine.start(LARGE, max_len=4096)
            self.mirror = Mirror(self.engine)
            self.fleet = Fleet(folder, self.engine, MODEL)
        except BaseException:
            self.stop()
            raise

    def restart_engine(self, blocks, max_len):
        self.mirror.close()
        self.engine.start(blocks, max_len)
        self.mirror = Mirror(self.engine)

    def stop(self):
        if self.mirror is not None:
            self.mirror.close()
        if self.fleet is not None:
            self.fleet.stop()
        self.engine.kill()


@pytest.fixture(scope="session")
def stage(tmp_path_factory):
    stage = Stage(tmp_path_factory.mktemp("real"))
    yield stage
    stage.stop()

"""A fleet of separate processes: scheduler, gateways, and for each engine a simulated one and an agent."""

import pathlib
import socket

from harness import Process, get_json, metric, reservations, run, until


def free_udp_port():
    """A port that nothing uses now; the scheduler must come back on the one it had."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Cluster:
    def __init__(self, folder, engines=4, gateways=1, policy="prefix-cache", speed=20, sim_args=(), gateway_keys=""):
        self.folder = pathlib.Path(folder)
        self.policy = policy
        self.speed = speed
        self.processes = []
        run("certs", "--out", self.folder / "certs")
        self.port = free_udp_port()
        self.start_scheduler()
        self.sims = [
            self._start("sim", "--listen", "127.0.0.1:0", "--speed", speed, *sim_args) for _ in range(engines)
        ]
        self.agents = [self.start_agent(sim) for sim in self.sims]
        self.gateways = [self.start_gateway(i, gateway_keys) for i in range(gateways)]
        self.wait_ready(engines)

    def _start(self, *args):
        process = Process(*args)
        self.processes.append(process)
        return process

    def start_scheduler(self):
        config = self.folder / "scheduler.yaml"
        config.write_text(
            f"scheduler:\n  listen: 127.0.0.1:{self.port}\n  admin: 127.0.0.1:0\n"
            f"  identity: {self.folder}/certs/scheduler\n"
        )
        self.scheduler = self._start("scheduler", "--config", config)
        return self.scheduler

    def start_agent(self, sim):
        return self._start(
            "agent", "--engine", sim.url, "--scheduler", f"127.0.0.1:{self.port}",
            "--identity", self.folder / "certs/agent", "--listen", "127.0.0.1:0",
        )

    def start_gateway(self, number, keys="", listen="127.0.0.1:0"):
        config = self.folder / f"gateway{number}.yaml"
        config.write_text(
            f"gateway:\n  listen: {listen}\n  admin: 127.0.0.1:0\n  scheduler: 127.0.0.1:{self.port}\n"
            f"  identity: {self.folder}/certs/gateway\n  policy: {self.policy}\n{keys}"
        )
        return self._start("gateway", "--config", config)

    @property
    def gateway(self):
        return self.gateways[0]

    @property
    def admin(self):
        return self.gateway.field("admin")

    def targets(self, gateway=None):
        """Ready targets as a gateway sees them."""
        admin = (gateway or self.gateway).field("admin")
        return [t for t in get_json(f"{admin}/debug/targets")["targets"] if t["ready"]]

    def wait_ready(self, engines, seconds=15):
        for gateway in self.gateways:
            until(lambda: len(self.targets(gateway)) == engines, seconds, what=f"{engines} ready targets")

    def tokens(self):
        """(prompt tokens, of them cached) that the engines that live have counted."""
        prompt = cached = 0
        for sim in self.sims:
            if sim.proc.poll() is None:
                state = get_json(f"{sim.url}/sim/state")
                prompt, cached = prompt + state["prompt_tokens"], cached + state["cached_tokens"]
        return prompt, cached

    def in_flight(self):
        return sum(
            get_json(f"{sim.url}/sim/state")["in_flight"] for sim in self.sims if sim.proc.poll() is None
        )

    def settled(self):
        """Nothing in flight and nothing reserved."""
        return self.in_flight() == 0 and all(reservations(g.field("admin")) == 0 for g in self.gateways)

    def metric(self, name, **labels):
        return metric(self.admin, name, **labels)

    def stop(self):
        for process in reversed(self.processes):
            process.kill()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()

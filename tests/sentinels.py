"""A real Sentinel group for tests: a master, replicas of it, and three Sentinels, each a process in a folder of its own."""

import contextlib
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import redis

from tests.ports import free_port
from tests.servers import binaries

SERVICE = "penstock"
DOWN_AFTER_MS = 3000


@dataclass
class Group:
    """`servers` by port, the first of them the first master."""

    url: str
    servers: dict[int, subprocess.Popen[bytes]]
    sentinels: dict[int, subprocess.Popen[bytes]]

    def ask(self, *command: str) -> object:
        """What a Sentinel says."""
        with redis.Redis(port=next(iter(self.sentinels)), decode_responses=True) as client:
            return client.execute_command("SENTINEL", *command)

    def master(self) -> int:
        found = self.ask("GET-MASTER-ADDR-BY-NAME", SERVICE)
        return int(found[1])  # type: ignore[index]

    def until_in_step(self) -> None:
        """Until all others follow the master, as all Sentinels see it."""
        until(lambda: self._in_step(), "the replicas to be in step")

    def _in_step(self) -> bool:
        with redis.Redis(port=self.master(), decode_responses=True) as client:
            info = client.info("replication")
        others = len(self.servers) - 1
        if sum(info.get(f"slave{n}", {}).get("state") == "online" for n in range(others)) < others:
            return False
        for port in self.sentinels:
            with redis.Redis(port=port, decode_responses=True) as client:
                state = client.sentinel_master(SERVICE)
                if state["num-other-sentinels"] < len(self.sentinels) - 1 or state["num-slaves"] < others:
                    return False
        return True


def until(condition: object, what: str, patience_s: float = 20) -> None:
    deadline = time.monotonic() + patience_s
    while True:
        with contextlib.suppress(redis.RedisError):
            if condition():  # type: ignore[operator]
                return
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.05)


@contextlib.contextmanager
def sentinel_group(name: str = "", *, replicas: int = 1) -> Iterator[Group]:
    """The group, in step."""
    binary = binaries()[name or ("valkey" if "valkey" in binaries() else "redis")]
    with tempfile.TemporaryDirectory(prefix="penstock-test-") as folder:
        ports = [free_port() for _ in range(1 + replicas + 3)]
        master, followers, watchers = ports[0], ports[1 : 1 + replicas], ports[1 + replicas :]
        processes: list[subprocess.Popen[bytes]] = []

        def start(port: int, lines: str, *flags: str) -> subprocess.Popen[bytes]:
            home = Path(folder) / str(port)
            home.mkdir()
            (home / "server.conf").write_text(f"port {port}\nbind 127.0.0.1\ndir {home}\n{lines}")
            process = subprocess.Popen([binary, str(home / "server.conf"), *flags], stdout=subprocess.DEVNULL)
            processes.append(process)
            return process

        data = 'save ""\nrepl-diskless-sync-delay 0\nrepl-ping-replica-period 1\n'
        watch = (
            f"sentinel monitor {SERVICE} 127.0.0.1 {master} 2\n"
            f"sentinel down-after-milliseconds {SERVICE} {DOWN_AFTER_MS}\n"
            f"sentinel failover-timeout {SERVICE} 6000\n"
        )
        try:
            servers = {master: start(master, data)}
            servers |= {port: start(port, data + f"replicaof 127.0.0.1 {master}\n") for port in followers}
            with redis.Redis(port=master) as client:
                until(client.ping, "the master")
            sentinels = {port: start(port, watch, "--sentinel") for port in watchers}
            hosts = ",".join(f"127.0.0.1:{port}" for port in sentinels)
            group = Group(f"redis+sentinel://{hosts}/{SERVICE}/0", servers, sentinels)
            group.until_in_step()
            yield group
        finally:
            for process in processes:
                process.send_signal(signal.SIGCONT)
                process.kill()
            for process in processes:
                process.wait()

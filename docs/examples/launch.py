#!/usr/bin/env python3
"""A complete program for Penstock's exec launcher: workers as processes of this machine. Copy it; change `start`, `alive`, `end`.

One JSON document comes on stdin, one goes to stdout; whatever goes to stderr is shown when the exit code is not 0.
What runs is kept in a folder, one file a worker, so that every call may be repeated, doubled or lost.

    LAUNCH_STATE   that folder; default ~/.local/state/penstock-launch
    LAUNCH_ENV     a file of NAME=value lines for the workers, secrets too (PENSTOCK_REDIS__URL=...); readable by you alone
    LAUNCH_COMMAND what a worker is; default "penstock worker"
    LAUNCH_MOST    most workers here; default 4
"""

import fcntl
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

STATE = Path(os.environ.get("LAUNCH_STATE", Path.home() / ".local/state/penstock-launch"))
COMMAND = shlex.split(os.environ.get("LAUNCH_COMMAND", "penstock worker"))
MOST = int(os.environ.get("LAUNCH_MOST", "4"))


# ---- what to change: a process, a Slurm job, a machine in a cloud


def start(launch, environment, log):
    """Start a worker; returns what it is found by again."""
    # Detached: it must outlive this program, and must not hold its output open.
    worker = subprocess.Popen(
        COMMAND, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, close_fds=True
    )
    return {"pid": worker.pid, "started": started(worker.pid)}


def alive(found):
    """Whether it still runs."""
    return started(found["pid"]) == found["started"] and found["started"] is not None


def end(found, at_once):
    """Tell it to end: it drains. `at_once`: it has had its time."""
    os.kill(found["pid"], signal.SIGKILL if at_once else signal.SIGTERM)


def started(pid):
    """When that process started: a process id alone may be used again. None if there is none, or only its remains."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else fields[19]


# ---- the three questions


def apply(question):
    """Start what is missing, end what is not named, once for each."""
    orders = question["orders"]
    newest = STATE / "epoch"
    epoch = int(newest.read_text()) if newest.exists() else 0
    if orders["epoch"] < epoch:
        sys.exit(f"orders of epoch {orders['epoch']} are stale: epoch {epoch} has begun")
    write(newest, str(orders["epoch"]))
    wanted = {launch["id"]: launch for pool in orders["pools"] for launch in pool["launches"]}
    workers = known()
    for name, worker in workers.items():
        if name in wanted:
            continue
        if not alive(worker):
            file_of(name).unlink()
        elif "ends_at" not in worker:
            end(worker, at_once=False)
            save(name, {**worker, "ends_at": time.time() + question["kill_after_s"]})
        elif time.time() > worker["ends_at"]:
            end(worker, at_once=True)
    for name, launch in wanted.items():
        before = workers.get(name, {"pool": launch["pool"], "exits": -1, "again_at": 0})
        if name in workers and alive(before):
            continue
        exits = before["exits"] + 1
        if time.time() < before["again_at"] or (name not in workers and len(known()) >= MOST):
            continue
        with (STATE / f"{name}.log").open("ab") as log:
            found = start(launch, environment_of(launch), log)
        # The longer it fails, the longer it waits.
        again_at = time.time() + min(30, 2**exits)
        save(name, {**found, "pool": launch["pool"], "since_ms": int(time.time() * 1000), "exits": exits, "again_at": again_at})
    return {}


def reports(question):
    """All that is known of each worker."""
    found = []
    for name, worker in known().items():
        lives = alive(worker)
        state = ("stopping" if lives else "gone") if "ends_at" in worker else ("running" if lives else "backoff")
        report = {"id": name, "pool": worker["pool"], "state": state, "host": os.uname().nodename, "since_ms": worker["since_ms"]}
        report |= {"pid": worker["pid"] if lives else 0, "exits": worker["exits"] + (not lives)}
        if not lives:
            lines = (STATE / f"{name}.log").read_text(errors="replace").splitlines()[-10:]
            report |= {"error": "its process ended", "last_words": lines}
        found.append(report)
    return {"reports": found}


def unplaceable(question):
    """Why one more could not be had."""
    return {"unplaceable": f"there are {MOST} workers here, which is all there may be" if len(known()) >= MOST else ""}


# ---- what is kept


def environment_of(launch):
    """Ours, the file's, the order's: the last word is the order's."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("LAUNCH_")}
    if file := os.environ.get("LAUNCH_ENV"):
        lines = [line.strip() for line in Path(file).read_text().splitlines() if line.strip() and not line.startswith("#")]
        environment |= dict(line.split("=", 1) for line in lines)
    environment |= {f"PENSTOCK_WORKER__{name.upper()}": value for name, value in launch["worker"].items()}
    return environment | {"PENSTOCK_WORKER__POOL": launch["pool"], "PENSTOCK_WORKER__LAUNCH": launch["id"]}


def file_of(name):
    """Where a worker is noted."""
    return STATE / f"{name}.json"


def known():
    """Every worker noted, by its id."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(STATE.glob("*.json"))}


def save(name, worker):
    """Note a worker."""
    write(file_of(name), json.dumps(worker))


def write(path, text):
    """Whole or not at all: this program may be killed at any time."""
    new = path.with_suffix(".new")
    new.write_text(text)
    new.rename(path)


if __name__ == "__main__":
    STATE.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (STATE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        question = json.load(sys.stdin)
        if question["v"] != 1:
            sys.exit(f"this program understands version 1, not {question['v']}")
        answer = {"apply": apply, "reports": reports, "unplaceable": unplaceable}[question["action"]](question)
        json.dump({"v": 1, **answer}, sys.stdout)

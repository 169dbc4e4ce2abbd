"""A harness that is killed leaves no server behind, not even a stopped one."""

import asyncio
import os
import signal
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CODE = """
import asyncio, signal, sys
from pathlib import Path
from chaos.servers import Single, find

async def main():
    server = Single(find(""), Path(sys.argv[1]))
    await server.start()
    process = await server.master()
    process.signal(signal.SIGSTOP)
    print(process.process.pid, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


async def test_servers_die_with_the_harness(tmp_path: Path) -> None:
    harness = await asyncio.create_subprocess_exec(
        sys.executable, "-c", CODE, str(tmp_path), stdout=asyncio.subprocess.PIPE, cwd=ROOT, env={**os.environ}
    )
    assert harness.stdout is not None
    server = int(await asyncio.wait_for(harness.stdout.readline(), 30))
    assert lives(server)
    harness.send_signal(signal.SIGKILL)
    await harness.wait()
    async with asyncio.timeout(5):
        while lives(server):  # noqa: ASYNC110 - another's child
            await asyncio.sleep(0.05)

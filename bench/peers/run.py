"""One peer's worker, closed loop, or FastAPI app, in the peers' own environment: `run.py PEER worker|client|app [PORT]`.

The app is the bare one of bench/dispatch with one line more: it awaits the peer's call. Never here: what a peer does.
"""

import importlib
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]


def main() -> None:
    peer = importlib.import_module(f"peer_{sys.argv[1]}")
    if sys.argv[2] == "worker":
        peer.work()
    elif sys.argv[2] == "client":
        import uvloop

        from bench.dispatch.loop import serve_rounds

        uvloop.run(serve_rounds(peer.call))
    else:
        import uvicorn
        from fastapi import FastAPI

        from bench.dispatch.bare import Body

        app = FastAPI()

        @app.post("/run")
        async def run(body: Body) -> dict[str, object]:
            await peer.call()
            return {"model": body.model, "text": "done", "tokens": body.max_tokens}

        uvicorn.run(app, port=int(sys.argv[3]), loop="uvloop", http="httptools", log_level="warning", access_log=False)


if __name__ == "__main__":
    main()

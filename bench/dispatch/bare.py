"""A bare FastAPI POST with a pydantic body: what no FastAPI service undercuts. `python -m bench.dispatch.bare PORT`."""

import sys

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel


class Body(BaseModel):
    model: str
    prompt: str
    max_tokens: int = 16


app = FastAPI()


@app.post("/run")
async def run(body: Body) -> dict[str, object]:
    """Nothing but the body."""
    return {"model": body.model, "text": "done", "tokens": body.max_tokens}


if __name__ == "__main__":
    uvicorn.run(
        app, host="127.0.0.1", port=int(sys.argv[1]), loop="uvloop", http="httptools", log_level="warning", access_log=False
    )

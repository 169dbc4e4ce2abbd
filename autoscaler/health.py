"""The autoscaler's own small port: whether it ticks, whether it leads.

Never here: what all of Penstock knows (a gateway's /metrics).
"""

import contextlib
import time
from collections.abc import Iterator
from typing import Protocol

import uvicorn
from prometheus_client import CollectorRegistry, Gauge, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

_LATE_TICKS = 3
_LATE_S = 90.0
"""A launcher's script or API may take its time."""
_NO_STORE = {"cache-control": "no-store"}


class Ticks(Protocol):
    """What is asked of the ticking. `ticked_at` is monotonic."""

    ticked_at: float

    @property
    def leads(self) -> bool:
        """Whether it leads its group."""
        ...


class Health:
    """/livez, /readyz and /metrics on 127.0.0.1."""

    def __init__(self, ticks: Ticks, *, port: int, tick_s: float) -> None:
        self._ticks = ticks
        self._port = port
        self._late_s = max(_LATE_S, _LATE_TICKS * tick_s)
        self._registry = CollectorRegistry()
        age = Gauge("penstock_autoscaler_last_tick_age_seconds", "Since this autoscaler's last tick", registry=self._registry)
        age.set_function(self._age_s)
        leads = Gauge("penstock_autoscaler_leads", "Whether this autoscaler leads its group", registry=self._registry)
        leads.set_function(lambda: float(ticks.leads))

    async def run(self) -> None:
        """Serve until cancelled."""
        routes = [Route("/livez", self._livez), Route("/readyz", self._readyz), Route("/metrics", self._metrics)]
        config = uvicorn.Config(
            Starlette(routes=routes), host="127.0.0.1", port=self._port, log_config=None, access_log=False, lifespan="off"
        )
        await _Server(config).serve()

    def _age_s(self) -> float:
        return time.monotonic() - self._ticks.ticked_at

    async def _livez(self, http_request: Request) -> Response:
        late = self._age_s() > self._late_s
        text = f"no tick for {self._age_s():.1f} s" if late else "ok"
        return PlainTextResponse(text, 503 if late else 200, headers=_NO_STORE)

    async def _readyz(self, http_request: Request) -> Response:
        """A standby is ready, too: it takes over."""
        return JSONResponse({"role": "leader" if self._ticks.leads else "standby"}, headers=_NO_STORE)

    async def _metrics(self, http_request: Request) -> Response:
        return Response(generate_latest(self._registry), media_type="text/plain; version=0.0.4", headers=_NO_STORE)


class _Server(uvicorn.Server):
    """Signals are the daemon's."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

"""What a worker's last probe said is shown wherever workers are: /v1/workers, /metrics, `penstock ps`."""

from dataclasses import replace

import pytest

from dispatch.messages import decode, encode
from dispatch.metrics import ClusterView, GatewayMetrics, exposition
from dispatch.reports import Heartbeat, ProbeReport
from dispatch.states import WorkerState
from gateway.shapes import worker_document
from penstock.commands.watch import _probe, _state

NOW_MS = 1_000_000
BEAT = Heartbeat("w-1", "host", 1, "demo", "sim", WorkerState.READY, 64, 1, 1.0, 0, 0, 0, NOW_MS)
SICK = replace(
    BEAT, state=WorkerState.QUARANTINED, error="The canary's tokens changed.", probe=ProbeReport(False, NOW_MS - 12_000, 0.25)
)


def metrics_of(beat: Heartbeat) -> str:
    return exposition(GatewayMetrics("1"), ClusterView(True, 0.0, (), (beat,), NOW_MS)).decode()


def test_a_probe_is_shown_everywhere() -> None:
    document = worker_document(decode(encode(SICK), Heartbeat, "a heartbeat"), NOW_MS)
    assert document["probe"] == {"ok": False, "age_ms": 12_000, "took_ms": 250}
    assert (_probe(document), _state(document)) == ("FAILED 12.0s ago", "quarantined The canary's tokens changed.")
    text = metrics_of(SICK)
    for line in (
        'penstock_worker_probe_ok{worker="w-1"} 0.0',
        'penstock_worker_probe_age_seconds{worker="w-1"} 12.0',
        'penstock_worker_probe_seconds{worker="w-1"} 0.25',
        'penstock_workers{state="quarantined"} 1.0',
    ):
        assert line in text


@pytest.mark.parametrize("beat", [BEAT, decode(encode(BEAT).replace(b',"probe":null', b""), Heartbeat, "an older worker's")])
def test_one_that_was_never_probed_says_nothing_of_it(beat: Heartbeat) -> None:
    document = worker_document(beat, NOW_MS)
    assert document["probe"] is None and _probe(document) == "-"
    assert 'probe_ok{worker="w-1"}' not in metrics_of(beat)

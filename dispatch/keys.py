"""Every key in Redis: its type, fields, TTL, who writes and who reads it. Pure.

Keys in a shard carry its tag, so that one script sees them all on one node. The scripts derive the same names from
the tag (`scripts/lib/ground.lua`); a test holds both equal. A client's words never become a key unless checked here.

key                                type    holds                                        TTL            written / read by
{s}:queue:<model>:<priority>       stream  the waiting: what scores ask for, `at` (ms)  none (a line)  enqueue, sweep / meet
{s}:queue:<model>:<priority>:front stream  those given back, read before the others     none (a line)  release, sweep / meet
{s}:queue:<model>:<priority>:alone stream  suspects of a crash, who run alone           none (a line)  abandon, sweep / meet
{s}:sizes:<model>:<priority>[..]   zset    entry id -> cost of that line                none (a line)  with its line / meet
{s}:parked:<model>                 zset    worker with room, open -> its score           lease-bound    park, meet / meet
{s}:rooms:<model>                  zset    worker with room, open or closed -> its room lease-bound    with parked / meet
{s}:shut:<model>                   zset    worker with room, closed to pull -> its score 1 h           with parked / meet
{s}:others:<model>                 zset    who waits not by `pull`: entry -> its cost   none (a line)  with its line / meet
{s}:pins:<model>                   set     workers that keep room for a waiting request 1 h            meet / meet
{s}:turn:<model>                   hash    round robins: whose turn it is               1 day          meet / meet
{s}:session:<model>:<hash>         string  the worker that last ran the session         10 min         meet / meet
{s}:leases:<model>                 set     ids of requests under a lease                none (a model) meet, endings / stats
{s}:worker:<id>                    hash    limit, slots, weight, used, held, seen, ...  1 h            park, meet / meet
{s}:held:<worker>                  hash    request id -> cost of what it holds          1 h            meet, endings / renew, park
{s}:prefill:<worker>               hash    request id -> prompt tokens without output   1 h            meet, append / park
{s}:inbox:<worker>                 stream  grants and stops on their way to it          1 h            meet, endings / worker
{s}:timers                         zset    every unfinished request -> next look, ms    none           all / sweep
{s}:request:<id>                   hash    state and story, see records.py              deadline+, then retention
{s}:input:<id>                     string  what to compute                              until completed, else as the output
{s}:output:<id>                    list    the log, element n is seq n: entries.py      as the request
{s}:tombstone:<id>                 string  `<ending> <tenant>`                          retention + 24 h
{s}:feed:<gateway>                 stream  entries for that gateway's readers           reader lease x 2
{s}:gateway:<id>                   string  when that gateway was last seen, ms          reader lease x 2
{s}:idempotency:<tenant>:<sha256>  string  `<request id> <body hash>`                   24 h
{s}:requests                       zset    request id -> created, ms (for lists)        swept
{s}:expiries                       zset    id of an ended one -> when it is forgotten   swept          endings / sweep
{s}:dead                           stream  dead letters                                 7 days
{s}:outbox                         zset    request id -> when its webhook is tried next  none           endings, relay / relay
{s}:webhook:<id>                   hash    an owed webhook and its tries, see outbox.py 7 days, then as the request
{s}:stats:<model>                  hash    counters of endings and tokens               none (a model)
{s}:paused                         set     models whose lines are paused                none
{s}:swept                          string  when the last sweep was, ms                  1 day
{s}:amnesty                        string  no lease ends before this, ms                lease + 60 s   sweep / sweep
{s}:waited                         string  written before each WAIT, so that it covers all   60 s      batching / nobody
worker:<id>                        string  Heartbeat, JSON                              heartbeat TTL  worker / fleet
lengths:<model>                    hash    how long answers get, see lengths.py         30 days        worker / gateway
workers                            zset    worker id -> last beat, ms                   swept by readers
model:<name>                       string  ModelCard, JSON                              none (a model)
models                             set     names of model cards                         none
tokenizer:<sha256>                 string  TokenizerFiles, JSON                         none (a model)
drains                             hash    worker or launch id -> when it was asked, ms 1 day          autoscaler, people / worker
{scale}:leader:<group>             hash    who leads that group, its epoch, until when  none (a group) lead / all
{scale}:orders:<group>             string  Orders, JSON: the desired state              none (a group) order / agents
{scale}:status                     hash    pool -> PoolStatus, JSON                     none           order / gateways
{scale}:log                        stream  decisions, capped                            capped         order / gateways
{scale}:counts                     hash    `<pool> <action>` -> how many such decisions  none           order / gateways
{scale}:overrides                  hash    pool -> PoolOverride, JSON                   none           people / autoscaler
{scale}:host:<host>                string  HostReport, JSON                             report TTL     agent / autoscaler
{scale}:hosts                      set     hosts with an agent                          swept by readers
{scale}:starts:<pool>              list    the last cold starts, ms                     30 days        autoscaler / autoscaler
"""

import re

from dispatch.errors import PenstockError
from dispatch.states import Priority

# Also what Hugging Face ids (org/name), Ollama names (name:tag) and revisions (name@rev) use; no braces: a hash tag is ours.
_MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:@+-]{0,127}")
_REQUEST_ID = re.compile(r"(s[0-9]{1,3})\.[0-9a-f]{32}")


def check_model_name(name: str) -> str:
    """The name, if it may become part of a key. Raises PenstockError("invalid_request") otherwise."""
    if not _MODEL_NAME.fullmatch(name):
        raise PenstockError(
            "invalid_request",
            f"{name[:140]!r} is not a model name.",
            hint="Use letters, digits and . _ / : @ + -, at most 128 characters.",
            param="model",
        )
    return name


def shard_of(request_id: str) -> str | None:
    """The shard named in a request id, or None if it is no id of ours."""
    match = _REQUEST_ID.fullmatch(request_id)
    return match.group(1) if match else None


class ShardKeys:
    """The keys of one shard."""

    def __init__(self, shard: str) -> None:
        self.shard = shard
        self._tag = f"{{{shard}}}:"

    def queue(self, model: str, priority: Priority) -> str:
        return f"{self._tag}queue:{model}:{priority}"

    def queue_front(self, model: str, priority: Priority) -> str:
        return f"{self._tag}queue:{model}:{priority}:front"

    def queue_alone(self, model: str, priority: Priority) -> str:
        return f"{self._tag}queue:{model}:{priority}:alone"

    def lines(self, model: str, priority: Priority) -> tuple[str, str, str]:
        """All that waits with one priority, in the order in which it is looked at."""
        return self.queue_alone(model, priority), self.queue_front(model, priority), self.queue(model, priority)

    def sizes(self, model: str, priority: Priority) -> str:
        return f"{self._tag}sizes:{model}:{priority}"

    def sizes_front(self, model: str, priority: Priority) -> str:
        return f"{self._tag}sizes:{model}:{priority}:front"

    def sizes_alone(self, model: str, priority: Priority) -> str:
        return f"{self._tag}sizes:{model}:{priority}:alone"

    def parked(self, model: str) -> str:
        return f"{self._tag}parked:{model}"

    def rooms(self, model: str) -> str:
        return f"{self._tag}rooms:{model}"

    def shut(self, model: str) -> str:
        return f"{self._tag}shut:{model}"

    def others(self, model: str) -> str:
        return f"{self._tag}others:{model}"

    def worker(self, worker: str) -> str:
        return f"{self._tag}worker:{worker}"

    def held(self, worker: str) -> str:
        return f"{self._tag}held:{worker}"

    def prefill(self, worker: str) -> str:
        return f"{self._tag}prefill:{worker}"

    def pins(self, model: str) -> str:
        return f"{self._tag}pins:{model}"

    def turn(self, model: str) -> str:
        return f"{self._tag}turn:{model}"

    def session(self, model: str, session: str) -> str:
        return f"{self._tag}session:{model}:{session}"

    def inbox(self, worker: str) -> str:
        return f"{self._tag}inbox:{worker}"

    def leases(self, model: str) -> str:
        return f"{self._tag}leases:{model}"

    @property
    def timers(self) -> str:
        return f"{self._tag}timers"

    def request(self, request: str) -> str:
        return f"{self._tag}request:{request}"

    def input(self, request: str) -> str:
        return f"{self._tag}input:{request}"

    def output(self, request: str) -> str:
        return f"{self._tag}output:{request}"

    def tombstone(self, request: str) -> str:
        return f"{self._tag}tombstone:{request}"

    def feed(self, gateway: str) -> str:
        return f"{self._tag}feed:{gateway}"

    def gateway(self, gateway: str) -> str:
        return f"{self._tag}gateway:{gateway}"

    def idempotency(self, tenant: str, key_sha256: str) -> str:
        return f"{self._tag}idempotency:{tenant}:{key_sha256}"

    @property
    def requests(self) -> str:
        return f"{self._tag}requests"

    @property
    def expiries(self) -> str:
        return f"{self._tag}expiries"

    @property
    def dead(self) -> str:
        return f"{self._tag}dead"

    @property
    def outbox(self) -> str:
        return f"{self._tag}outbox"

    def webhook(self, request: str) -> str:
        return f"{self._tag}webhook:{request}"

    def stats(self, model: str) -> str:
        return f"{self._tag}stats:{model}"

    @property
    def paused(self) -> str:
        return f"{self._tag}paused"

    @property
    def swept(self) -> str:
        return f"{self._tag}swept"

    @property
    def amnesty(self) -> str:
        return f"{self._tag}amnesty"

    @property
    def waited(self) -> str:
        return f"{self._tag}waited"


WORKERS = "workers"
MODELS = "models"


def heartbeat(worker: str) -> str:
    """The key of a worker's heartbeat."""
    return f"worker:{worker}"


def model_card(name: str) -> str:
    """The key of a model's card."""
    return f"model:{name}"


def tokenizer(sha256: str) -> str:
    """The key of stored tokenizer files."""
    return f"tokenizer:{sha256}"


def lengths(model: str) -> str:
    """The key of what was learned of a model's answers."""
    return f"lengths:{check_model_name(model)}"


DRAINS = "drains"
SCALE_STATUS = "{scale}:status"
SCALE_LOG = "{scale}:log"
SCALE_COUNTS = "{scale}:counts"
SCALE_OVERRIDES = "{scale}:overrides"
SCALE_HOSTS = "{scale}:hosts"


def scale_leader(group: str) -> str:
    """The key of who leads a group of pools."""
    return f"{{scale}}:leader:{group}"


def scale_orders(group: str) -> str:
    """The key of a group's desired state."""
    return f"{{scale}}:orders:{group}"


def scale_host(host: str) -> str:
    """The key of a host's report."""
    return f"{{scale}}:host:{host}"


def scale_starts(pool: str) -> str:
    """The key of what was learned of a pool's cold starts."""
    return f"{{scale}}:starts:{pool}"

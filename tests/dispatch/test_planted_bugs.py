"""Bugs planted in the scripts, one at a time: each must be caught by its walk. A law that nobody can break unseen is tested."""

from dataclasses import dataclass

import pytest
from redis.asyncio import Redis

from dispatch.redis_client import connect
from dispatch.scripts import NAMES, compose
from tests.dispatch import late_walks, pin_walks, walks
from tests.dispatch.twin import Broken, Twin


@dataclass(frozen=True)
class Bug:
    name: str
    walk: walks.Walk
    file: str
    old: str
    new: str = ""


G, LINE, NEXT, MEET = "lib/ground.lua", "lib/line.lua", "lib/next.lua", "lib/meet.lua"
LEAVE, LOG = "lib/leave.lua", "lib/log.lua"
PULL, CHOOSE, PIN = "lib/pull.lua", "lib/choose.lua", "lib/pin.lua"
FENCE = "return not r or not is_held(r) or r.nonce ~= nonce or r.attempt ~= tonumber(attempt)"
NOBODY = "if not until_ms then"
LOST = "    lost[#lost + 1] = id\n    lost[#lost + 1] = tonumber(attempt)\n"
COUNTS = "redis.call('HINCRBY', k_webhook(id), 'tried', 1)"
CHARGES = "charge(r, 0, 0, 'engine_error', 'boo')"

BUGS = (
    # the fence
    Bug("no fence", walks.zombie, G, FENCE, "return not r or not is_held(r)"),
    Bug("no nonce check", walks.strangers, G, " or r.nonce ~= nonce"),
    Bug("no attempt check", walks.strangers, G, " or r.attempt ~= tonumber(attempt)"),
    Bug(
        "append without fence",
        walks.zombie,
        "append.lua",
        "if fenced(r, attempt, nonce) or r.state ~= 'running' then",
        "if false then",
    ),
    Bug("finish after death by a lapsed lease is taken", walks.lease_over, "finish.lua", "over.dead == '1'", "false"),
    # the log
    Bug("a gap is taken", walks.whole_life, "append.lua", "if seq > last + 1 then return 'gap' end"),
    Bug("a dup is written twice", walks.whole_life, "append.lua", "if seq <= last then", "if false then"),
    Bug("finish takes a gap", walks.whole_life, "finish.lua", "if tonumber(seq) ~= r.seq + 1 then return 'gap' end"),
    Bug("the chain is not chained", walks.whole_life, LOG, "redis.sha1hex(r.chain .. data)", "redis.sha1hex(data)"),
    Bug("no end entry", walks.whole_life, LEAVE, "  log(r, 'end', told, r.last)\n"),
    Bug("no TTL on the output", walks.whole_life, LOG, "if before == 0 and not r.is_ending then", "if false then"),
    Bug("the feed is not told", walks.whole_life, LOG, "  tell_readers(r, kind, data, last, last_chain)\nend", "end"),
    Bug(
        "the last chunk is not told",
        walks.whole_life,
        LOG,
        "if last then\n        redis.call('XADD', feed",
        "if false then\n        redis.call('XADD', feed",
    ),
    Bug("the last chunk is not written", walks.whole_life, "finish.lua", "  r.last = last\n"),
    Bug(
        "the last chunk has the end's chain",
        walks.whole_life,
        LOG,
        "    last_chain = r.chain\n  end\n  move_on(r, data)\n",
        "  end\n  move_on(r, data)\n  last_chain = last and r.chain\n",
    ),
    Bug("a full feed is cut in silence", walks.slow_gateway, LOG, "        redis.call('XADD', feed, '*', 'cut', '1')\n"),
    Bug(
        "a gateway that was away is not told",
        walks.gateway_away,
        LOG,
        "if not is_reading(gateway) then redis.call('XADD'",
        "if false then redis.call('XADD'",
    ),
    # timers
    Bug("no timer on enqueue", walks.waiting_in_line, LINE, "what_came(r))\n  set_timer(r)", "what_came(r))"),
    Bug("no timer on a grant", walks.whole_life, MEET, "what_came(r))\n  set_timer(r)", "what_came(r))"),
    Bug(
        "deadline lost on renew",
        walks.deadline_while_running,
        "renew.lua",
        "set_timer(r)",
        "redis.call('ZADD', TIMERS, r.lease, id)",
    ),
    Bug("an ended request keeps its timer", walks.whole_life, LEAVE, "drop_timer(r.id)"),
    Bug("sweep charges after its own absence", walks.everybody_was_away, "sweep.lua", "if now < amnesty then", "if false then"),
    Bug(
        "readers are not looked for",
        walks.nobody_reads,
        "sweep.lua",
        NOBODY,
        "until_ms = until_ms or now + 1 if false then",
    ),
    Bug(
        "one reader gone is all gone",
        walks.nobody_reads,
        "sweep.lua",
        NOBODY,
        "if true then",
    ),
    # endings
    Bug(
        "renew after the end",
        walks.deadline_while_running,
        "renew.lua",
        "if fenced(r, attempt, nonce) or r.worker ~= worker then\n" + LOST + "  elseif r.state == 'running' then",
        "if not r then\n" + LOST + "  else",
    ),
    Bug(
        "cancel does not fence",
        walks.cancel_while_running,
        "cancel.lua",
        "room_grew(end_from_outside(r, 'cancelled', 'cancelled', message))",
        "if is_held(r) then stop_worker(r, 'cancelled') end",
    ),
    Bug("cancel leaves the entry", walks.waiting_in_line, LEAVE, "    take_off_line(r)\n"),
    Bug("an ending is overwritten", walks.cancel_after_the_end, "cancel.lua", "if r.ended_at > 0 then", "if false then"),
    Bug("input left after completion", walks.whole_life, LEAVE, "delete_later(k_input(r.id))", "local _ = 0"),
    Bug(
        "no tombstone",
        walks.whole_life,
        LEAVE,
        "redis.call('SET', k_tombstone(r.id), state .. ' ' .. (r.tenant or ''), 'PX', text(keep_ms + TOMBSTONE_MS))",
    ),
    Bug("no dead letter", walks.lease_over, LEAVE, "redis.call('XADD', K_DEAD,", "tostring(K_DEAD,"),
    # the two lines
    Bug("grant forgets XDEL", walks.waiting_in_line, LINE, "redis.call('XDEL', k_line(model, priority, part), entry)"),
    Bug("grant forgets the sizes", walks.waiting_in_line, LINE, "redis.call('ZREM', k_sizes(model, priority, part), entry)"),
    Bug("grant forgets room", walks.whole_life, MEET, "w.used = w.used + r.cost"),
    Bug("grant forgets the slot", walks.whole_life, MEET, "w.held = w.held + 1\n  later", "later"),
    Bug("finish does not free room", walks.whole_life, LEAVE, "w.used = w.used - cost"),
    Bug("room leaks on release", walks.given_back, LEAVE, "later('HDEL', k_held(r.worker), r.id)"),
    Bug(
        "finish does not look at the line",
        walks.waiting_in_line,
        "finish.lua",
        "room_grew(end_request(r, state, detail, RETENTION_MS))",
        "end_request(r, state, detail, RETENTION_MS)",
    ),
    Bug("stale worker granted", walks.worker_unseen, PULL, " and now - w.seen < WORKER_SEEN_MS"),
    Bug(
        "the worst of the parked",
        walks.best_of_the_parked,
        CHOOSE,
        "if not best or score < lowest",
        "if not best or score > lowest",
    ),
    Bug("low before high", walks.by_priority, LINE, "{high = 0, normal = 1, low = 2}", "{high = 2, normal = 1, low = 0}"),
    Bug("given back to the tail", walks.given_back, LEAVE, "arrive(r, ':front')", "arrive(r, '')"),
    Bug("backlog limit off", walks.full_backlog, "enqueue.lua", "if waiting >= MAX_BACKLOG", "if false"),
    Bug(
        "idempotency ignores the body",
        walks.same_key_twice,
        "enqueue.lua",
        "if first_hash ~= (few_have.body_hash or '')",
        "if false",
    ),
    Bug("a paused model is granted", walks.paused, CHOOSE, "if is_paused(r.model) then return nil end"),
    Bug("resume does not meet", walks.paused, "pause.lua", "return meet_all(model)", "return 0"),
    # room that is kept
    Bug("kept room is given to others", pin_walks.kept_room, PULL, " - w.pin_cost"),
    Bug("nobody keeps room", pin_walks.kept_room, PIN, "        keep_room(w, r)\n"),
    Bug("room is kept too early", pin_walks.kept_room, PIN, "if now - entry_since(e) < PIN_MS then return nil end"),
    Bug("what room was kept for is not taken", pin_walks.kept_room, MEET, " + take_pinned(w)"),
    Bug("taken elsewhere, nobody is told", pin_walks.taken_elsewhere, PIN, "freed[#freed + 1] = keeper.id"),
    Bug("cancelled, its room is kept on", pin_walks.cancelled_while_pinned, LEAVE, "      keep_room(w, nil)\n"),
    Bug("two keep room for one", pin_walks.keeper_gone, PIN, " and r.pinned == w.id"),
    Bug("a keeper that is gone keeps it", pin_walks.keeper_gone, PIN, "return is_open(w) and w.pin", "return w and w.pin"),
    Bug("kept where it never fits", pin_walks.keeper_gone, PIN, "if not id or cost > w.limit then return nil end"),
    Bug("kept though it shrank", pin_walks.keeper_shrinks, PIN, " and r.cost <= w.limit"),
    Bug("resume forgets what was kept", pin_walks.paused_while_pinned, MEET, "granted = granted + take_pinned(w)"),
    Bug(
        "a younger one has the room",
        pin_walks.oldest_first,
        PIN,
        "for _, e in ipairs(window) do",
        "for n = #window, 1, -1 do local e = window[n]",
    ),
    Bug("an older one is passed by", pin_walks.older_first, MEET, "if entry == r.entry or", "if true or"),
    Bug("who lets an older one first loses its place", pin_walks.older_first, MEET, "    keep_room(w, r)\n"),
    # prompts, turns, sessions
    Bug("prefill is never done", pin_walks.prefill, PULL, "later('HDEL', k_prefill(w.id), r.id)"),
    Bug("prefill counts for nothing", pin_walks.prefill, MEET, "w.prefill = w.prefill + r.prompt"),
    Bug("the first output moves nobody", pin_walks.prefill, "append.lua", "  room_grew(w)\n"),
    # bound late
    Bug("a closed worker takes more", late_walks.reopened, PULL, "and w.prefill >= OPEN_S * w.prefill_weight", "and false"),
    Bug("closed, it takes all that waits", late_walks.reopened, MEET, "local closed = is_closed(w)", "local closed = false"),
    Bug("closed, it is parked", late_walks.reopened, PULL, "  if is_closed(w) then\n", "  if false then\n"),
    Bug(
        "closed, it has no room",
        late_walks.reopened,
        PULL,
        "stand(w, shut, standing(w))\n    stand(w, k_rooms(w.model), room(w))",
        "stand(w, shut, standing(w))\n    redis.call('ZREM', k_rooms(w.model), w.id)",
    ),
    Bug("it opens too early", late_walks.reopened, PULL, ">= OPEN_S *", ">= 2 * OPEN_S *"),
    Bug("any prompt closes", late_walks.reopened, PULL, ">= OPEN_S *", ">= 0 *"),
    Bug("the first output does not meet", late_walks.reopened, "append.lua", "  room_grew(w)\n", "  store_load(w)\n  park(w)\n"),
    Bug("every output is a first", late_walks.reopened, "append.lua", ", 'prefilling', '0')", ")"),
    Bug("nobody waits for the better", late_walks.waits_for_the_better, CHOOSE, "      return false\n", "      return true\n"),
    Bug("the worse takes who waits", late_walks.waits_for_the_better, NEXT, "if suits(w, r) then best", "if true then best"),
    Bug("a little better is waited for", late_walks.waits_for_the_better, CHOOSE, "here > SLACK *", "here > 1 *"),
    Bug("who is gone is waited for", late_walks.waits_for_the_better, "abandon.lua", "if model then meet_others(model) end\n"),
    Bug("a barred one is closed still", late_walks.waits_for_the_better, PULL, "  not_shut(model, id)\nend", "end"),
    Bug("it takes too much, nobody is told", late_walks.the_better_takes_too_much, MEET, "  not_shut(w.model, w.id)\n"),
    Bug("nobody else looks", late_walks.the_better_takes_too_much, MEET, "  meet_others(w.model)\n"),
    Bug("the better is waited for for ever", late_walks.not_for_ever, CHOOSE, ">= PATIENCE_MS then", ">= 1e12 then"),
    Bug("patience is short", late_walks.not_for_ever, CHOOSE, ">= PATIENCE_MS then", ">= PATIENCE_MS / 2 then"),
    Bug(
        "who is not seen is waited for",
        late_walks.unseen_while_closed,
        CHOOSE,
        "if is_open(w) then found[#found + 1] = w else unpark(model, id) end",
        "found[#found + 1] = w",
    ),
    Bug(
        "a prompt makes nobody younger",
        late_walks.shorter_first,
        NEXT,
        "is_pull(strategy) and since + younger(w, prompt) or since",
        "since",
    ),
    Bug("the line does not tell its prompts", late_walks.shorter_first, LINE, "'prompt', r.prompt or 0", "'prompt', 0"),
    Bug(
        "closed, it leaves who is pinned",
        late_walks.pinned_while_closed,
        MEET,
        "while w.pin and not w.alone do",
        "while w.pin and not w.alone and not is_closed(w) do",
    ),
    Bug("an ending opens nothing", late_walks.silent_to_the_end, LEAVE, "  prefilled(w, r)\n", ""),
    Bug(
        "it reckons a speed it does not know",
        late_walks.speed_unknown,
        PULL,
        "return w.prefill_weight > 0 and w.prefill >= OPEN_S * w.prefill_weight",
        "return w.prefill >= OPEN_S * prefill_speed(w)",
    ),
    Bug(
        "other strategies mind who is closed",
        late_walks.other_strategies,
        CHOOSE,
        "compared = by_id(opened(r.model, with_room(r.model, r.cost, salt .. r.id)))",
        "compared = first_fitting(r.model, r.cost)",
    ),
    Bug(
        "closed, it takes nobody",
        late_walks.other_strategies,
        MEET,
        "  if closed and redis.call('EXISTS', k_others(w.model)) == 0 then",
        "  if closed then",
    ),
    Bug("closed, it takes who goes by pull", late_walks.other_strategies, LINE, " and not is_pull(r.strategy) then", " then"),
    Bug(
        "who left the line is said to wait",
        late_walks.other_strategies,
        LINE,
        "redis.call('ZREM', k_others(model), other_of(priority, part, entry))",
        "local _",
    ),
    Bug(
        "closed, low before high",
        late_walks.other_strategies,
        NEXT,
        "local line = by_age(w.model, lines)[1]",
        "local line = lines[1]",
    ),
    Bug(
        "the others are made younger, too",
        late_walks.others_by_age,
        NEXT,
        "is_pull(strategy) and since + younger(w, prompt) or since",
        "since + younger(w, prompt)",
    ),
    Bug(
        "others fill it, nobody is told",
        late_walks.others_fill_the_better,
        MEET,
        "if is_closed(w) then stirred[r.model] = true end",
    ),
    Bug(
        "others fill it, nobody looks",
        late_walks.others_fill_the_better,
        "enqueue.lua",
        "    meet_others(model)\n    waiting",
        "    waiting",
    ),
    Bug(
        "no suspect comes to a closed one",
        late_walks.a_suspect_finds_it,
        MEET,
        "{k_parked(r.model), k_shut(r.model)}",
        "{k_parked(r.model)}",
    ),
    Bug("the turn is forgotten", pin_walks.turn_by_turn, MEET, "  remember_turn(r, w)\n"),
    Bug(
        "a new worker takes a flood",
        pin_walks.turn_by_turn,
        CHOOSE,
        "math.max(w.turns, turn - 1 / w.weight)",
        "w.turns",
    ),
    Bug(
        "a session meets who is not parked",
        pin_walks.session_given_back,
        CHOOSE,
        " and redis.call('ZSCORE', k_rooms(r.model), last)",
    ),
    Bug("a hot session does not spill", pin_walks.session, CHOOSE, "if w.held + 1 > bound", "if false"),
    # grants and charges
    Bug("begin leaves the grant in the inbox", walks.whole_life, "begin.lua", "  trim_later(k_inbox(r.worker), r.inbox)"),
    Bug(
        "begin forgets what nobody read",
        walks.begun_first,
        "lib/later.lua",
        "'MINID', ms .. '-' .. n + 1",
        "'MINID', ms + 1000 .. '-0'",
    ),
    Bug(
        "a grant that is taken back forgets what stands before it",
        walks.begun_first,
        LEAVE,
        "later('XDEL', k_inbox(r.worker), r.inbox)",
        "trim_later(k_inbox(r.worker), r.inbox)",
    ),
    Bug("release charges", walks.given_back, "release.lua", "give_back(r, 'given back unfinished')", CHARGES),
    Bug("retry does not charge", walks.fault_after_fault, LEAVE, "r.charged = r.charged + 1"),
    Bug("backoff grows too fast", walks.fault_after_fault, LEAVE, "2 ^ r.charged", "9 ^ (r.charged + 1)"),
    Bug("not begun charges", walks.not_begun, "sweep.lua", "local w = give_back(r, 'not begun in time')", f"local w = {CHARGES}"),
    Bug(
        "not begun: its worker stays parked",
        walks.not_begun,
        "sweep.lua",
        "w.seen = 0\n      redis.call('HSET', k_worker(w.id), 'seen', 0)",
    ),
    Bug("abandon does not bar", walks.engine_died, "abandon.lua", "redis.call('HSET', k_worker(worker), 'barred', evidence)"),
    Bug("crashes are not counted", walks.engine_died, LEAVE, "r.crashes = r.crashes + crash"),
    Bug("a suspect runs beside others", walks.engine_died, MEET, "if (r.crashes or 0) > 0 then return arrive_alone(r) end"),
    Bug("beside a suspect others run", walks.engine_died, PULL, "if w.alone or w.held", "if w.held"),
    Bug("the suspect's worker is not kept free", walks.engine_died, MEET, "  keep_free(w, r.id)\n"),
    Bug("age outweighs no priority", walks.long_waiting, NEXT, " + RANK[line[1]] * AGEING_MS", " + RANK[line[1]] * 1e9"),
    Bug("the next attempt is not told", walks.lease_over, "begin.lua", "    log(r, 'note',", "    tostring('note',"),
    Bug("the list never forgets", walks.forgotten, LEAVE, "  later('ZADD', K_EXPIRIES, text(now + keep_ms), r.id)"),
    # webhooks
    Bug("an ending owes nothing", walks.told, LEAVE, "  owe_webhook(r)\n"),
    Bug(
        "who did not ask is owed", walks.told, LEAVE, "if (r.webhook or '') == '' then return end", "r.webhook = r.webhook or ''"
    ),
    Bug("an ending is owed outside the outbox", walks.told, LEAVE, "  redis.call('ZADD', K_OUTBOX, now, r.id)\n"),
    Bug("an owed webhook is kept for ever", walks.told, LEAVE, "redis.call('PEXPIRE', k_webhook(r.id), WEBHOOK_MS)"),
    Bug(
        "a finish forgets which endings were asked for",
        walks.told_of_some,
        LEAVE,
        " or redis.call('HGET', k_request(r.id), 'webhook_events')",
    ),
    Bug("every ending is told", walks.told_of_some, LEAVE, "if wanted ~= '' and not", "if false and not"),
    Bug(
        "whoever takes it is trusted",
        walks.tried_again,
        "take_owed.lua",
        "redis.call('ZADD', K_OUTBOX, now + again_ms, id)",
        "redis.call('ZREM', K_OUTBOX, id)",
    ),
    Bug("taken by two", walks.tried_again, "take_owed.lua", "redis.call('ZADD', K_OUTBOX, now + again_ms, id)"),
    Bug(
        "what was put off counts",
        walks.tried_again,
        "note_try.lua",
        "if verdict == 'later' then",
        f"if verdict == 'later' then {COUNTS}",
    ),
    Bug(
        "a try is noted twice",
        walks.tried_again,
        "note_try.lua",
        "if tonumber(number) ~= tried + 1 and verdict ~= 'delivered' then return state end",
    ),
    Bug("a late delivery is not taken", walks.tried_again, "note_try.lua", " and verdict ~= 'delivered'"),
    Bug("given up after it was delivered", walks.tried_again, "note_try.lua", "if state ~= 'owed' then return state end"),
    Bug("a noted try waits for nothing", walks.tried_again, "note_try.lua", "now + tonumber(wait_ms)", "now"),
    Bug(
        "what is over stays in the outbox",
        walks.tried_again,
        "note_try.lua",
        "verdict)\nredis.call('ZREM', K_OUTBOX, id)",
        "verdict)",
    ),
    Bug("beside a crash is a crash", walks.engine_died, "abandon.lua", "suspects[id] or 0", "1"),
)
WALKS = sorted({bug.walk for bug in BUGS}, key=lambda walk: walk.__name__)


@pytest.mark.parametrize("walk", WALKS, ids=lambda walk: walk.__name__)
async def test_the_walk_passes_on_the_scripts_as_they_are(redis: Redis, walk: walks.Walk) -> None:
    await walk(Twin(redis, walks.RULES))


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
async def test_the_planted_bug_is_caught(server_url: str, bug: Bug) -> None:
    scripts = {name: compose(name, walks.RULES, edit={bug.file: (bug.old, bug.new)}) for name in NAMES}
    redis = connect(server_url)  # not the fixture: a planted bug may well leak keys
    try:
        await redis.flushall()
        with pytest.raises(Broken):
            await bug.walk(Twin(redis, walks.RULES, scripts))
    finally:
        await redis.aclose()

-- A request leaves its place: for an ending, or back towards the line.

-- What became of an attempt that did not end the request, for `request show`: the last ones are kept.
local function tell(r, why)
  local line = cjson.encode({attempt = r.attempt, worker = r.worker, granted_at = r.granted_at, begun_at = r.state == 'running' and r.attempt_begun_at or 0,
    left_at = now, seq = r.seq, why = why}) .. '\n'
  local story = (r.story or '') .. line
  while #story > STORY_BYTES do story = string.match(story, '^[^\n]*\n(.*)$') end
  r.story = story
  redis.call('HSET', k_request(r.id), 'story', story)
end

-- Off whoever holds it. Returns that worker: the caller stores its load, or lets it take what waits by room_grew.
local function take_away(r)
  later('SREM', k_leases(r.model), r.id)
  if r.state == 'granted' and r.inbox then later('XDEL', k_inbox(r.worker), r.inbox) end
  -- It is held at the price it was granted at; its own may have risen since.
  local cost = r.repriced and tonumber(field_now(k_held(r.worker), r.id)) or r.cost
  later('HDEL', k_held(r.worker), r.id)
  local w = read_worker(r.worker)
  if not w then return nil end
  w.used = w.used - cost
  w.held = w.held - 1
  prefilled(w, r)
  if w.alone == r.id then keep_free(w, nil) end
  return w
end

-- The same for one that is not over: it must not meet this very pull before room_grew.
local function let_go(r)
  local w = take_away(r)
  if w then
    store_load(w)
    unpark(w.model, w.id)
  end
  return w
end

-- Off the line it waits in, or off the worker that holds it. Returns the worker whose room grew, as take_away does.
local function leave_place(r)
  if r.state == 'queued' then
    take_off_line(r)
    if has_pin(r) then
      local w = read_worker(r.pinned)
      keep_room(w, nil)
      return w
    end
    if not has_place(r) then return nil end
    local w = read_worker(r.reserved)
    keep_free(w, nil)
    return w
  end
  if is_held(r) then return take_away(r) end
  return nil
end

-- Bounded, for nobody takes a stop out again: one that is trimmed away is told by renew, an unread grant by its lease.
local function stop_worker(r, reason)
  redis.call('XADD', k_inbox(r.worker), 'MAXLEN', '~', 1000, '*', 'stop', r.id .. ' ' .. text(r.attempt) .. ' ' .. reason)
  redis.call('PEXPIRE', k_inbox(r.worker), WORKER_TTL_MS)
end

-- In a text of the detail the quotes would be escaped.
local function count_tokens(model, detail, what, said)
  local _, to = string.find(detail, said, 1, true)
  local tokens = to and string.match(detail, '^%s*(%d+)', to + 1)
  if tokens then count(model, what, tonumber(tokens)) end
end

-- Who asked to be told of this ending is owed it from here on: written with the ending, so that no crash lies between.
local function owe_webhook(r)
  if (r.webhook or '') == '' then return end
  local wanted = r.webhook_events or redis.call('HGET', k_request(r.id), 'webhook_events') or ''
  if wanted ~= '' and not string.find(' ' .. wanted .. ' ', ' ' .. r.state .. ' ', 1, true) then return end
  redis.call('HSET', k_webhook(r.id), 'url', r.webhook, 'state', 'owed', 'ending', r.state, 'model', r.model, 'created', r.created,
    'ended', now, 'tried', 0, 'tries', '')
  redis.call('PEXPIRE', k_webhook(r.id), WEBHOOK_MS)
  redis.call('ZADD', K_OUTBOX, now, r.id)
end

local quoted -- a worker's name in JSON: one ends many
do
  local known = {}
  quoted = function(worker)
    if not known[worker] then known = {[worker] = cjson.encode(worker)} end
    return known[worker]
  end
end

-- THE ending. detail: a JSON object. keep_ms: how long what is left is kept. Returns the worker whose room grew, or nil.
local function end_request(r, state, detail, keep_ms)
  local w = leave_place(r)
  -- All that an answer tells beside the output: who waits for it need not ask for the record. Behind the detail, so that it holds.
  local told = (#detail > 2 and string.sub(detail, 1, -2) .. ',' or '{') .. '"state":"' .. state .. '","attempts":' .. text(r.attempt)
    .. ',"worker":' .. quoted(r.worker or '') .. ',"created_at_ms":' .. (r.created or 0) .. ',"begun_at_ms":' .. (r.begun_at or 0)
    .. ',"first_output_at_ms":' .. (r.first_output_at or 0) .. ',"ended_at_ms":' .. text(now) .. '}'
  renew_log(r)
  log(r, 'end', told, r.last)
  redis.call('HSET', k_request(r.id), 'state', state, 'seq', text(r.seq), 'chain', r.chain, 'first_output_at', r.first_output_at or '0',
    'ended_at', text(now))
  drop_timer(r.id)
  redis.call('PEXPIRE', k_request(r.id), text(keep_ms))
  redis.call('PEXPIRE', k_output(r.id), text(keep_ms))
  if state == 'completed' then delete_later(k_input(r.id)) else redis.call('PEXPIRE', k_input(r.id), keep_ms) end
  redis.call('SET', k_tombstone(r.id), state .. ' ' .. (r.tenant or ''), 'PX', text(keep_ms + TOMBSTONE_MS))
  later('ZADD', K_EXPIRIES, text(now + keep_ms), r.id)
  count(r.model, state)
  count_tokens(r.model, detail, 'prompt_tokens', '"prompt_tokens":')
  count_tokens(r.model, detail, 'completion_tokens', '"completion_tokens":')
  r.state = state
  owe_webhook(r)
  return w
end

local function error_detail(code, message)
  return '{"error":' .. cjson.encode({code = code, message = message}) .. '}'
end

-- An ending that its worker did not write: it is told to stop.
local function end_from_outside(r, state, code, message)
  local held = is_held(r)
  local w = end_request(r, state, error_detail(code, message), RETENTION_MS)
  if held then stop_worker(r, state) end
  return w
end

-- Back to the head of its line (or to a parked pull that has room for it), as the table of states allows.
local function give_back(r, why)
  tell(r, why)
  local w = let_go(r)
  arrive(r, ':front')
  return w
end

-- A grant counts towards the limit of attempts. delay_ms 0: back at once. Returns the worker whose room grew, or nil.
local function charge(r, crash, delay_ms, code, message)
  r.charged = r.charged + 1
  r.crashes = r.crashes + crash
  redis.call('HSET', k_request(r.id), 'charged', r.charged, 'crashes', r.crashes)
  count(r.model, 'charged')
  if r.charged >= r.max_attempts or r.crashes >= CRASH_LIMIT then
    redis.call('HSET', k_request(r.id), 'dead', '1')
    redis.call('XADD', K_DEAD, 'MINID', '~', math.max(now - DEAD_MS, 0), '*', 'id', r.id, 'model', r.model, 'code', code,
      'message', message, 'charged', r.charged, 'crashes', r.crashes, 'worker', r.worker)
    redis.call('PEXPIRE', K_DEAD, DEAD_MS)
    count(r.model, 'dead')
    local why = 'After ' .. r.charged .. ' charged attempts (' .. r.crashes .. ' crashes); the last: ' .. message
    return end_request(r, 'failed', '{"error":' .. cjson.encode({code = code, message = why, dead = true}) .. '}', DEAD_MS)
  end
  if delay_ms == 0 then return give_back(r, message) end
  tell(r, message)
  local w = let_go(r)
  r.state = 'waiting'
  r.not_before = now + delay_ms
  redis.call('HSET', k_request(r.id), 'state', 'waiting', 'not_before', r.not_before)
  set_timer(r)
  return w
end

-- Doubles with each charge, with jitter of +-50 %.
local function backoff(r)
  local jitter = 0.5 + tonumber(string.sub(redis.sha1hex(salt .. r.id), 1, 4), 16) / 65536
  return math.max(1, math.floor(math.min(BACKOFF_MS * 2 ^ r.charged, BACKOFF_MAX_MS) * jitter))
end

-- The ground under every script: names of keys, the clock, reading a request.
-- KEYS[1] is the shard's timers; every other name follows from its tag. dispatch/keys.py says what each key holds.
local TIMERS, TAG
local K_REQUESTS, K_EXPIRIES, K_PAUSED, K_DEAD, K_OUTBOX
local ONE_DAY_MS = 86400000
local WORKER_TTL_MS = 3600000

local function k_request(id) return TAG .. 'request:' .. id end
local function k_input(id) return TAG .. 'input:' .. id end
local function k_output(id) return TAG .. 'output:' .. id end
local function k_tombstone(id) return TAG .. 'tombstone:' .. id end
local function k_worker(id) return TAG .. 'worker:' .. id end
local function k_held(id) return TAG .. 'held:' .. id end
local function k_prefill(id) return TAG .. 'prefill:' .. id end
local function k_inbox(id) return TAG .. 'inbox:' .. id end
local function k_parked(model) return TAG .. 'parked:' .. model end
local function k_rooms(model) return TAG .. 'rooms:' .. model end
local function k_shut(model) return TAG .. 'shut:' .. model end
local function k_others(model) return TAG .. 'others:' .. model end
local function k_pins(model) return TAG .. 'pins:' .. model end
local function k_leases(model) return TAG .. 'leases:' .. model end
local function k_stats(model) return TAG .. 'stats:' .. model end
local function k_feed(gateway) return TAG .. 'feed:' .. gateway end
local function k_webhook(id) return TAG .. 'webhook:' .. id end
local function k_gateway(gateway) return TAG .. 'gateway:' .. gateway end

-- Only Redis's clock counts; tests hand in one of their own.
local function start_call(timers)
  if timers ~= TIMERS then
    TIMERS = timers
    TAG = string.sub(timers, 1, -7)
    K_REQUESTS = TAG .. 'requests'
    K_EXPIRIES = TAG .. 'expiries'
    K_PAUSED = TAG .. 'paused'
    K_DEAD = TAG .. 'dead'
    K_OUTBOX = TAG .. 'outbox'
  end
  if now == '' then
    local time = redis.call('TIME')
    now = time[1] * 1000 + math.floor(time[2] / 1000)
  else
    now = tonumber(now)
  end
  for _, anew in ipairs(at_start) do anew() end
end

local NUMBERS = {'cost', 'attempt', 'charged', 'crashes', 'lease', 'not_before', 'deadline', 'seq', 'reader_look',
  'max_attempts', 'created', 'queued_at', 'granted_at', 'begun_at', 'first_output_at', 'ended_at',
  'attempt_begun_at', 'prompt', 'prefilling'}
local IS_NUMBER = {}
for i = 1, #NUMBERS do IS_NUMBER[NUMBERS[i]] = true end -- at load there is no ipairs

-- A request's hash as a table, or nil. What is no request of ours (another type, another's fields) is nil as well:
-- one damaged record must not stop the sweep of all.
local function read_request(id)
  local flat = redis.pcall('HGETALL', k_request(id))
  if flat.err or #flat == 0 then return nil end
  local r = {id = id}
  for i = 1, #flat, 2 do r[flat[i]] = flat[i + 1] end
  if not (r.model and r.state and r.chain) then return nil end
  for _, field in ipairs(NUMBERS) do r[field] = tonumber(r[field]) or 0 end
  r.session = r.session or ''
  return r
end

-- The same with these fields alone: where few are needed, the others are most of the cost.
local function read_some(id, fields)
  local found = redis.pcall('HMGET', k_request(id), unpack(fields))
  if found.err or not found[1] then return nil end
  local r = {id = id}
  for i, field in ipairs(fields) do
    if IS_NUMBER[field] then r[field] = tonumber(found[i]) or 0 else r[field] = found[i] or nil end
  end
  return r
end

local seen -- workers, in this call
at_start[#at_start + 1] = function() seen = {} end

-- A worker was heard of. Not for scripts that read workers: what these know of one is written past.
local function see(worker)
  if seen[worker] then return end
  seen[worker] = true
  if redis.call('EXISTS', k_worker(worker)) == 1 then redis.call('HSET', k_worker(worker), 'seen', text(now)) end
end

-- All that a request came with, to be stored with the first of its fields in one write; nothing afterwards.
local function what_came(r)
  local came = r.unstored
  r.unstored = nil
  if came then return unpack(came) end
end

local function is_held(r) return r.state == 'granted' or r.state == 'running' end

-- The fence: only the grant that holds the request now may write for it.
local function fenced(r, attempt, nonce)
  return not r or not is_held(r) or r.nonce ~= nonce or r.attempt ~= tonumber(attempt)
end

-- The next moment the sweeper must look at it.
local function next_look(r)
  local at = r.deadline
  if is_held(r) then at = math.min(at, r.lease) end
  if r.state == 'waiting' then at = math.min(at, r.not_before) end
  if r.on_disconnect == 'cancel' and r.reader_look > 0 then at = math.min(at, r.reader_look) end
  return at
end

local function set_timer(r) later('ZADD', TIMERS, text(next_look(r)), r.id) end
local function drop_timer(id) later('ZREM', TIMERS, id) end

-- How a request ended that is no longer kept, or nil.
local function tombstone(id)
  local stone = redis.call('GET', k_tombstone(id))
  return stone and string.match(stone, '^%S+')
end

local function count(model, what, by) sum_later(k_stats(model), what, by or 1) end

-- The ground under every script: names of keys, the clock, reading a request.
-- KEYS[1] is the shard's timers; every other name follows from its tag. dispatch/keys.py says what each key holds.
local TIMERS, TAG
local K_REQUESTS, K_EXPIRIES, K_PAUSED, K_DEAD, K_OUTBOX
local ONE_DAY_MS = 86400000
local WORKER_TTL_MS = 3600000

local function k_input(id) return TAG .. 'input:' .. id end
local function k_tombstone(id) return TAG .. 'tombstone:' .. id end
local function k_webhook(id) return TAG .. 'webhook:' .. id end

-- A step asks for the same request's keys again and again: the last is remembered.
local function last_key_of(area)
  local last, key, tag
  return function(id)
    if id == last and tag == TAG then return key end
    last, key, tag = id, TAG .. area .. ':' .. id, TAG
    return key
  end
end

local k_request = last_key_of('request')
local k_output = last_key_of('output')

-- Workers, gateways and models come again and again: their keys are put together once.
local function keys_of(area)
  local known, count, tag = {}, 0, nil
  return function(name)
    local key = tag == TAG and known[name]
    if key then return key end
    if tag ~= TAG or count == 100 then known, count, tag = {}, 0, TAG end
    count = count + 1
    key = TAG .. area .. ':' .. name
    known[name] = key
    return key
  end
end

local k_worker = keys_of('worker')
local k_held = keys_of('held')
local k_prefill = keys_of('prefill')
local k_inbox = keys_of('inbox')
local k_parked = keys_of('parked')
local k_rooms = keys_of('rooms')
local k_shut = keys_of('shut')
local k_others = keys_of('others')
local k_pins = keys_of('pins')
local k_leases = keys_of('leases')
local k_stats = keys_of('stats')
local k_feed = keys_of('feed')
local k_gateway = keys_of('gateway')

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

-- Where the chain of a request's log begins: at the random part of its id.
local function chain_of(id) return string.sub(id, -16) end

local NUMBERS = {'cost', 'attempt', 'charged', 'crashes', 'lease', 'not_before', 'deadline', 'seq', 'reader_look',
  'max_attempts', 'created', 'queued_at', 'granted_at', 'begun_at', 'first_output_at', 'ended_at',
  'attempt_begun_at', 'prompt', 'prefilling'}

-- What never changes of a request are two fields, and what comes with a grant another: each field of a hash is searched for among all.
-- words_of_asked, words_of_what and words_of_grant take them apart: they are made of dispatch/records.py's lists.

-- A request's hash as a table, or nil. What is no request of ours (another type, another's fields) is nil as well:
-- one damaged record must not stop the sweep of all. Version 1 had a field for each word.
local function read_request(id)
  local flat = redis.pcall('HGETALL', k_request(id))
  if flat.err or #flat == 0 then return nil end
  local r = {id = id}
  for i = 1, #flat, 2 do r[flat[i]] = flat[i + 1] end
  if r.asked then
    local then_continue = r.on_disconnect
    r.v, r.deadline, r.created, r.max_attempts, r.prompt = words_of_asked(r.asked)
    r.on_disconnect, r.kind, r.priority, r.strategy, r.model, r.tenant = words_of_what(r.what or '')
    r.on_disconnect = then_continue or r.on_disconnect
    if r.strategy == '-' then r.strategy = '' end
  else
    r.of_version_1 = true
  end
  if r.grant then r.attempt, r.nonce, r.worker, r.inbox, r.granted_at = words_of_grant(r.grant) end
  if not (r.model and r.state) then return nil end
  for _, field in ipairs(NUMBERS) do r[field] = tonumber(r[field]) or 0 end
  r.session = r.session or ''
  if r.attempt_begun_at == 0 then r.attempt_begun_at = r.begun_at end
  r.chain = r.chain or chain_of(id)
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

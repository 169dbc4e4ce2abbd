#!lua
-- enqueue: a request comes in. It is stored and meets a parked pull, or waits in line.
-- use: later ground line log pull choose pin next meet
-- args: now
-- each: salt id model kind priority tenant cost input deadline_ms max_attempts on_disconnect reader prompt strategy more
-- more: nothing, or a JSON object of what few have: idempotency body_hash retry_of session webhook webhook_events
-- returns "status id state position backlog": ok | replay | mismatch | full
local NOTHING = {}
local STORED = {'retry_of', 'session', 'webhook', 'webhook_events'}

local function extend(words, field, value)
  local n = #words
  words[n + 1] = field
  words[n + 2] = value
end

local new -- ids that nobody knew ahead
at_start[#at_start + 1] = function() new = {} end

local function ahead(ids)
  local keys = {}
  for i = 1, #ids do
    keys[2 * i - 1] = k_request(ids[i])
    keys[2 * i] = k_tombstone(ids[i])
  end
  if redis.call('EXISTS', unpack(keys)) > 0 then return end
  for i = 1, #ids do new[ids[i]] = true end
end
-- one:
if not new[id] and redis.call('EXISTS', k_request(id), k_tombstone(id)) > 0 then
  local known = redis.call('HGET', k_request(id), 'state') or tombstone(id)
  return 'ok ' .. id .. ' ' .. known .. ' 0 ' .. count_waiting(model)
end
new[id] = nil

local few_have = more == '' and NOTHING or cjson.decode(more)
local k_idempotency = few_have.idempotency and TAG .. 'idempotency:' .. tenant .. ':' .. few_have.idempotency
if k_idempotency then
  local first = redis.call('GET', k_idempotency)
  if first then
    local first_id, first_hash = string.match(first, '^(%S+) (%S*)$')
    if first_hash ~= (few_have.body_hash or '') then return 'mismatch ' .. first_id .. ' queued 0 0' end
    local state = redis.call('HGET', k_request(first_id), 'state') or tombstone(first_id) or 'expired'
    return 'replay ' .. first_id .. ' ' .. state .. ' 0 0'
  end
end

local span = tonumber(deadline_ms)
local r = { -- with room for what a grant adds: a table that grows is made anew
  id = id, model = model, priority = priority, cost = tonumber(cost), state = 'queued', attempt = 0, deadline = now + span,
  on_disconnect = on_disconnect, reader_look = on_disconnect == 'cancel' and now + READER_LEASE_MS or 0,
  prompt = tonumber(prompt), strategy = strategy, session = few_have.session or '',
  met = false, nonce = false, worker = false, lease = false, inbox = false, meetings = false, prefilling = false, unstored = false,
}
local w = find_worker(r)
while stirred[model] do -- each time one less of the closed is there
  meet_others(model)
  w = find_worker(r)
end
local waiting, before = count_waiting(model, priority)
if not w then
  if waiting >= MAX_BACKLOG then return 'full ' .. id .. ' queued ' .. waiting .. ' ' .. waiting end
end

local at = text(now)
local asked = '2 ' .. text(r.deadline) .. ' ' .. at .. ' ' .. max_attempts .. ' ' .. prompt
local what = on_disconnect .. ' ' .. kind .. ' ' .. priority .. ' ' .. (strategy == '' and '-' or strategy) .. ' ' .. model .. ' ' .. tenant
r.unstored = {'asked', asked, 'what', what, 'cost', cost}
if reader ~= '' then extend(r.unstored, 'readers', reader) end
if r.reader_look > 0 then extend(r.unstored, 'reader_look', text(r.reader_look)) end
for _, field in ipairs(few_have == NOTHING and NOTHING or STORED) do
  if few_have[field] then extend(r.unstored, field, few_have[field]) end
end
if w then grant(r, w) else wait_in_line(r, '') end
local ttl = span + RETENTION_MS + ONE_DAY_MS
redis.call('PEXPIRE', k_request(id), text(ttl))
redis.call('SET', k_input(id), input, 'PX', text(ttl))
later('ZADD', K_REQUESTS, at, id)
if k_idempotency then redis.call('SET', k_idempotency, id .. ' ' .. (few_have.body_hash or ''), 'PX', IDEMPOTENCY_MS) end
if reader ~= '' then touch_gateway(reader) end
count(model, 'enqueued')
if w then
  store_load(w)
  park(w)
  if stirred[model] then
    meet_others(model)
    waiting = count_waiting(model)
  end
  return 'ok ' .. id .. ' granted 0 ' .. waiting
end
return 'ok ' .. id .. ' queued ' .. before + 1 .. ' ' .. waiting + 1

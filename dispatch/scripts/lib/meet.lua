-- Two lines meet. Whoever comes second finds the first, in the same script.
-- Invariant: after every script no waiting request and parked pull are left that may meet.

local function read_worker(id)
  local f = redis.call('HMGET', k_worker(id), 'model', 'limit', 'slots', 'weight', 'used', 'held', 'seen', 'accepting', 'barred')
  if not f[1] then return nil end
  return {
    id = id, model = f[1], limit = tonumber(f[2]), slots = tonumber(f[3]), weight = tonumber(f[4]),
    used = tonumber(f[5]), held = tonumber(f[6]), seen = tonumber(f[7]),
    open = f[8] == '1' and not f[9],
  }
end

-- A worker not seen lately is passed over, whatever it offered.
local function is_open(w) return w and w.open and now - w.seen < WORKER_SEEN_MS end

local function room(w)
  if w.held >= w.slots then return 0 end
  return w.limit - w.used
end

-- THE score: it orders the parked pulls, lowest is next. Weighted least connections.
local function score(w) return (w.held + 1) / w.weight end

local function store_load(w) redis.call('HSET', k_worker(w.id), 'used', w.used, 'held', w.held) end

local function park(w)
  if is_open(w) and room(w) > 0 then
    redis.call('ZADD', k_parked(w.model), score(w), w.id)
    redis.call('PEXPIRE', k_parked(w.model), WORKER_TTL_MS)
  else
    redis.call('ZREM', k_parked(w.model), w.id)
  end
end

-- The request comes under a lease of w. The caller has taken it off its line, and stores w's load and parks it after.
local function grant(r, w)
  r.attempt = r.attempt + 1
  r.nonce = string.sub(redis.sha1hex(salt .. r.id .. r.attempt), 1, 16)
  r.state = 'granted'
  r.worker = w.id
  r.lease = now + GRANT_MS
  w.used = w.used + r.cost
  w.held = w.held + 1
  redis.call('HSET', k_held(w.id), r.id, r.cost)
  redis.call('SADD', k_leases(r.model), r.id)
  r.inbox = redis.call('XADD', k_inbox(w.id), '*',
    'kind', 'grant', 'id', r.id, 'attempt', r.attempt, 'nonce', r.nonce, 'cost', r.cost)
  redis.call('PEXPIRE', k_held(w.id), WORKER_TTL_MS)
  redis.call('PEXPIRE', k_inbox(w.id), WORKER_TTL_MS)
  redis.call('HSET', k_request(r.id), 'state', 'granted', 'attempt', r.attempt, 'nonce', r.nonce, 'worker', w.id,
    'lease', r.lease, 'inbox', r.inbox, 'granted_at', now)
  set_timer(r)
end

-- The parked pull with the lowest score that has room, or nil.
local function find_worker(model, cost)
  if is_paused(model) then return nil end
  local key, from = k_parked(model), 0
  while true do
    local page = redis.call('ZRANGE', key, from, from + 15)
    if #page == 0 then return nil end
    for _, id in ipairs(page) do
      local w = read_worker(id)
      if not is_open(w) then
        redis.call('ZREM', key, id)
      elseif room(w) >= cost then
        return w
      else
        from = from + 1
      end
    end
  end
end

-- A request that waits nowhere yet: granted at once, or put in line.
local function arrive(r, part)
  local w = find_worker(r.model, r.cost)
  if w then
    grant(r, w)
    store_load(w)
    park(w)
  else
    put_in_line(r, part)
  end
end

-- Grant one entry of a line to w. An entry that stands for no waiting request is dropped and counted.
local function take_entry(w, line, entry, id)
  remove_entry(w.model, line[1], line[2], entry)
  local r = id and read_request(id)
  if r and r.state == 'queued' and r.entry == entry then
    grant(r, w)
    return 1
  end
  count(w.model, 'bad_entries')
  return 0
end

local function entry_fields(e)
  local id, cost = nil, 0
  for i = 1, #e[2], 2 do
    if e[2][i] == 'id' then id = e[2][i + 1] elseif e[2][i] == 'cost' then cost = tonumber(e[2][i + 1]) or 0 end
  end
  return id, cost
end

-- One pass over the head of a line: grant what fits, oldest first. Returns how many were granted and looked away.
local function take_head(w, line)
  local granted, progress = 0, false
  for _, e in ipairs(redis.call('XRANGE', k_line(w.model, line[1], line[2]), '-', '+', 'COUNT', 32)) do
    local id, cost = entry_fields(e)
    if room(w) <= 0 then break end
    if not id or cost <= room(w) then
      granted = granted + take_entry(w, line, e[1], id)
      progress = true
    end
  end
  return granted, progress
end

-- Nothing at the head fits, something behind it does: the oldest of the smallest.
local function take_smallest(w, line)
  local small = redis.call('ZRANGE', k_sizes(w.model, line[1], line[2]), '-inf', room(w), 'BYSCORE', 'LIMIT', 0, 32)
  local oldest, oldest_ms, oldest_n = nil, nil, nil
  for _, entry in ipairs(small) do
    local ms, n = string.match(entry, '^(%d+)-(%d+)$')
    ms, n = tonumber(ms), tonumber(n)
    if not oldest or ms < oldest_ms or (ms == oldest_ms and n < oldest_n) then oldest, oldest_ms, oldest_n = entry, ms, n end
  end
  if not oldest then return 0 end
  local found = redis.call('XRANGE', k_line(w.model, line[1], line[2]), oldest, oldest)
  local id = #found == 1 and entry_fields(found[1]) or nil
  return take_entry(w, line, oldest, id)
end

-- w's room grew: it takes waiting requests that fit, by priority and age, and is parked again with what is left.
local function room_grew(w)
  if not w then return 0 end
  local granted = 0
  if is_open(w) and room(w) > 0 and not is_paused(w.model) then
    for _, line in ipairs(LINES) do
      while room(w) > 0 do
        local least = redis.call('ZRANGE', k_sizes(w.model, line[1], line[2]), 0, 0, 'WITHSCORES')
        if #least == 0 or tonumber(least[2]) > room(w) then break end
        local took, progress = take_head(w, line)
        if not progress then took = take_smallest(w, line) end
        granted = granted + took
      end
    end
  end
  store_load(w)
  park(w)
  return granted
end

-- Every waiting request, by priority and age, meets the best of the parked pulls: for when many of both were kept apart.
local function meet_all(model)
  local granted = 0
  for _, line in ipairs(LINES) do
    local after = '-'
    while true do
      local page = redis.call('XRANGE', k_line(model, line[1], line[2]), after, '+', 'COUNT', 100)
      if #page == 0 then break end
      if redis.call('ZCARD', k_parked(model)) == 0 then return granted end
      for _, e in ipairs(page) do
        local id, cost = entry_fields(e)
        local w = find_worker(model, cost)
        if w then
          granted = granted + take_entry(w, line, e[1], id)
          store_load(w)
          park(w)
        end
      end
      after = '(' .. page[#page][1]
    end
  end
  return granted
end

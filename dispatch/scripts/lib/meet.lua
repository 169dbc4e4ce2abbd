-- Two lines meet. Whoever comes second finds the first, in the same script.
-- Invariant: after every script no waiting request and parked pull are left that may meet.

local function read_worker(id)
  local f = redis.call('HMGET', k_worker(id), 'model', 'limit', 'slots', 'weight', 'used', 'held', 'seen', 'accepting', 'barred', 'alone')
  if not f[1] then return nil end
  return {
    id = id, model = f[1], limit = tonumber(f[2]), slots = tonumber(f[3]), weight = tonumber(f[4]),
    used = tonumber(f[5]), held = tonumber(f[6]), seen = tonumber(f[7]),
    open = f[8] == '1' and not f[9],
    alone = f[10] ~= '' and f[10] or nil, -- the suspect it runs, or is kept free for: it takes nothing beside
  }
end

-- A worker not seen lately is passed over, whatever it offered.
local function is_open(w) return w and w.open and now - w.seen < WORKER_SEEN_MS end

local function room(w)
  if w.alone or w.held >= w.slots then return 0 end
  return w.limit - w.used
end

-- THE score: it orders the parked pulls, lowest is next. Weighted least connections.
local function score(w) return (w.held + 1) / w.weight end

local function store_load(w) redis.call('HSET', k_worker(w.id), 'used', w.used, 'held', w.held) end

local function unpark(model, id)
  redis.call('ZREM', k_parked(model), id)
  redis.call('ZREM', k_rooms(model), id)
end

local function park(w)
  if is_open(w) and room(w) > 0 then
    redis.call('ZADD', k_parked(w.model), score(w), w.id)
    redis.call('ZADD', k_rooms(w.model), room(w), w.id)
    redis.call('PEXPIRE', k_parked(w.model), WORKER_TTL_MS)
    redis.call('PEXPIRE', k_rooms(w.model), WORKER_TTL_MS)
  else
    unpark(w.model, w.id)
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

-- The best of the few parked pulls named, or nil.
local function best_of(model, ids)
  local best = nil
  for _, id in ipairs(ids) do
    local w = read_worker(id)
    if not is_open(w) then
      unpark(model, id)
    elseif not best or score(w) < score(best) or (score(w) == score(best) and w.id < best.id) then
      best = w
    end
  end
  return best
end

-- The parked pull with the lowest score that has room, or nil. Where few have room these are compared; where many have,
-- the order of scores soon comes to one. So a full fleet costs no more than an empty one.
local function find_worker(model, cost)
  if is_paused(model) then return nil end
  local fitting = redis.call('ZRANGE', k_rooms(model), cost, '+inf', 'BYSCORE', 'LIMIT', 0, 16)
  if #fitting < 16 then return best_of(model, fitting) end
  local key, from = k_parked(model), 0
  while true do
    local page = redis.call('ZRANGE', key, from, from + 15)
    if #page == 0 then return nil end
    for _, id in ipairs(page) do
      local w = read_worker(id)
      if not is_open(w) then
        unpark(model, id)
      elseif room(w) >= cost then
        return w
      else
        from = from + 1
      end
    end
  end
end

local function keep_free(w, id)
  w.alone = id
  redis.call('HSET', k_worker(w.id), 'alone', id or '')
end

-- Whether some worker is being kept free for this waiting suspect.
local function has_place(r)
  if not r.reserved or r.reserved == '' then return false end
  local w = read_worker(r.reserved)
  return is_open(w) and w.alone == r.id
end

-- w runs the suspect alone: at once if it holds nothing, else as soon as that is so. The caller stores and parks w.
local function reserve(r, w)
  keep_free(w, r.id)
  if w.held > 0 then
    redis.call('HSET', k_request(r.id), 'reserved', w.id)
    return false
  end
  if r.state == 'queued' then take_off_line(r) end
  grant(r, w)
  return true
end

-- A parked pull for a suspect: one that holds nothing, else the one with the lowest score that could hold it.
local function find_place(r)
  if is_paused(r.model) then return nil end
  local other = nil
  for _, id in ipairs(redis.call('ZRANGE', k_parked(r.model), 0, -1)) do
    local w = read_worker(id)
    if is_open(w) and w.limit >= r.cost then
      if w.held == 0 then return w end
      other = other or w
    end
  end
  return other
end

-- A suspect that waits nowhere yet: under a lease, or in its line with a worker kept free for it where there is one.
local function arrive_alone(r)
  local w = find_place(r)
  if not (w and w.held == 0) then put_in_line(r, SUSPECTS) end
  if w then
    reserve(r, w)
    store_load(w)
    park(w)
  end
end

-- A request that waits nowhere yet: granted at once, or put in line.
local function arrive(r, part)
  if (r.crashes or 0) > 0 then return arrive_alone(r) end
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

-- The oldest at the head of a line that fits, else the oldest of the smallest behind it. Returns entry, request id.
local function next_fitting(w, line)
  local key = k_line(w.model, line[1], line[2])
  for _, e in ipairs(redis.call('XRANGE', key, '-', '+', 'COUNT', 32)) do
    local id, cost = entry_fields(e)
    if not id or cost <= room(w) then return e[1], id end
  end
  local small = redis.call('ZRANGE', k_sizes(w.model, line[1], line[2]), '-inf', room(w), 'BYSCORE', 'LIMIT', 0, 32)
  local oldest, oldest_ms, oldest_n = nil, nil, nil
  for _, entry in ipairs(small) do
    local ms, n = string.match(entry, '^(%d+)-(%d+)$')
    ms, n = tonumber(ms), tonumber(n)
    if not oldest or ms < oldest_ms or (ms == oldest_ms and n < oldest_n) then oldest, oldest_ms, oldest_n = entry, ms, n end
  end
  local found = redis.call('XRANGE', key, oldest, oldest)
  return oldest, #found == 1 and entry_fields(found[1]) or nil
end

-- Since when the first of a line waits; what nobody of ours wrote waits longest, so that it is looked at and dropped.
local function waits_since(model, line)
  local first = redis.call('XRANGE', k_line(model, line[1], line[2]), '-', '+', 'COUNT', 1)[1]
  for i = 1, first and #first[2] or 0, 2 do
    if first[2][i] == 'at' then return tonumber(first[2][i + 1]) or 0 end
  end
  return 0
end

-- Lines in the order in which they are looked at: by priority, but AGEING_MS of longer waiting outweigh one priority.
local function by_age(model, lines)
  local since = {}
  for _, line in ipairs(lines) do
    local at = waits_since(model, line) + RANK[line[1]] * AGEING_MS
    since[line[1]] = math.min(since[line[1]] or at, at)
  end
  table.sort(lines, function(a, b)
    if a[1] ~= b[1] then
      if since[a[1]] ~= since[b[1]] then return since[a[1]] < since[b[1]] end
      return RANK[a[1]] < RANK[b[1]]
    end
    return a[2] == ':front' and b[2] ~= ':front'
  end)
  return lines
end

-- w takes the one waiting request that is next and fits. Returns how many it took, or nil when there is none.
local function take_next(w)
  local lines, priorities = {}, 0
  for _, line in ipairs(LINES) do
    local least = redis.call('ZRANGE', k_sizes(w.model, line[1], line[2]), 0, 0, 'WITHSCORES')
    if #least > 0 and tonumber(least[2]) <= room(w) then
      if #lines == 0 or lines[#lines][1] ~= line[1] then priorities = priorities + 1 end
      lines[#lines + 1] = line
    end
  end
  if #lines == 0 then return nil end
  if priorities > 1 then by_age(w.model, lines) end
  local entry, id = next_fitting(w, lines[1])
  return take_entry(w, lines[1], entry, id)
end

-- Suspects come first: w runs one alone, or is kept free for one that no other worker is kept free for.
local function take_suspect(w)
  if w.alone then
    local r = read_request(w.alone)
    local is_mine = r and r.ended_at == 0 and (is_held(r) and r.worker == w.id or r.state == 'queued' and r.reserved == w.id)
    if is_mine then return r.state == 'queued' and w.held == 0 and reserve(r, w) and 1 or 0 end
    keep_free(w, nil)
  end
  local keys = {}
  for i, priority in ipairs(PRIORITIES) do keys[i] = k_sizes(w.model, priority, SUSPECTS) end
  if redis.call('EXISTS', unpack(keys)) == 0 then return 0 end
  for _, priority in ipairs(PRIORITIES) do
    for _, e in ipairs(redis.call('XRANGE', k_line(w.model, priority, SUSPECTS), '-', '+', 'COUNT', 32)) do
      local id = entry_fields(e)
      local r = id and read_request(id)
      if not (r and r.state == 'queued' and r.entry == e[1]) then
        remove_entry(w.model, priority, SUSPECTS, e[1])
        count(w.model, 'bad_entries')
      elseif w.limit >= r.cost and not has_place(r) then
        return reserve(r, w) and 1 or 0
      end
    end
  end
  return 0
end

-- w's room grew: it takes waiting requests that fit, by priority and age, and is parked again with what is left.
local function room_grew(w)
  if not w then return 0 end
  local granted = 0
  if is_open(w) and w.held < w.slots and not is_paused(w.model) then
    granted = take_suspect(w)
    while room(w) > 0 do
      local took = take_next(w)
      if not took then break end
      granted = granted + took
    end
  end
  store_load(w)
  park(w)
  return granted
end

-- Every waiting request, by priority and age, meets the best of the parked pulls: for when many of both were kept apart.
local function meet_all(model)
  local granted = 0
  for _, priority in ipairs(PRIORITIES) do
    for _, e in ipairs(redis.call('XRANGE', k_line(model, priority, SUSPECTS), '-', '+', 'COUNT', 100)) do
      local id = entry_fields(e)
      local r = id and read_request(id)
      local w = nil
      if r and r.state == 'queued' then w = has_place(r) and read_worker(r.reserved) or find_place(r) end
      if w then
        if reserve(r, w) then granted = granted + 1 end
        store_load(w)
        park(w)
      end
    end
  end
  local lines = {}
  for _, line in ipairs(LINES) do
    if redis.call('XLEN', k_line(model, line[1], line[2])) > 0 then lines[#lines + 1] = line end
  end
  for _, line in ipairs(by_age(model, lines)) do
    local after = '-'
    while true do
      local page = redis.call('XRANGE', k_line(model, line[1], line[2]), after, '+', 'COUNT', 100)
      if #page == 0 then break end
      local most = redis.call('ZRANGE', k_rooms(model), 0, 0, 'REV', 'WITHSCORES')
      local least = redis.call('ZRANGE', k_sizes(model, line[1], line[2]), 0, 0, 'WITHSCORES')
      if #most == 0 or #least == 0 or tonumber(least[2]) > tonumber(most[2]) then break end
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

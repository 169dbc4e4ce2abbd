-- A request that others overtake for too long is pinned: what becomes free at one worker that can hold it is kept for it.
-- A worker has one pin; the oldest that waits has it first, so neither the big nor the small starve behind each other.
-- Whoever else has room for it sooner still takes it.
local PINS_LOOKED = 16 -- of those that wait longest, and of the largest: this is done again and again while a backlog is old
local freed -- workers that lost their pin in this call: they may have room for others
at_start[#at_start + 1] = function() freed = {} end

local function keep_room(w, r)
  w.pin, w.pin_cost = r and r.id or nil, r and r.cost or 0
  redis.call('HSET', k_worker(w.id), 'pin', w.pin or '', 'pin_cost', w.pin_cost)
  if r then
    -- Each that comes clears one away that is gone for good: it cannot take itself out.
    local other = redis.call('SRANDMEMBER', k_pins(w.model))
    if other and redis.call('EXISTS', k_worker(other)) == 0 then redis.call('SREM', k_pins(w.model), other) end
    redis.call('SADD', k_pins(w.model), w.id)
    redis.call('PEXPIRE', k_pins(w.model), WORKER_TTL_MS)
  else
    redis.call('SREM', k_pins(w.model), w.id)
  end
end

local function has_pin(r)
  if not r.pinned or r.pinned == '' then return false end
  local w = read_worker(r.pinned)
  return is_open(w) and w.pin == r.id and w.limit >= r.cost
end

-- It has left its line for w: whoever else kept room for it has room for others.
local function lose_pin(r, w)
  redis.call('HDEL', k_request(r.id), 'pinned')
  local keeper = r.pinned ~= w.id and read_worker(r.pinned)
  if keeper and keeper.pin == r.id then freed[#freed + 1] = keeper.id end
end

-- Whether the request that w keeps room for may come now: nil when it may not come any more.
local function pin_is_due(w)
  local r = read_request(w.pin)
  if not (r and r.state == 'queued' and r.pinned == w.id and r.cost <= w.limit) then
    keep_room(w, nil)
    return nil
  end
  return w.limit - w.used >= r.cost and w.held < w.slots and r or nil
end

-- The entry's request, if it waits there with nobody keeping room for it and w could ever hold it.
local function unpinned(w, e)
  local id, cost = entry_fields(e)
  if not id or cost > w.limit then return nil end
  local f = redis.call('HMGET', k_request(id), 'state', 'entry', 'pinned')
  if f[1] ~= 'queued' or f[2] ~= e[1] or has_pin({id = id, cost = cost, pinned = f[3]}) then return nil end
  return read_request(id)
end

-- The first of a line, older than PIN_MS, for which nobody keeps room and that w could hold. Behind a window of such as are
-- too big for w or have their place, one of the largest it could hold: these are overtaken most.
local function overtaken(w, line)
  local key = k_line(w.model, line[1], line[2])
  local window = redis.call('XRANGE', key, '-', '+', 'COUNT', PINS_LOOKED)
  for _, e in ipairs(window) do
    if now - entry_since(e) < PIN_MS then return nil end
    local r = unpinned(w, e)
    if r then return r end
  end
  if #window < PINS_LOOKED then return nil end
  local large = redis.call('ZRANGE', k_sizes(w.model, line[1], line[2]), w.limit, '-inf', 'BYSCORE', 'REV', 'LIMIT', 0, PINS_LOOKED)
  for _, entry in ipairs(by_entry(large)) do
    local e = redis.call('XRANGE', key, entry, entry)[1]
    if not e or now - entry_since(e) < PIN_MS then return nil end
    local r = unpinned(w, e)
    if r then return r end
  end
  return nil
end

-- w keeps room for the oldest that it could hold and that has waited too long, unless that one fits already.
local function pin_oldest(w, lines)
  if w.pin then return end
  for _, line in ipairs(lines) do
    local first = redis.call('XRANGE', k_line(w.model, line[1], line[2]), '-', '+', 'COUNT', 1)[1]
    local id, cost = nil, 0
    if first then id, cost = entry_fields(first) end
    if id and cost <= room(w) then return end
    local r = overtaken(w, line)
    if r then
      if r.cost > room(w) then
        keep_room(w, r)
        note_meeting(r, 'pinned ' .. w.id .. ' ' .. (w.limit - w.used))
        redis.call('HSET', k_request(r.id), 'pinned', w.id, 'meetings', r.meetings)
      end
      return
    end
  end
end

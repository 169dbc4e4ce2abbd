-- A worker's parked pull: what it can hold, what it holds, and its place among the others.

local workers -- id -> as this call left it: whoever changes one says so by store_load, or writes it
at_start[#at_start + 1] = function() workers = {} end

local function read_worker(id)
  if workers[id] then return workers[id] end
  local f = redis.call('HMGET', k_worker(id), 'model', 'limit', 'slots', 'weight', 'used', 'held', 'seen', 'accepting', 'barred', 'alone',
    'prefill_weight', 'prefill', 'pin', 'pin_cost', 'memory', 'utilisation', 'waiting', 'turns', 'last_granted')
  if not f[1] then return nil end
  local w = {
    id = id, model = f[1], limit = tonumber(f[2]), slots = tonumber(f[3]), weight = tonumber(f[4]),
    used = tonumber(f[5]), held = tonumber(f[6]), seen = tonumber(f[7]),
    open = f[8] == '1' and not f[9],
    alone = f[10] ~= '' and f[10] or nil, -- the suspect it runs, or is kept free for: it takes nothing beside
    tells_prefill = f[11], -- one of an older release does not, nor does it say when a prompt is done
    prefill_weight = tonumber(f[11]) or 0, prefill = tonumber(f[12]) or 0,
    pin = f[13] ~= '' and f[13] or nil, -- the waiting request that the next room is kept for
    pin_cost = tonumber(f[14]) or 0,
    memory = tonumber(f[15]) or 0, utilisation = tonumber(f[16]) or 0, waiting = tonumber(f[17]) or 0,
    turns = tonumber(f[18]) or 0, last_granted = tonumber(f[19]) or 0, -- by the round robins
  }
  workers[id] = w
  return w
end

-- A worker not seen lately is passed over, whatever it offered.
local function is_open(w) return w and w.open and now - w.seen < WORKER_SEEN_MS end

local function room(w)
  if w.alone or w.held + (w.pin and 1 or 0) >= w.slots then return 0 end
  return w.limit - w.used - w.pin_cost
end

-- Requests it would hold, by speed: weighted least connections.
local function connections(w) return (w.held + 1) / w.weight end

local function prefill_speed(w) return w.prefill_weight > 0 and w.prefill_weight or PREFILL_SEED * w.weight end

-- It was granted so much to prefill that it takes no more by `pull` until it has said some first tokens. With no prompt to do it
-- takes any; and one that does not know how fast it prefills is never closed.
local function is_closed(w) return w.prefill_weight > 0 and w.prefill >= OPEN_S * w.prefill_weight end

-- So much later than it came a request counts as come where w takes of those that wait: ms.
local function younger(w, prompt) return 1000 * (YOUNGER * prompt / prefill_speed(w)) end

-- A wait for the first token weighs more the longer it is.
local function wait(s) return s + WAIT_GROWTH * s * math.min(s, WAIT_KNEE_S) end

-- What an answer takes there, in seconds.
local function decoding(w) return (ANSWER_TOKENS + HELD_TOKENS * (w.held + 1)) / w.weight end

-- THE score as far as it is the same for every request, in seconds: it orders the parked pulls.
local function standing(w)
  local speed = prefill_speed(w)
  return wait(w.prefill / speed) + decoding(w) + w.held * TYPICAL_PROMPT_TOKENS / speed
end

local moved -- id -> a worker whose load, or also its place among the parked, is written later
local few -- key -> who stands there, if fewer than CANDIDATES, until one comes or goes
local closed_ones -- model -> the first of its closed workers, until one comes or goes
local stirred -- models of which a closed worker opened, went, was looked at or took something: who waited for it may do better elsewhere
at_start[#at_start + 1] = function() moved, few, closed_ones, stirred = {}, {}, {}, {} end

local function store_load(w)
  moved[w.id] = w
  w.by = w.by or {}
  w.by[turn] = true
end

-- The first there makes the key; after that the beats of those that stand there keep it.
local function stand(w, key, score)
  if write_for(w.by, 'ZADD', key, score, w.id) == 1 then redis.call('PEXPIRE', key, WORKER_TTL_MS) end
end

-- Whoever reads parked, rooms or shut inside a call has this written first.
local function settle_workers()
  if not next(moved) then return end
  for id, w in pairs(moved) do
    write_for(w.by, 'HSET', k_worker(id), 'used', w.used, 'held', w.held, 'prefill', w.prefill)
    if w.parks then
      stand(w, k_parked(w.model), standing(w))
      stand(w, k_rooms(w.model), room(w))
    end
    w.parks, w.by = nil, nil
  end
  moved = {}
end
at_end[#at_end + 1] = settle_workers

-- The first that stand there, so many at most.
local function first_of(key)
  if few[key] then return few[key] end
  settle_workers()
  local page = redis.call('ZRANGE', key, 0, CANDIDATES - 1)
  if #page < CANDIDATES then few[key] = page end
  return page
end

local function is_among(key, id)
  local page = first_of(key)
  for _, each in ipairs(page) do
    if each == id then return true end
  end
  return #page == CANDIDATES and redis.call('ZSCORE', key, id)
end

local function not_shut(model, id)
  local key = k_shut(model)
  if not is_among(key, id) then return end
  redis.call('ZREM', key, id)
  stirred[model], closed_ones[model], few[key] = true, nil, nil
end

local function unpark(model, id)
  if moved[id] then moved[id].parks = nil end
  few[k_parked(model)] = nil
  redis.call('ZREM', k_parked(model), id)
  redis.call('ZREM', k_rooms(model), id)
  not_shut(model, id)
end

local function park(w)
  if not (is_open(w) and room(w) > 0) then return unpark(w.model, w.id) end
  local parked, shut = k_parked(w.model), k_shut(w.model)
  store_load(w)
  if is_closed(w) then
    w.parks, closed_ones[w.model], few[parked], few[shut] = nil, nil, nil, nil
    redis.call('ZREM', parked, w.id)
    stand(w, shut, standing(w))
    stand(w, k_rooms(w.model), room(w))
  else
    w.parks = true
    if few[parked] and not is_among(parked, w.id) then few[parked] = nil end
  end
end

-- The prompt of one that w holds is not waiting to be prefilled any more.
local function prefilled(w, r)
  if r.prefilling == 0 or not w.tells_prefill then return end
  later('HDEL', k_prefill(w.id), r.id)
  w.prefill = w.prefill - r.prefilling
end

-- Which parked pull a request meets: strategies are scores, the lowest is next, equal ones go by worker id.
-- The same scores stand in dispatch/scores.py, which also has their numbers, in the same order of operations; a test holds both equal.
local MOST = 128 -- of those with room, so many are compared by all other strategies
local SCAN = 64 -- so many are looked at for the candidates, once one was found
local SESSION_MS = 600000 -- for so long its blocks of a session may still be there
local DEFAULT = 'pull'

local function k_turn(model) return TAG .. 'turn:' .. model end
local function k_session(model, session) return TAG .. 'session:' .. model .. ':' .. session end

local function reported(report, w)
  local x = connections(w)
  return math.floor(report) + x / (1 + x)
end

-- Rendezvous hashing: the place of a worker for a session, from 0 up to 1.
local function affinity(session, id) return tonumber(string.sub(redis.sha1hex(session .. id), 1, 13), 16) / 16 ^ 13 end

-- A worker that was away or is new does not take a flood: it is next at the others' turn, once.
local function turns(w, turn) return math.max(w.turns, turn - 1 / w.weight) end

local SCORES = {
  pull = function(w, r)
    local speed = prefill_speed(w)
    return wait((w.prefill + r.prompt) / speed) + decoding(w) + w.held * r.prompt / speed
  end,
  round_robin = function(w) return w.last_granted end,
  weighted_round_robin = function(w, r, all) return turns(w, all.turn) + 1 / w.weight end,
  least_connections = function(w) return w.held end,
  weighted_least_connections = connections,
  least_loaded = function(w) return reported(w.memory * 100, w) end,
  least_loaded_utilisation = function(w) return reported(w.utilisation * 100, w) end,
  least_loaded_waiting = function(w) return reported(w.waiting, w) end,
  power_of_two = connections,
  session = function(w, r, all)
    local bound = math.ceil(BOUND * (all.held + 1) * w.weight / all.weight)
    if w.held + 1 > bound then return 2 + connections(w) end
    if w.id == all.last_worker then return -1 end
    return affinity(r.session, w.id)
  end,
}

local function strategy_of(r) return SCORES[r.strategy] and r.strategy or DEFAULT end
is_pull = function(strategy) return strategy == DEFAULT or not SCORES[strategy] end

-- Those of the parked pulls named that a request may meet.
local function opened(model, ids)
  local found = {}
  for _, id in ipairs(ids) do
    local w = read_worker(id)
    if is_open(w) then found[#found + 1] = w else unpark(model, id) end
  end
  return found
end

-- The parked pulls with room, not closed, that stand first: few where few have room, else the best of the first pages of the line.
local function first_fitting(model, cost)
  local page = first_of(k_parked(model))
  if #page == CANDIDATES then
    settle_workers()
    local fitting = redis.call('ZRANGE', k_rooms(model), cost, '+inf', 'BYSCORE', 'LIMIT', 0, CANDIDATES)
    if #fitting < CANDIDATES then page = fitting end
  end
  local found, from, looked = {}, 0, 0
  while true do
    for _, id in ipairs(page) do
      local w = read_worker(id)
      if not is_open(w) then
        unpark(model, id)
      else
        from = from + 1
        if room(w) >= cost and not is_closed(w) then found[#found + 1] = w end
      end
      if #found == CANDIDATES then return found end
    end
    looked = looked + #page
    if #page < CANDIDATES or (#found > 0 and looked >= SCAN) then return found end
    settle_workers()
    page = redis.call('ZRANGE', k_parked(model), from, from + CANDIDATES - 1)
  end
end

-- The workers whose parked pulls have room; where there are very many, a part of them by chance.
local function with_room(model, cost, chance)
  settle_workers()
  local count, from = redis.call('ZCOUNT', k_rooms(model), cost, '+inf'), 0
  if count > MOST then from = tonumber(string.sub(redis.sha1hex(chance), 17, 24), 16) % (count - MOST + 1) end
  return redis.call('ZRANGE', k_rooms(model), cost, '+inf', 'BYSCORE', 'LIMIT', from, MOST)
end

local function by_id(found)
  table.sort(found, function(a, b) return a.id < b.id end)
  return found
end

-- Those that a session may choose from: the same part for the same session, and the worker that last ran it.
local function for_session(r)
  local ids, last = with_room(r.model, r.cost, r.session), redis.call('GET', k_session(r.model, r.session))
  local found, known = opened(r.model, ids), false
  for _, id in ipairs(ids) do known = known or id == last end
  if last and not known and redis.call('ZSCORE', k_rooms(r.model), last) then
    local w = read_worker(last)
    if is_open(w) and room(w) >= r.cost then found[#found + 1] = w end
  end
  return by_id(found), last
end

-- Two different ones (if there are two) by chance.
local function two_of(found, chance)
  if #found < 2 then return found end
  local digest = redis.sha1hex(chance)
  local first = tonumber(string.sub(digest, 1, 8), 16) % #found
  local second = tonumber(string.sub(digest, 9, 16), 16) % #found
  if second == first then second = (first + 1) % #found end
  return {found[first + 1], found[second + 1]}
end

-- What a score may ask of all that are compared; nothing, where it asks nothing.
local function sums(r, strategy, compared, last_worker)
  if strategy ~= 'session' and strategy ~= 'weighted_round_robin' then return nil end
  local all = {held = 0, weight = 0, turn = 0, last_worker = last_worker}
  if strategy == 'session' then
    for _, w in ipairs(compared) do
      all.held = all.held + w.held
      all.weight = all.weight + w.weight
    end
  else
    all.turn = tonumber(redis.call('HGET', k_turn(r.model), strategy) or '0')
  end
  return all
end

-- The first of the closed, as they stand.
local function first_closed(model)
  if not closed_ones[model] then
    local found = opened(model, first_of(k_shut(model)))
    table.sort(found, function(a, b)
      local x, y = standing(a), standing(b)
      return x < y or (x == y and a.id < b.id)
    end)
    closed_ones[model] = found
  end
  return closed_ones[model]
end

-- Whether w, which is open, may take the request: none of the closed would serve it so much better that it waits for that one.
local function suits(w, r)
  if not is_pull(r.strategy) then return true end
  if r.state == 'queued' and r.queued_at and now - r.queued_at >= PATIENCE_MS then return true end
  local here = SCORES.pull(w, r)
  for _, other in ipairs(first_closed(w.model)) do
    if room(other) >= r.cost and here > SLACK * SCORES.pull(other, r) then
      r.better = other.id
      return false
    end
  end
  return true
end

-- The parked pull that the request meets, or nil where none has room or it waits for a closed one. r says then how it came about
-- (strategy, score, of how many).
local function find_worker(r)
  r.better = nil
  if is_paused(r.model) then return nil end
  local strategy, compared, last_worker = strategy_of(r), nil, nil
  if strategy == DEFAULT then
    compared = first_fitting(r.model, r.cost)
  elseif strategy == 'session' then
    compared, last_worker = for_session(r)
  else
    compared = by_id(opened(r.model, with_room(r.model, r.cost, salt .. r.id)))
    if strategy == 'power_of_two' then compared = two_of(compared, salt .. r.id) end
  end
  local all, best, lowest = sums(r, strategy, compared, last_worker), nil, nil
  for _, w in ipairs(compared) do
    local score = SCORES[strategy](w, r, all)
    if not best or score < lowest or (score == lowest and w.id < best.id) then best, lowest = w, score end
  end
  if best and not suits(best, r) then return nil end
  r.met = best and string.format('%s %.6g %d', strategy, lowest, #compared)
  return best
end

-- What a strategy has to remember of a grant.
local function remember_turn(r, w)
  local strategy = strategy_of(r)
  if strategy == 'round_robin' then
    w.last_granted = redis.call('HINCRBY', k_turn(r.model), strategy, 1)
    redis.call('HSET', k_worker(w.id), 'last_granted', w.last_granted)
  elseif strategy == 'weighted_round_robin' then
    local had = turns(w, tonumber(redis.call('HGET', k_turn(r.model), strategy) or '0'))
    redis.call('HSET', k_turn(r.model), strategy, had)
    w.turns = had + 1 / w.weight
    redis.call('HSET', k_worker(w.id), 'turns', w.turns)
  elseif strategy == 'session' then
    redis.call('SET', k_session(r.model, r.session), w.id, 'PX', SESSION_MS)
    return
  else
    return
  end
  redis.call('PEXPIRE', k_turn(r.model), ONE_DAY_MS)
end

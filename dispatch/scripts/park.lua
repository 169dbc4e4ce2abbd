#!lua flags=allow-oom
-- park: a worker says what it can hold; it takes what waits and fits, and is parked with the rest of its room.
-- Room and held are derived anew from what Redis knows it holds, so nothing drifts.
-- use: later ground line log pull choose pin next meet
-- args: now salt worker model limit slots weight accepting prefill_weight memory utilisation waiting
-- returns {barred, room, held, granted}
if redis.call('HEXISTS', k_worker(worker), 'barred') == 1 then return {1, 0, 0, 0} end
local function sum(key)
  local total, count = 0, 0
  for _, each in ipairs(redis.call('HVALS', key)) do
    total = total + tonumber(each)
    count = count + 1
  end
  return total, count
end
-- What let go of a request may have been an older release's script, which knows of no prompts.
for _, id in ipairs(redis.call('HKEYS', k_prefill(worker))) do
  if redis.call('HEXISTS', k_held(worker), id) == 0 then redis.call('HDEL', k_prefill(worker), id) end
end
local used, held = sum(k_held(worker))
redis.call('HSET', k_worker(worker), 'model', model, 'limit', limit, 'slots', slots, 'weight', weight,
  'used', used, 'held', held, 'seen', now, 'accepting', accepting, 'prefill', (sum(k_prefill(worker))),
  'prefill_weight', prefill_weight, 'memory', memory, 'utilisation', utilisation, 'waiting', waiting)
for _, key in ipairs({k_worker(worker), k_held(worker), k_prefill(worker), k_inbox(worker), k_parked(model), k_rooms(model),
  k_shut(model)}) do
  redis.call('PEXPIRE', key, WORKER_TTL_MS)
end
-- Workers remember their last turn: the count it was of must not begin anew while they are there.
redis.call('PEXPIRE', k_turn(model), ONE_DAY_MS)
local w = read_worker(worker)
-- The dead have the lowest scores, for they hold nothing any more: one is cleared away with each beat of the living.
local first = redis.call('ZRANGE', k_parked(model), 0, 0)[1]
if first and first ~= worker and not is_open(read_worker(first)) then unpark(model, first) end
local granted = room_grew(w)
return {0, room(w), w.held, granted}

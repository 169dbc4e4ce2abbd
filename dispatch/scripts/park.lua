#!lua flags=allow-oom
-- park: a worker says what it can hold; it takes what waits and fits, and is parked with the rest of its room.
-- Room and held are derived anew from what Redis knows it holds, so nothing drifts.
-- use: ground line log meet
-- args: now salt worker model limit slots weight accepting
-- returns {barred, room, held, granted}
local known = redis.call('HMGET', k_worker(worker), 'barred', 'alone')
if known[1] then return {1, 0, 0, 0} end
local used, held = 0, 0
for _, cost in ipairs(redis.call('HVALS', k_held(worker))) do
  used = used + tonumber(cost)
  held = held + 1
end
local w = {
  id = worker, model = model, limit = tonumber(limit), slots = tonumber(slots), weight = tonumber(weight),
  used = used, held = held, seen = now, open = accepting == '1', alone = known[2] and known[2] ~= '' and known[2] or nil,
}
redis.call('HSET', k_worker(worker), 'model', model, 'limit', limit, 'slots', slots, 'weight', weight,
  'used', used, 'held', held, 'seen', now, 'accepting', accepting)
redis.call('PEXPIRE', k_worker(worker), WORKER_TTL_MS)
redis.call('PEXPIRE', k_held(worker), WORKER_TTL_MS)
redis.call('PEXPIRE', k_inbox(worker), WORKER_TTL_MS)
-- The dead have the lowest scores, for they hold nothing any more: one is cleared away with each beat of the living.
local first = redis.call('ZRANGE', k_parked(model), 0, 0)[1]
if first and first ~= worker and not is_open(read_worker(first)) then unpark(model, first) end
local granted = room_grew(w)
return {0, room(w), w.held, granted}

#!lua flags=allow-oom
-- abandon: this incarnation of a worker, or its engine, is dead by evidence. It is barred; all it held moves on.
-- What had begun is charged; the suspects are charged a crash.
-- use: later ground line log pull choose pin next meet leave
-- args: now salt worker evidence ...
-- rest: suspect ids
-- returns how many moved
local suspects = {}
for _, id in ipairs(rest) do suspects[id] = 1 end
local model = redis.call('HGET', k_worker(worker), 'model')
redis.call('HSET', k_worker(worker), 'barred', evidence)
redis.call('PEXPIRE', k_worker(worker), WORKER_TTL_MS)
if model then unpark(model, worker) end
local moved = 0
for _, id in ipairs(redis.call('HKEYS', k_held(worker))) do
  local r = read_request(id)
  if r and is_held(r) and r.worker == worker then
    local message = 'worker ' .. worker .. ': ' .. evidence
    if r.state == 'granted' then
      give_back(r, message)
    else
      local w = charge(r, suspects[id] or 0, 0, 'engine_crashed', message)
      if w then store_load(w) end
    end
    moved = moved + 1
  else
    later('HDEL', k_held(worker), id)
  end
end
if model then meet_others(model) end
return moved

#!lua flags=allow-oom
-- renew: one batch for all a worker runs. Also names what it lost, and what it runs here but did not name.
-- use: later ground
-- args: now worker ...
-- rest: id attempt nonce, for each
-- returns {{lost id, attempt, ...}, {unknown id, attempt, nonce, cost, ...}}
local lost, unknown, named = {}, {}, {}
for i = 1, #rest, 3 do
  local id, attempt, nonce = rest[i], rest[i + 1], rest[i + 2]
  named[id] = true
  local r = read_request(id)
  if fenced(r, attempt, nonce) or r.worker ~= worker then
    lost[#lost + 1] = id
    lost[#lost + 1] = tonumber(attempt)
  elseif r.state == 'running' then
    r.lease = now + LEASE_MS
    redis.call('HSET', k_request(id), 'lease', r.lease)
    set_timer(r)
  end
end
for _, id in ipairs(redis.call('HKEYS', k_held(worker))) do
  if not named[id] then
    local r = read_request(id)
    if r and r.state == 'running' and r.worker == worker then
      for _, value in ipairs({id, r.attempt, r.nonce, r.cost}) do unknown[#unknown + 1] = value end
    end
  end
end
see(worker)
return {lost, unknown}

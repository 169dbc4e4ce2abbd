#!lua flags=allow-oom
-- pause / resume: a paused model's lines take requests in, and nothing leaves them for a worker.
-- On resume each waiting request, by priority and age, meets the best of the parked pulls.
-- use: later ground line log pull choose pin next meet
-- args: now salt model paused
-- returns how many were granted
if paused == '1' then
  redis.call('SADD', K_PAUSED, model)
  return 0
end
redis.call('SREM', K_PAUSED, model)
return meet_all(model)

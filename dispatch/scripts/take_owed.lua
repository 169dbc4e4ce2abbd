#!lua flags=allow-oom
-- take_owed: webhooks whose time has come, for somebody to try. Each is offered again after again_ms, unless a try is noted before:
-- whoever takes one may die with it.
-- use: later ground
-- args: now limit again_ms
-- returns {id, tries so far, id, tries so far, ...}
local taken = {}
for _, id in ipairs(redis.call('ZRANGE', K_OUTBOX, '-inf', now, 'BYSCORE', 'LIMIT', 0, limit)) do
  local found = redis.pcall('HMGET', k_webhook(id), 'state', 'tried')
  if not found.err and found[1] == 'owed' then
    redis.call('ZADD', K_OUTBOX, now + again_ms, id)
    taken[#taken + 1] = id
    taken[#taken + 1] = tonumber(found[2]) or 0
  else
    redis.call('ZREM', K_OUTBOX, id)
  end
end
return taken

#!lua flags=allow-oom
-- order: what a leader decided in one tick: new orders ('' for none), and for each pool the action, which is counted, its status and
-- an entry of the log ('' for none).
-- use: scale
-- args: now who epoch orders keep ...
-- returns ok | fenced: it leads no more, or another epoch has begun
local leader, current, ends = leadership()
if leader ~= who or current ~= tonumber(epoch) or ends <= now then return 'fenced' end
if orders ~= '' then redis.call('SET', K_ORDERS, orders) end
for i = 1, #rest, 4 do
  redis.call('HINCRBY', K_COUNTS, rest[i] .. ' ' .. rest[i + 1], 1)
  redis.call('HSET', K_STATUS, rest[i], rest[i + 2])
  if rest[i + 3] ~= '' then redis.call('XADD', K_LOG, 'MAXLEN', '~', keep, '*', 'pool', rest[i], 'd', rest[i + 3]) end
end
return 'ok'

#!lua flags=allow-oom
-- resign: a leader that goes leaves its place at once. The epoch stays, so that it only grows.
-- use: scale
-- args: now who
-- returns whether it led
local leader, _, ends = leadership()
if leader ~= who or ends <= now then return 0 end
redis.call('HSET', LEADER, 'until', 0)
return 1

#!lua flags=allow-oom
-- lead: take or keep the lease of a group. A new leader has a new epoch; so has one whose lease was over.
-- use: scale
-- args: now who ttl_ms
-- returns leader, epoch
local leader, epoch, ends = leadership()
-- Longer than any lease: the clock was set back under a leader that may be dead.
if ends > now + 2 * ttl_ms then ends = now end
if ends > now and leader ~= who then return {leader, epoch} end
-- The first epoch is the clock's, in seconds: a Redis that lost its memory goes on above those that launchers and agents still know.
if ends <= now then epoch = epoch > 0 and epoch + 1 or math.floor(now / 1000) end
redis.call('HSET', LEADER, 'id', who, 'epoch', string.format('%d', epoch), 'until', string.format('%d', now + ttl_ms))
return {who, epoch}

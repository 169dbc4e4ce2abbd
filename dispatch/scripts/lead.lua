#!lua flags=allow-oom
-- lead: take or keep the lease of a group. A new leader has a new epoch; so has one whose lease was over.
-- use: scale
-- args: now who ttl_ms
-- returns leader, epoch
local leader, epoch, ends = leadership()
if ends > now and leader ~= who then return {leader, epoch} end
if ends <= now then epoch = epoch + 1 end
redis.call('HSET', LEADER, 'id', who, 'epoch', epoch, 'until', now + ttl_ms)
return {who, epoch}

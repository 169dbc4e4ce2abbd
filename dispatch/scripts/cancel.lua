#!lua flags=allow-oom
-- cancel: an ending at once, wherever it is. Endings absorb: what had ended stays as it ended.
-- use: later ground line log pull choose pin next meet leave
-- args: now salt id message
-- returns state, or nothing if unknown
local r = read_request(id)
if not r then return tombstone(id) end
if r.ended_at > 0 then
  redis.call('HSET', k_request(id), 'ended_at', r.ended_at)
  return r.state
end
room_grew(end_from_outside(r, 'cancelled', 'cancelled', message))
return 'cancelled'

#!lua flags=allow-oom
-- reprice: who holds it found that it costs more than it was granted at; that is what its next grant takes of a room. What it
-- holds now stays priced as granted: its worker takes the difference off its own limit.
-- use: later ground
-- args: now id attempt nonce cost
-- returns status: ok | dup | fenced
local r = read_request(id)
if fenced(r, attempt, nonce) then return 'fenced' end
cost = tonumber(cost)
redis.call('HSET', k_request(id), 'cost', math.max(r.cost, cost), 'repriced', '1')
return cost > r.cost and 'ok' or 'dup'

#!lua flags=allow-oom
-- retry: a retryable fault. Charged; it waits with backoff, or is dead when its attempts are used up.
-- use: later ground line log pull choose pin next meet leave
-- args: now salt id attempt nonce code message
-- returns status: ok | dup | fenced
local r = read_request(id)
if r and (r.state == 'waiting' or r.state == 'failed') and r.nonce == nonce and r.attempt == tonumber(attempt) then
  redis.call('HSET', k_request(id), 'state', r.state)
  return 'dup'
end
if fenced(r, attempt, nonce) then return 'fenced' end
room_grew(charge(r, 0, backoff(r), code, message))
return 'ok'

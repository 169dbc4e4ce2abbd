#!lua flags=allow-oom
-- release: given back unfinished to the head of its line; nothing charged.
-- use: later ground line log pull choose pin next meet leave
-- args: now salt id attempt nonce
-- returns status: ok | dup | fenced
local r = read_request(id)
if r and r.state == 'queued' and r.nonce == nonce and r.attempt == tonumber(attempt) then
  redis.call('HSET', k_request(id), 'state', r.state)
  return 'dup'
end
if fenced(r, attempt, nonce) then return 'fenced' end
room_grew(give_back(r, 'given back unfinished'))
count(r.model, 'released')
return 'ok'

#!lua flags=allow-oom
-- begin: the engine is about to see the request; the short grant becomes a full lease. May be repeated.
-- A later attempt than the first to begin is told in the log: a note.
-- use: ground log
-- args: now worker id attempt nonce
-- returns {status, input, seq, attempt, deadline}: ok | fenced
local r = read_request(id)
if fenced(r, attempt, nonce) then return {'fenced'} end
if r.deadline <= now then return {'fenced'} end -- the sweep ends it as expired; no work is begun for it
if r.state == 'granted' then
  redis.call('XDEL', k_inbox(r.worker), r.inbox)
  if r.begun_at == 0 then
    redis.call('HSET', k_request(id), 'begun_at', now, 'attempt_begun_at', now)
  else
    log(r, 'note', '{"attempt":' .. r.attempt .. ',"worker":"' .. r.worker .. '"}')
    redis.call('HSET', k_request(id), 'attempt_begun_at', now, 'seq', r.seq, 'chain', r.chain)
  end
end
r.state = 'running'
r.lease = now + LEASE_MS
redis.call('HSET', k_request(id), 'state', 'running', 'lease', r.lease)
if redis.call('EXISTS', k_worker(worker)) == 1 then redis.call('HSET', k_worker(worker), 'seen', now) end
set_timer(r)
return {'ok', redis.call('GET', k_input(id)) or '', r.seq, r.attempt, r.deadline}

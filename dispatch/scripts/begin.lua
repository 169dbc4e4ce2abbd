#!lua flags=allow-oom
-- begin: the engine is about to see the request; the short grant becomes a full lease. May be repeated.
-- A later attempt than the first to begin is told in the log: a note.
-- use: later ground log
-- args: now
-- each: worker id attempt nonce
-- reads: state grant:attempt#,nonce,worker,inbox asked:deadline# what:on_disconnect seq# chain readers on_disconnect reader_look# begun_at#
-- returns fenced, or {input, "seq attempt deadline"}
local inputs -- id -> what to compute, as far as it was asked for ahead
at_start[#at_start + 1] = function() inputs = {} end

local function ahead(ids)
  local keys = {}
  for i = 1, #ids do keys[i] = k_input(ids[i]) end
  local found = redis.call('MGET', unpack(keys))
  for i = 1, #ids do inputs[ids[i]] = found[i] end
end
-- one:
local r = read_these(id)
if fenced(r, attempt, nonce) then return 'fenced' end
if r.deadline <= now then return 'fenced' end -- the sweep ends it as expired; no work is begun for it
renew_log(r)
local lease = now + LEASE_MS
if r.state == 'running' then
  redis.call('HSET', k_request(id), 'lease', text(lease))
else
  trim_later(k_inbox(r.worker), r.inbox) -- whoever begins it has read all that stands before it, too
  if r.begun_at == 0 then
    redis.call('HSET', k_request(id), 'state', 'running', 'lease', text(lease), 'begun_at', text(now)) -- its attempt, too
  else
    log(r, 'note', '{"attempt":' .. r.attempt .. ',"worker":"' .. r.worker .. '"}')
    redis.call('HSET', k_request(id), 'state', 'running', 'lease', lease, 'attempt_begun_at', now, 'seq', r.seq, 'chain', r.chain)
  end
end
r.state, r.lease = 'running', lease
see(worker)
set_timer(r)
return {inputs[id] or redis.call('GET', k_input(id)) or '', text(r.seq) .. ' ' .. text(r.attempt) .. ' ' .. text(r.deadline)}

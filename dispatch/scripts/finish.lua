#!lua flags=allow-oom
-- finish: the worker ends it, the last chunk included; its room takes what waits.
-- use: later ground line log pull choose pin next meet leave
-- args: now
-- each: salt id attempt nonce seq last detail state
-- reads: state grant:attempt#,nonce,worker asked:created what:model,tenant seq# chain readers prefilling# first_output_at begun_at webhook cost# repriced
-- returns status: ok | dup | gap | fenced
local r = read_these(id)
if r and (r.state == 'completed' or r.state == 'failed') and r.nonce == nonce and r.attempt == tonumber(attempt) then
  local over = read_request(id)
  if over.dead == '1' then return 'fenced' end
  redis.call('HSET', k_request(id), 'ended_at', over.ended_at)
  return 'dup'
end
if fenced(r, attempt, nonce) or r.state ~= 'running' then return 'fenced' end
if tonumber(seq) ~= r.seq + 1 then return 'gap' end
r.is_ending = true
if last ~= '' then
  r.last = last
  if (tonumber(r.first_output_at) or 0) == 0 then r.first_output_at = text(now) end
end
room_grew(end_request(r, state, detail, RETENTION_MS))
return 'ok'

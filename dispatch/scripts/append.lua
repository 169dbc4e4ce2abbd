#!lua flags=allow-oom
-- append: the next chunk of an answer. seq = last + 1, or it is a dup or a gap.
-- The hot path: it reads only the fields it needs.
-- use: later ground line log pull choose pin next meet
-- args: now
-- each: salt id attempt nonce seq data
-- reads: state grant:attempt#,nonce,worker seq# chain readers first_output_at prefilling#
-- returns status: ok | dup | gap | fenced
local r = read_these(id)
if fenced(r, attempt, nonce) or r.state ~= 'running' then return 'fenced' end
local last = r.seq
seq = tonumber(seq)
if seq <= last then
  -- Written once more, so that a WAIT after a repeated call covers the first one's effect.
  redis.call('HSET', k_request(id), 'seq', last)
  return 'dup'
end
if seq > last + 1 then return 'gap' end
if last == 0 then
  local stored = redis.call('HMGET', k_request(id), 'asked', 'deadline') -- the latter of version 1
  r.deadline = tonumber((select(2, words_of_asked(stored[1] or '')))) or tonumber(stored[2]) or 0
end
log(r, 'chunk', data)
if r.first_output_at and r.prefilling == 0 then
  redis.call('HSET', k_request(id), 'seq', text(r.seq), 'chain', r.chain)
else
  redis.call('HSET', k_request(id), 'seq', text(r.seq), 'chain', r.chain, 'first_output_at', r.first_output_at or text(now), 'prefilling', '0')
end
if r.prefilling > 0 then
  -- Its first output: the prompt is done, and its worker may take more.
  local w = read_worker(r.worker)
  if w then
    prefilled(w, r)
    room_grew(w)
  end
end
return 'ok'

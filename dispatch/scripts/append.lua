#!lua flags=allow-oom
-- append: the next chunk of an answer. seq = last + 1, or it is a dup or a gap.
-- The hot path: it reads only the fields it needs.
-- use: later ground line log pull choose pin next meet
-- args: now
-- each: salt id attempt nonce seq data
-- returns status: ok | dup | gap | fenced
local f = redis.call('HMGET', k_request(id), 'state', 'attempt', 'nonce', 'seq', 'chain', 'readers', 'first_output_at', 'deadline',
  'prefilling', 'worker')
if f[1] ~= 'running' or f[2] ~= attempt or f[3] ~= nonce then return 'fenced' end
local last = tonumber(f[4])
seq = tonumber(seq)
if seq <= last then
  -- Written once more, so that a WAIT after a repeated call covers the first one's effect.
  redis.call('HSET', k_request(id), 'seq', last)
  return 'dup'
end
if seq > last + 1 then return 'gap' end
local r = {id = id, attempt = tonumber(attempt), seq = last, chain = f[5], readers = f[6], deadline = tonumber(f[8])}
log(r, 'chunk', data)
local first = f[7] or text(now)
if (tonumber(f[9]) or 0) == 0 then
  if f[7] then
    redis.call('HSET', k_request(id), 'seq', text(r.seq), 'chain', r.chain)
  else
    redis.call('HSET', k_request(id), 'seq', text(r.seq), 'chain', r.chain, 'first_output_at', first)
  end
else
  -- Its first output: the prompt is done, and its worker may take more.
  redis.call('HSET', k_request(id), 'seq', text(r.seq), 'chain', r.chain, 'first_output_at', first, 'prefilling', 0)
  local w = read_worker(f[10])
  if w then
    r.prefilling = tonumber(f[9])
    prefilled(w, r)
    room_grew(w)
  end
end
return 'ok'

#!lua flags=allow-oom
-- attach: a gateway becomes a reader and gets the log after what it has, in one step: no gap.
-- use: later ground log
-- args: now id gateway after_seq after_chain
-- returns {status, state, live, entries}: ok | missing | gone | rewind
local r = read_request(id)
if not r then
  local ended = tombstone(id)
  if ended then return {'gone', ended, 0, {}} end
  return {'missing', 'expired', 0, {}}
end
local live = r.ended_at == 0 and 1 or 0
renew_log(r)
if redis.call('LLEN', k_output(id)) ~= r.seq then return {'gone', r.state, live, {}} end
local status, after = 'ok', tonumber(after_seq)
local function chain_at(seq) return string.match(redis.call('LINDEX', k_output(id), seq - 1) or '', '^%S+ %S+ (%S+)') end
if after > 0 and after_chain ~= '' then
  if chain_at(after) ~= after_chain then status, after = 'rewind', 0 end
elseif after > r.seq then
  status, after = 'rewind', 0
end
if live == 1 and gateway ~= '' then
  touch_gateway(gateway)
  local known = false
  for reader in string.gmatch(r.readers or '', '%S+') do known = known or reader == gateway end
  if not known then
    local readers = gateway
    for reader in string.gmatch(r.readers or '', '%S+') do
      if is_reading(reader) then readers = readers .. ' ' .. reader end
    end
    redis.call('HSET', k_request(id), 'readers', readers)
  end
  r.reader_look = now + READER_LEASE_MS
  redis.call('HSET', k_request(id), 'reader_look', r.reader_look)
  set_timer(r)
end
return {status, r.state, live, redis.call('LRANGE', k_output(id), after, -1)}

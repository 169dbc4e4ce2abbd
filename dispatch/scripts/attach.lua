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
if r.seq > 0 and redis.call('EXISTS', k_output(id)) == 0 then return {'gone', r.state, live, {}} end
local status, after = 'ok', tonumber(after_seq)
local function seq_id(seq) return string.format('%.0f', seq) end
local function field_at(seq, name)
  local found = redis.call('XRANGE', k_output(id), seq_id(seq) .. '-0', seq_id(seq) .. '-9007199254740991')
  if #found ~= 1 then return nil end
  for i = 1, #found[1][2], 2 do if found[1][2][i] == name then return found[1][2][i + 1] end end
end
-- The chunk before an end may stand in the end's own entry.
local function chain_at(seq) return field_at(seq, 'h') or field_at(seq + 1, 'g') end
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
return {status, r.state, live, redis.call('XRANGE', k_output(id), seq_id(after + 1) .. '-0', '+')}

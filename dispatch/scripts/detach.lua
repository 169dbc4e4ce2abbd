#!lua flags=allow-oom
-- detach: a gateway reads it no more. With nobody left, a request that wants a reader ends after the grace.
-- use: later ground log
-- args: now id gateway then_continue
local r = read_request(id)
if not r or r.ended_at > 0 then return 0 end
local left = {}
for reader in string.gmatch(r.readers or '', '%S+') do
  if reader ~= gateway and is_reading(reader) then left[#left + 1] = reader end
end
redis.call('HSET', k_request(id), 'readers', table.concat(left, ' '))
if then_continue == '1' then
  r.on_disconnect = 'continue'
  redis.call('HSET', k_request(id), 'on_disconnect', 'continue')
elseif #left == 0 then
  r.reader_look = now + DISCONNECT_GRACE_MS
  redis.call('HSET', k_request(id), 'reader_look', r.reader_look)
end
set_timer(r)
return 1

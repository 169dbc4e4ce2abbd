-- The output log of a request, and the feeds of the gateways that read it.

local function is_reading(gateway)
  local seen = redis.call('GET', k_gateway(gateway))
  return seen and now - tonumber(seen) < READER_LEASE_MS
end

-- When the last of its readers will have been silent for a whole lease; nil if none reads now.
local function read_until(r)
  local latest = nil
  for gateway in string.gmatch(r.readers or '', '%S+') do
    local seen = redis.call('GET', k_gateway(gateway))
    local at = seen and tonumber(seen) + READER_LEASE_MS or 0
    if at > now and (not latest or at > latest) then latest = at end
  end
  return latest
end

local touched -- gateways, in this call
at_start[#at_start + 1] = function() touched = {} end

-- A gateway not heard of for a whole lease may have missed entries: it is told to attach anew.
local function touch_gateway(gateway, beats)
  if touched[gateway] then return end
  touched[gateway] = true
  if not is_reading(gateway) then redis.call('XADD', k_feed(gateway), '*', 'cut', '1') beats = true end
  redis.call('SET', k_gateway(gateway), text(now), 'PX', text(2 * READER_LEASE_MS))
  if beats then redis.call('PEXPIRE', k_feed(gateway), 2 * READER_LEASE_MS) end
end

local feeds -- gateway -> entries in its feed; false: it does not read. As far as this call looked.
at_start[#at_start + 1] = function() feeds = {} end

local function tell_readers(r, kind, data, last, last_chain)
  for gateway in string.gmatch(r.readers or '', '%S+') do
    local feed = k_feed(gateway)
    local length = feeds[gateway]
    if length == nil then length = is_reading(gateway) and redis.call('XLEN', feed) end
    feeds[gateway] = length
    if length then
      -- A gateway that cannot follow is told so and attaches anew; trimming in silence would lose an ending.
      if length >= FEED_CAP then
        redis.call('XTRIM', feed, 'MAXLEN', 0)
        redis.call('XADD', feed, '*', 'cut', '1')
        length = 1
      end
      -- One word for all that is short: each field costs more than what it says, here and where it is read.
      local what = r.id .. ' ' .. text(r.seq) .. ' ' .. text(r.attempt) .. ' ' .. kind .. ' ' .. r.chain
      if last then
        redis.call('XADD', feed, '*', 'm', what .. ' ' .. last_chain, 'd', data, 'c', last)
      else
        redis.call('XADD', feed, '*', 'm', what, 'd', data)
      end
      if length == 0 then redis.call('PEXPIRE', feed, 2 * READER_LEASE_MS) end
      feeds[gateway] = length + 1
    end
  end
end

local function move_on(r, data)
  r.seq = r.seq + 1
  r.chain = string.sub(redis.sha1hex(r.chain .. data), 1, 16)
end

-- An element of a log; its place is its seq.
local function element(attempt, kind, chain, data) return attempt .. ' ' .. kind .. ' ' .. chain .. ' ' .. data end

-- A step that failed halfway may have left elements behind that its record does not know of.
local function add_to_log(key, before, after, ...)
  if redis.call('RPUSH', key, ...) <= after then return end
  if before > 0 then redis.call('LTRIM', key, 0, before - 1) else redis.call('DEL', key) end
  redis.call('RPUSH', key, ...)
end

-- Write the next entry: r.seq and r.chain move on; the caller stores them. `last`: the chunk before an end, told with it.
local function log(r, kind, data, last)
  local attempt, before, last_chain = text(r.attempt), r.seq, nil
  if last then
    move_on(r, last)
    last_chain = r.chain
  end
  move_on(r, data)
  if last then
    add_to_log(k_output(r.id), before, r.seq, element(attempt, 'chunk', last_chain, last), element(attempt, kind, r.chain, data))
  else
    add_to_log(k_output(r.id), before, r.seq, element(attempt, kind, r.chain, data))
  end
  if before == 0 and not r.is_ending then -- an ending says itself how long its output is kept
    redis.call('PEXPIRE', k_output(r.id), text(math.max(r.deadline - now, 0) + RETENTION_MS + ONE_DAY_MS))
  end
  tell_readers(r, kind, data, last, last_chain)
end

-- A log of version 1 was a stream. Whoever writes to it, or reads on from some place, does so after this.
local function renew_log(r)
  local key = k_output(r.id)
  if not r.of_version_1 or redis.call('TYPE', key).ok ~= 'stream' then return end
  local elements, ttl = {}, redis.call('PTTL', key)
  for i, e in ipairs(redis.call('XRANGE', key, '-', '+')) do
    local f = {}
    for k = 1, #e[2], 2 do f[e[2][k]] = e[2][k + 1] end
    elements[i] = element(string.match(e[1], '%d+$'), f.k or '', f.h or '', f.d or '')
  end
  redis.call('DEL', key)
  for _, each in ipairs(elements) do redis.call('RPUSH', key, each) end
  if ttl > 0 then redis.call('PEXPIRE', key, ttl) end
end

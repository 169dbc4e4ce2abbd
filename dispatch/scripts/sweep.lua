#!lua flags=allow-oom
-- sweep: look at every request whose time has come. Harmless in parallel, and as often as one likes.
-- use: later ground line log pull choose pin next meet leave
-- args: now salt limit
-- returns how many moved
local K_SWEPT, K_AMNESTY = TAG .. 'swept', TAG .. 'amnesty'
-- Nobody swept for half a lease: Redis or everyone was away. Workers could not renew, so no lease ends before
-- they had one more lease's time to do so.
local swept = tonumber(redis.call('GET', K_SWEPT) or '0')
if now - swept > LEASE_MS / 2 then redis.call('SET', K_AMNESTY, now + LEASE_MS, 'PX', LEASE_MS + 60000) end
redis.call('SET', K_SWEPT, now, 'PX', ONE_DAY_MS)
local amnesty = tonumber(redis.call('GET', K_AMNESTY) or '0')

local function look(r)
  if r.deadline <= now then
    return true, end_from_outside(r, 'expired', 'deadline_exceeded', 'the deadline passed while the request was ' .. r.state)
  end
  if r.on_disconnect == 'cancel' and r.reader_look > 0 and r.reader_look <= now then
    local until_ms = read_until(r)
    -- Gateways could not renew either while everybody was away.
    if now < amnesty and r.readers and r.readers ~= '' then until_ms = math.max(until_ms or 0, amnesty) end
    if not until_ms then
      return true, end_from_outside(r, 'cancelled', 'cancelled', 'nobody reads it any more')
    end
    r.reader_look = until_ms
    redis.call('HSET', k_request(r.id), 'reader_look', r.reader_look)
  end
  if r.state == 'waiting' and r.not_before <= now then
    arrive(r, ':front')
    return true, nil
  end
  if r.state == 'granted' and r.lease <= now then
    local w = give_back(r, 'not begun in time')
    -- Its worker is not parked again before it is heard of.
    if w then
      w.seen = 0
      redis.call('HSET', k_worker(w.id), 'seen', 0)
      count(r.model, 'not_begun')
    end
    return true, nil
  end
  if r.state == 'running' and r.lease <= now then
    if now < amnesty then
      r.lease = amnesty
      redis.call('HSET', k_request(r.id), 'lease', r.lease)
    else
      local w = charge(r, 0, 0, 'attempts_exhausted', 'worker ' .. r.worker .. ' was not heard of for a whole lease')
      -- The room this makes at a silent worker is no room: it would be granted the same request again.
      if w then
        w.seen = 0
        redis.call('HSET', k_worker(w.id), 'seen', 0)
      end
      return true, w
    end
  end
  set_timer(r)
  return false, nil
end

local moved = 0
for _, id in ipairs(redis.call('ZRANGE', TIMERS, '-inf', now, 'BYSCORE', 'LIMIT', 0, limit)) do
  local r = read_request(id)
  if r and r.ended_at == 0 then
    local did, w = look(r)
    if did then moved = moved + 1 end
    room_grew(w)
    meet_others(r.model)
  else
    drop_timer(id)
    if not r then later('ZREM', K_REQUESTS, id) end
  end
end

-- The list of requests forgets what is no longer kept.
settle(K_REQUESTS)
settle(K_EXPIRIES)
local forgotten = redis.call('ZRANGE', K_EXPIRIES, '-inf', now, 'BYSCORE', 'LIMIT', 0, 1000)
if #forgotten > 0 then
  redis.call('ZREM', K_REQUESTS, unpack(forgotten))
  redis.call('ZREM', K_EXPIRIES, unpack(forgotten))
end
return moved

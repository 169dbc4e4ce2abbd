#!lua flags=allow-oom
-- note_try: what came of one try to deliver a webhook. May be repeated; of two who made the same try at once one is noted,
-- but a delivery always is. verdict: delivered | again | given_up; later: it was not made, and counts for nothing.
-- use: later ground
-- args: now id number status error took_ms verdict wait_ms
-- returns state: owed | delivered | given_up, or nothing if it is no longer known
local found = redis.call('HMGET', k_webhook(id), 'state', 'tried', 'tries')
local state, tried, tries = found[1], tonumber(found[2]) or 0, found[3] or ''
if not state then
  redis.call('ZREM', K_OUTBOX, id)
  return nil
end
if state ~= 'owed' then return state end
if tonumber(number) ~= tried + 1 and verdict ~= 'delivered' then return state end
if verdict == 'later' then
  redis.call('ZADD', K_OUTBOX, now + tonumber(wait_ms), id)
  return state
end
local line = cjson.encode({at_ms = now - tonumber(took_ms), took_ms = tonumber(took_ms), status = tonumber(status), error = error}) .. '\n'
tries = tries .. line
while #tries > STORY_BYTES do tries = string.match(tries, '^[^\n]*\n(.*)$') end
redis.call('HSET', k_webhook(id), 'tried', tried + 1, 'tries', tries)
if verdict == 'again' then
  redis.call('ZADD', K_OUTBOX, now + tonumber(wait_ms), id)
  return state
end
redis.call('HSET', k_webhook(id), 'state', verdict)
redis.call('ZREM', K_OUTBOX, id)
redis.call('PEXPIRE', k_webhook(id), math.max(redis.call('PTTL', k_request(id)), RETENTION_MS))
return verdict

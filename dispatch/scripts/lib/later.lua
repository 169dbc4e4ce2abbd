-- Writes that the requests of one call share: they are done at its end, or sooner where somebody reads their key; of a key all in
-- one. A call for one request has nothing to share: it writes at once.
local MOST_WORDS = 1000 -- of one command: some thousands are too many for unpack

-- What stands above the functions outlives a call: what a call changes there begins anew with each.
local at_start, at_end = {}, {}

local pending -- key -> the command that is to be done: its words. nil: at once
local totals -- key -> field -> what it grows by
local gone -- keys

local function share()
  pending, totals, gone = {}, {}, {}
end

local function settle(key)
  local words = pending and pending[key]
  if not words then return end
  pending[key] = nil
  redis.call(unpack(words))
end

-- `command` changes `key` by one word or two. What another command is to do there is done before.
local function later(command, key, one, two)
  if not pending then return two and redis.call(command, key, one, two) or redis.call(command, key, one) end
  local words = pending[key]
  if not words or words[1] ~= command or #words > MOST_WORDS then
    settle(key)
    words = {command, key}
    pending[key] = words
  end
  words[#words + 1] = one
  words[#words + 1] = two
end

local function sum_later(key, field, by)
  if not pending then return redis.call('HINCRBY', key, field, by) end
  local sums = totals[key]
  if not sums then
    sums = {}
    totals[key] = sums
  end
  sums[field] = (sums[field] or 0) + by
end

local function delete_later(key)
  if not pending then return redis.call('DEL', key) end
  gone[#gone + 1] = key
end

-- A field of a hash that is written later.
local function field_now(key, field)
  for _, word in ipairs(pending and pending[key] or {}) do
    if word == field then
      settle(key)
      break
    end
  end
  return redis.call('HGET', key, field)
end

-- What a call leaves is written even where a step of it, or another such write, failed.
local function end_call()
  local failed
  for _, write in ipairs(at_end) do
    local done, why = pcall(write)
    if not done then failed = failed or why end
  end
  if pending then
    local function try(...)
      local reply = redis.pcall(...)
      if type(reply) == 'table' and reply.err then failed = failed or reply end
    end
    for _, words in pairs(pending) do try(unpack(words)) end
    for key, sums in pairs(totals) do
      for field, by in pairs(sums) do try('HINCRBY', key, field, by) end
    end
    for i = 1, #gone, MOST_WORDS do try('DEL', unpack(gone, i, math.min(i + MOST_WORDS - 1, #gone))) end
    pending = nil
  end
  if failed then error(failed, 0) end
end

local SMALL = {[0] = '0', '1', '2', '3', '4', '5', '6', '7', '8', '9'}
local texts, known_texts = {}, 0

-- A whole number that is written more than once, as a command takes it: Redis makes a text out of a number slowly, and each time.
local function text(n)
  local known = SMALL[n] or texts[n]
  if known then return known end
  if known_texts == 1000 then texts, known_texts = {}, 0 end
  known_texts = known_texts + 1
  texts[n] = string.format('%.0f', n)
  return texts[n]
end

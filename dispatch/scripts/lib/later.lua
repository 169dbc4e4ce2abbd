-- Writes that the steps of one call share: they are done at its end, or sooner where somebody reads their key; of a key all in one.
-- A call for one request of those that take several has nothing to share: it writes at once, but for trims.
local MOST_WORDS = 1000 -- of one command: some thousands are too many for unpack

-- What stands above the functions outlives a call: what a call changes there begins anew with each.
local at_start, at_end = {}, {}

local pending -- key -> the command that is to be done: its words, and by whom they are. nil: at once
local totals -- key -> field -> what it grows by, and by whom
local gone -- keys
local turn = 1 -- which of the call's requests is being done
local failures -- turn -> why a write of it failed; each counts for those alone whose write it was

local function share(several)
  pending, totals, gone, turn, failures = several and {} or nil, {}, {}, 1, {}
end

-- A write for several: it does not raise, for whoever happens to do it need not be of them.
local function write_for(by, ...)
  local reply = redis.pcall(...)
  if type(reply) == 'table' and reply.err then
    for each in pairs(by) do failures[each] = failures[each] or reply end
  end
  return reply
end

local function settle(key)
  local words = pending and pending[key]
  if not words then return end
  pending[key] = nil
  write_for(words.by, unpack(words))
end

-- `command` changes `key` by one word or two. What another command is to do there is done before.
local function later(command, key, one, two)
  if not pending then
    if two then redis.call(command, key, one, two) else redis.call(command, key, one) end
    return
  end
  local words = pending[key]
  if not words or words[1] ~= command or #words > MOST_WORDS then
    settle(key)
    words = {command, key, by = {}}
    pending[key] = words
  end
  words.by[turn] = true
  words[#words + 1] = one
  words[#words + 1] = two
end

local function sum_later(key, field, by)
  if not pending then return redis.call('HINCRBY', key, field, by) end
  local total = totals[key]
  if not total then
    total = {by = {}, sums = {}}
    totals[key] = total
  end
  total.by[turn] = true
  total.sums[field] = (total.sums[field] or 0) + by
end

local function delete_later(key)
  if not pending then return redis.call('DEL', key) end
  gone[#gone + 1] = key
end

-- A stream is to forget what stands there through `id`.
local trim_later
do
  local trims -- stream -> the id through which it is to be forgotten, and by whom
  at_start[#at_start + 1] = function() trims = {} end

  -- By its clock's 13 digits of ms and a number.
  local function is_after(id, other)
    local ms, its_ms = string.sub(id, 1, 13), string.sub(other, 1, 13)
    if ms ~= its_ms then return ms > its_ms end
    return #id > #other or (#id == #other and id > other)
  end

  trim_later = function(key, id)
    if not string.find(id, '^%d+%-%d+$') then error('no id of an entry: ' .. id, 0) end
    local trim = trims[key]
    if not trim then
      trims[key] = {through = id, by = {[turn] = true}}
      return
    end
    if is_after(id, trim.through) then trim.through = id end
    trim.by[turn] = true
  end

  at_end[#at_end + 1] = function()
    for key, trim in pairs(trims) do
      local ms, n = string.match(trim.through, '^(%d+)-(%d+)$')
      write_for(trim.by, 'XTRIM', key, 'MINID', ms .. '-' .. n + 1)
    end
  end
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
  local broken = nil
  for _, write in ipairs(at_end) do
    local done, why = pcall(write)
    if not done then broken = broken or why end
  end
  for key in pairs(pending or {}) do settle(key) end
  for key, total in pairs(totals) do
    for field, by in pairs(total.sums) do write_for(total.by, 'HINCRBY', key, field, by) end
  end
  for i = 1, #gone, MOST_WORDS do write_for({}, 'DEL', unpack(gone, i, math.min(i + MOST_WORDS - 1, #gone))) end
  pending = nil
  if broken then error(broken, 0) end
end

-- A whole number that is written more than once, as a command takes it: Redis makes a text out of a number slowly, and each time.
local text
do
  local SMALL = {[0] = '0', '1', '2', '3', '4', '5', '6', '7', '8', '9'}
  local texts, count = {}, 0
  text = function(n)
    local known = SMALL[n] or texts[n]
    if known then return known end
    if count == 1000 then texts, count = {}, 0 end
    count = count + 1
    known = string.format('%.0f', n)
    texts[n] = known
    return known
  end
end

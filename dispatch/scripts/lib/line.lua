-- The lines of waiting requests: one a priority; before each the front, for those given back; beside it the suspects, who run alone.
-- Beside each line stands a zset of its entries by cost, so that "does anything here fit?" costs O(log n).

local LINES = {
  {'high', ':front'}, {'high', ''}, {'normal', ':front'}, {'normal', ''}, {'low', ':front'}, {'low', ''},
}

local SUSPECTS = ':alone'
local PRIORITIES = {'high', 'normal', 'low'}
local RANK = {high = 0, normal = 1, low = 2}

local function k_line(model, priority, part) return TAG .. 'queue:' .. model .. ':' .. priority .. part end
local function k_sizes(model, priority, part) return TAG .. 'sizes:' .. model .. ':' .. priority .. part end

-- Whether this strategy is `pull`, which alone minds who is closed: choose.lua.
local is_pull

-- An entry of a line among the waiting of the other strategies.
local function other_of(priority, part, entry) return priority .. part .. ' ' .. entry end

local paused_ones, anybody -- model -> whether it is paused, whether anybody waits, as far as this call knows
at_start[#at_start + 1] = function() paused_ones, anybody = {}, {} end

local function is_paused(model)
  if paused_ones[model] == nil then paused_ones[model] = redis.call('SISMEMBER', K_PAUSED, model) == 1 end
  return paused_ones[model]
end

local function waiting_with(model, priority)
  return redis.call('XLEN', k_line(model, priority, SUSPECTS)) + redis.call('XLEN', k_line(model, priority, ':front'))
    + redis.call('XLEN', k_line(model, priority, ''))
end

-- Whoever waits has a size: one look where mostly nobody does.
local function anybody_waits(model)
  if anybody[model] ~= nil then return anybody[model] end
  local key = TAG .. 'sizes:' .. model
  anybody[model] = redis.call('EXISTS', key .. ':high:alone', key .. ':high:front', key .. ':high', key .. ':normal:alone', key .. ':normal:front',
    key .. ':normal', key .. ':low:alone', key .. ':low:front', key .. ':low') > 0
  return anybody[model]
end

-- How many wait: in all, and with this priority or a higher one.
local function count_waiting(model, lowest)
  if not anybody_waits(model) then return 0, 0 end
  local all, through = 0, 0
  for _, priority in ipairs(PRIORITIES) do
    all = all + waiting_with(model, priority)
    if priority == lowest then through = all end
  end
  return all, through
end

local WINDOW = 32 -- so many at the head of a line are looked at one by one

-- What an entry tells of its request: id, cost, since when it waits, prompt, strategy. One that an older release wrote tells no
-- prompt; what nobody of ours wrote waits longest, so that it is looked at and dropped.
local function entry_fields(e)
  local f = e[2]
  if not (f[1] == 'id' and f[3] == 'cost' and f[5] == 'at' and f[7] == 'prompt' and f[9] == 'strategy') then
    local named = {}
    for i = 1, #f, 2 do named[f[i]] = f[i + 1] end
    f = {nil, named.id, nil, named.cost, nil, named.at, nil, named.prompt, nil, named.strategy}
  end
  return f[2], tonumber(f[4]) or 0, tonumber(f[6]) or 0, tonumber(f[8]) or 0, f[10]
end

-- The same as scores ask for it.
local function entry_need(e)
  local id, cost, since, prompt, strategy = entry_fields(e)
  return {entry = e[1], id = id, cost = cost, queued_at = since, state = 'queued', prompt = prompt, strategy = strategy}
end

local function entry_since(e)
  if not e then return 0 end
  local _, _, since = entry_fields(e)
  return since
end

-- The ids of entries of one line, oldest first.
local function by_entry(entries)
  local moments = {}
  for _, entry in ipairs(entries) do
    local ms, n = string.match(entry, '^(%d+)-(%d+)$')
    moments[entry] = {tonumber(ms), tonumber(n)}
  end
  table.sort(entries, function(a, b)
    local x, y = moments[a], moments[b]
    return x[1] < y[1] or (x[1] == y[1] and x[2] < y[2])
  end)
  return entries
end

-- What came of it where the two lines met, for `request why`: the last few are kept.
local function note_meeting(r, words)
  local kept = (r.meetings or '') .. text(now) .. ' ' .. words .. '\n'
  while #kept > MEETINGS_BYTES do kept = string.match(kept, '^[^\n]*\n(.*)$') end
  r.meetings = kept
end

-- part: '' behind the others, ':front' before them (streams only grow at their end, so the head is a line of its own),
-- SUSPECTS beside them.
local function put_in_line(r, part)
  anybody[r.model] = true
  r.entry = redis.call('XADD', k_line(r.model, r.priority, part), '*', 'id', r.id, 'cost', r.cost, 'at', now,
    'prompt', r.prompt or 0, 'strategy', r.strategy or '')
  redis.call('ZADD', k_sizes(r.model, r.priority, part), r.cost, r.entry)
  if part ~= SUSPECTS and not is_pull(r.strategy) then redis.call('ZADD', k_others(r.model), r.cost, other_of(r.priority, part, r.entry)) end
  r.state = 'queued'
  r.part = part
  redis.call('HSET', k_request(r.id), 'state', 'queued', 'part', part, 'entry', r.entry, 'queued_at', now,
    'meetings', r.meetings or '', what_came(r))
  set_timer(r)
end

local function remove_entry(model, priority, part, entry)
  anybody[model] = nil
  redis.call('XDEL', k_line(model, priority, part), entry)
  redis.call('ZREM', k_sizes(model, priority, part), entry)
  if part ~= SUSPECTS then redis.call('ZREM', k_others(model), other_of(priority, part, entry)) end
end

local function take_off_line(r) remove_entry(r.model, r.priority, r.part, r.entry) end

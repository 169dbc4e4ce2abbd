-- Which of those that wait is next at a worker. Looks only: who takes it, and how, is for meet.lua.

-- The oldest at the head of a line that fits, else the oldest of the smallest behind it. Returns entry, request id.
local function next_fitting(w, line)
  local key = k_line(w.model, line[1], line[2])
  for _, e in ipairs(redis.call('XRANGE', key, '-', '+', 'COUNT', WINDOW)) do
    local id, cost = entry_fields(e)
    if not id or cost <= room(w) then return e[1], id end
  end
  local small = redis.call('ZRANGE', k_sizes(w.model, line[1], line[2]), '-inf', room(w), 'BYSCORE', 'LIMIT', 0, WINDOW)
  local oldest = by_entry(small)[1]
  local found = redis.call('XRANGE', key, oldest, oldest)
  return oldest, #found == 1 and entry_fields(found[1]) or nil
end

-- Of the head of a line what is next at w and fits and suits it: the oldest, by `pull` made younger by its prompt; else the oldest
-- such of the smallest behind it. Returns entry, request id.
local function next_suiting(w, line)
  local key = k_line(w.model, line[1], line[2])
  local head = redis.call('XRANGE', key, '-', '+', 'COUNT', WINDOW)
  local best, first, most = nil, 0, room(w)
  for _, e in ipairs(head) do
    local id, cost, since, prompt, strategy = entry_fields(e)
    -- None of those that came later than this one counts as come can be before it.
    if best and since >= first then break end
    if not id then return e[1], nil end
    local at = is_pull(strategy) and since + younger(w, prompt) or since
    if cost <= most and (not best or at < first) then
      local r = entry_need(e)
      if suits(w, r) then best, first = r, at end
    end
  end
  if best then return best.entry, best.id end
  if #head < WINDOW then return nil end
  local small = redis.call('ZRANGE', k_sizes(w.model, line[1], line[2]), '-inf', room(w), 'BYSCORE', 'LIMIT', 0, WINDOW)
  for _, entry in ipairs(by_entry(small)) do
    local e = redis.call('XRANGE', key, entry, entry)[1]
    local r = e and entry_need(e)
    if not (r and r.id) then return entry, nil end
    if suits(w, r) then return entry, r.id end
  end
  return nil
end

-- Lines in the order in which they are looked at: by priority, but AGEING_MS of longer waiting outweigh one priority.
local function by_age(model, lines)
  local since = {}
  for _, line in ipairs(lines) do
    local first = redis.call('XRANGE', k_line(model, line[1], line[2]), '-', '+', 'COUNT', 1)[1]
    local at = entry_since(first) + RANK[line[1]] * AGEING_MS
    since[line[1]] = math.min(since[line[1]] or at, at)
  end
  table.sort(lines, function(a, b)
    if a[1] ~= b[1] then
      if since[a[1]] ~= since[b[1]] then return since[a[1]] < since[b[1]] end
      return RANK[a[1]] < RANK[b[1]]
    end
    return a[2] == ':front' and b[2] ~= ':front'
  end)
  return lines
end

-- The lines of a model in which somebody waits, in the order in which they are looked at; each with its smallest cost.
local function waiting_lines(model)
  local keys = {}
  for i, line in ipairs(LINES) do keys[i] = k_sizes(model, line[1], line[2]) end
  if redis.call('EXISTS', unpack(keys)) == 0 then return {} end
  local lines = {}
  for i, line in ipairs(LINES) do
    local least = redis.call('ZRANGE', keys[i], 0, 0, 'WITHSCORES')
    if #least > 0 then lines[#lines + 1] = {line[1], line[2], tonumber(least[2])} end
  end
  return #lines > 1 and by_age(model, lines) or lines
end

-- The oldest of the smallest that wait by another strategy: whoever is closed takes these alone. Returns line, entry, request id.
local function next_other(w)
  local lines, entries = {}, {}
  for _, other in ipairs(redis.call('ZRANGE', k_others(w.model), '-inf', room(w), 'BYSCORE', 'LIMIT', 0, WINDOW)) do
    local priority, part, entry = string.match(other, '^(%a+)(%S*) (%S+)$')
    local name = priority .. part
    if not entries[name] then
      lines[#lines + 1] = {priority, part}
      entries[name] = {}
    end
    table.insert(entries[name], entry)
  end
  if #lines == 0 then return nil end
  local line = by_age(w.model, lines)[1]
  local entry = by_entry(entries[line[1] .. line[2]])[1]
  local found = redis.call('XRANGE', k_line(w.model, line[1], line[2]), entry, entry)
  return line, entry, #found == 1 and entry_fields(found[1]) or nil
end

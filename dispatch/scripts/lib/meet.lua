-- Two lines meet. Whoever comes second finds the first, in the same script.
-- Invariant: after every script no waiting request and parked pull are left that may meet.

-- A salt is random and of one call alone: the first nonce is the salt itself.
local draw_nonce
do
  local drawn -- salt -> nonces that were made of it in this call
  at_start[#at_start + 1] = function() drawn = {} end

  draw_nonce = function()
    local before = drawn[salt] or 0
    drawn[salt] = before + 1
    return before == 0 and salt or salt .. '.' .. before
  end
end

-- The request comes under a lease of w. The caller has taken it off its line, and stores w's load and parks it after.
local function grant(r, w)
  r.attempt = r.attempt + 1
  r.nonce = draw_nonce()
  r.state = 'granted'
  r.worker = w.id
  r.lease = now + GRANT_MS
  local first = w.held == 0
  if is_closed(w) then stirred[r.model] = true end
  w.parks = nil -- until the caller parks it with the room that is left
  w.used = w.used + r.cost
  w.held = w.held + 1
  later('HSET', k_held(w.id), r.id, text(r.cost))
  r.prefilling = w.tells_prefill and r.prompt or 0
  if r.prefilling > 0 then
    first = first or w.prefill == 0
    w.prefill = w.prefill + r.prompt
    later('HSET', k_prefill(w.id), r.id, text(r.prompt))
  end
  later('SADD', k_leases(r.model), r.id)
  r.inbox = redis.call('XADD', k_inbox(w.id), '*', 'grant', r.id .. ' ' .. text(r.attempt) .. ' ' .. r.nonce .. ' ' .. text(r.cost))
  if first then
    -- It may have made them; after that the worker's beats keep them.
    for _, key in ipairs({k_held(w.id), k_prefill(w.id), k_inbox(w.id)}) do
      settle(key)
      redis.call('PEXPIRE', key, WORKER_TTL_MS)
    end
  end
  note_meeting(r, 'granted ' .. w.id .. ' ' .. (r.met or 'line'))
  local told = text(r.attempt) .. ' ' .. r.nonce .. ' ' .. w.id .. ' ' .. r.inbox .. ' ' .. text(now)
  redis.call('HSET', k_request(r.id), 'state', 'granted', 'grant', told, 'lease', text(r.lease), 'prefilling', text(r.prefilling),
    'meetings', r.meetings, what_came(r))
  set_timer(r)
  remember_turn(r, w)
  if r.pinned and r.pinned ~= '' then lose_pin(r, w) end
end

local function keep_free(w, id)
  w.alone = id
  redis.call('HSET', k_worker(w.id), 'alone', id or '')
end

-- Whether some worker is being kept free for this waiting suspect.
local function has_place(r)
  if not r.reserved or r.reserved == '' then return false end
  local w = read_worker(r.reserved)
  return is_open(w) and w.alone == r.id
end

-- w runs the suspect alone: at once if it holds nothing, else as soon as that is so. The caller stores and parks w.
local function reserve(r, w)
  keep_free(w, r.id)
  if w.held > 0 then
    redis.call('HSET', k_request(r.id), 'reserved', w.id)
    return false
  end
  if r.state == 'queued' then take_off_line(r) end
  grant(r, w)
  return true
end

-- A parked pull for a suspect: one that holds nothing, else the one with the lowest score that could hold it, closed ones last.
local function find_place(r)
  if is_paused(r.model) then return nil end
  local other = nil
  for _, key in ipairs({k_parked(r.model), k_shut(r.model)}) do
    settle_workers()
    for _, id in ipairs(redis.call('ZRANGE', key, 0, -1)) do
      local w = read_worker(id)
      if is_open(w) and w.limit >= r.cost then
        if w.held == 0 then return w end
        other = other or w
      end
    end
  end
  return other
end

-- Nothing has room for it, or all that have are closed to it: it waits, and says why.
local function wait_in_line(r, part)
  settle_workers()
  local most = redis.call('ZRANGE', k_rooms(r.model), 0, 0, 'REV', 'WITHSCORES')
  if is_paused(r.model) then
    note_meeting(r, 'waits paused')
  elseif r.better then
    note_meeting(r, 'waits better ' .. r.better)
  elseif #most == 0 then
    note_meeting(r, 'waits no_pull')
  elseif is_pull(r.strategy) and tonumber(most[2]) >= r.cost then
    note_meeting(r, 'waits prefilling')
  else
    note_meeting(r, 'waits no_room ' .. most[1] .. ' ' .. most[2])
  end
  put_in_line(r, part)
end

-- A suspect that waits nowhere yet: under a lease, or in its line with a worker kept free for it where there is one.
local function arrive_alone(r)
  local w = find_place(r)
  if not (w and w.held == 0) then
    note_meeting(r, 'waits alone' .. (w and ' ' .. w.id or ''))
    put_in_line(r, SUSPECTS)
  end
  if w then
    reserve(r, w)
    store_load(w)
    park(w)
  end
end

-- A request that waits nowhere yet: granted at once, or put in line.
local function arrive(r, part)
  if (r.crashes or 0) > 0 then return arrive_alone(r) end
  local w = find_worker(r)
  if w then
    grant(r, w)
    store_load(w)
    park(w)
  else
    wait_in_line(r, part)
  end
end

-- Grant one entry of a line to w. An entry that stands for no waiting request is dropped and counted.
local function take_entry(w, line, entry, id, met)
  remove_entry(w.model, line[1], line[2], entry)
  local r = id and read_request(id)
  if r and r.state == 'queued' and r.entry == entry then
    r.met = met
    grant(r, w)
    return 1
  end
  count(w.model, 'bad_entries')
  return 0
end

-- w takes the one waiting request that is next and fits. Returns how many it took, or nil when there is none.
local function take_next(w)
  local closed = is_closed(w)
  if closed and redis.call('EXISTS', k_others(w.model)) == 0 then return nil end
  local lines = waiting_lines(w.model)
  pin_oldest(w, lines)
  if closed then
    local line, entry, id = next_other(w)
    return line and take_entry(w, line, entry, id)
  end
  local fitting = {}
  for _, line in ipairs(lines) do
    if line[3] <= room(w) then fitting[#fitting + 1] = line end
  end
  if #fitting == 0 then return nil end
  for _, line in ipairs(by_age(w.model, fitting)) do
    local entry, id = next_suiting(w, line)
    if entry then return take_entry(w, line, entry, id) end
  end
  -- Behind many that wait for a better one may stand one of another strategy, who does not.
  local line, entry, id = next_other(w)
  return line and take_entry(w, line, entry, id)
end

-- w takes what is next, as long as there is.
local function take_waiting(w)
  local granted = 0
  while room(w) > 0 do
    local took = take_next(w)
    if not took then break end
    granted = granted + took
  end
  return granted
end

-- As soon as it fits, w takes the request that it keeps room for, closed or not; before it whoever stands before it in its line and
-- fits, too: room that another worker keeps for that one may come later.
local function take_pinned(w)
  local granted = 0
  while w.pin and not w.alone do
    local r = pin_is_due(w)
    if not r then break end
    keep_room(w, nil)
    local line = {r.priority, r.part}
    local entry, id = next_fitting(w, line)
    if entry == r.entry or by_entry({entry, r.entry})[1] == r.entry then
      take_off_line(r)
      grant(r, w)
      return granted + 1
    end
    granted = granted + take_entry(w, line, entry, id)
    keep_room(w, r)
  end
  return granted
end

-- Suspects come first: w runs one alone, or is kept free for one that no other worker is kept free for.
local function take_suspect(w)
  if w.alone then
    local r = read_request(w.alone)
    local is_mine = r and r.ended_at == 0 and (is_held(r) and r.worker == w.id or r.state == 'queued' and r.reserved == w.id)
    if is_mine then return r.state == 'queued' and w.held == 0 and reserve(r, w) and 1 or 0 end
    keep_free(w, nil)
  end
  local keys = {}
  for i, priority in ipairs(PRIORITIES) do keys[i] = k_sizes(w.model, priority, SUSPECTS) end
  if redis.call('EXISTS', unpack(keys)) == 0 then return 0 end
  for _, priority in ipairs(PRIORITIES) do
    for _, e in ipairs(redis.call('XRANGE', k_line(w.model, priority, SUSPECTS), '-', '+', 'COUNT', 32)) do
      local id = entry_fields(e)
      local r = id and read_request(id)
      if not (r and r.state == 'queued' and r.entry == e[1]) then
        remove_entry(w.model, priority, SUSPECTS, e[1])
        count(w.model, 'bad_entries')
      elseif w.limit >= r.cost and not has_place(r) then
        return reserve(r, w) and 1 or 0
      end
    end
  end
  return 0
end

local room_grew

-- What a closed worker was waited for may suit those that are open, since it was looked at, went or took something.
local function meet_others(model)
  if not stirred[model] then return end
  stirred[model] = nil
  if not anybody_waits(model) or is_paused(model) then return end
  settle_workers()
  for _, id in ipairs(redis.call('ZRANGE', k_parked(model), 0, CANDIDATES - 1)) do
    local w = read_worker(id)
    if is_open(w) and take_waiting(w) > 0 then
      store_load(w)
      park(w)
    end
  end
  while #freed > 0 do room_grew(read_worker(table.remove(freed))) end
end

-- w's room grew, or it opened: it takes waiting requests that fit and suit it, by priority and age, and is parked again with what
-- is left.
room_grew = function(w)
  if not w then return 0 end
  local granted = 0
  not_shut(w.model, w.id)
  if is_open(w) and w.held < w.slots and (w.pin or w.alone or anybody_waits(w.model)) and not is_paused(w.model) then
    granted = take_suspect(w) + take_pinned(w)
    granted = granted + take_waiting(w)
  end
  store_load(w)
  park(w)
  -- What w took may have been waited for elsewhere.
  while #freed > 0 do room_grew(read_worker(table.remove(freed))) end
  meet_others(w.model)
  return granted
end

-- Every waiting request, by priority and age, meets the best of the parked pulls: for when many of both were kept apart.
local function meet_all(model)
  local granted = 0
  for _, priority in ipairs(PRIORITIES) do
    for _, e in ipairs(redis.call('XRANGE', k_line(model, priority, SUSPECTS), '-', '+', 'COUNT', 100)) do
      local id = entry_fields(e)
      local r = id and read_request(id)
      local w = nil
      if r and r.state == 'queued' then w = has_place(r) and read_worker(r.reserved) or find_place(r) end
      if w then
        if reserve(r, w) then granted = granted + 1 end
        store_load(w)
        park(w)
      end
    end
  end
  local keepers = redis.call('SMEMBERS', k_pins(model))
  table.sort(keepers)
  for _, id in ipairs(keepers) do
    local w = read_worker(id)
    if is_open(w) then
      granted = granted + take_pinned(w)
      store_load(w)
      park(w)
    end
  end
  for _, line in ipairs(waiting_lines(model)) do
    local after, passed = '-', 0
    while true do
      local page = redis.call('XRANGE', k_line(model, line[1], line[2]), after, '+', 'COUNT', 100)
      if #page == 0 then break end
      settle_workers()
      local most = redis.call('ZRANGE', k_rooms(model), 0, 0, 'REV', 'WITHSCORES')
      local least = redis.call('ZRANGE', k_sizes(model, line[1], line[2]), 0, 0, 'WITHSCORES')
      if #most == 0 or #least == 0 or tonumber(least[2]) > tonumber(most[2]) then break end
      for _, e in ipairs(page) do
        local r = entry_need(e)
        -- Where so many by `pull` in a row waited for the better, or for any to open, so do those behind them.
        if passed < WINDOW or not is_pull(r.strategy) then
          local id = r.id
          r = id and read_request(id) or {id = '', model = model, cost = r.cost, prompt = 0}
          local w = find_worker(r)
          if w then
            granted = granted + take_entry(w, line, e[1], id, r.met)
            store_load(w)
            park(w)
            passed = 0
          elseif is_pull(r.strategy) then
            passed = passed + 1
          end
        end
      end
      after = '(' .. page[#page][1]
    end
  end
  stirred[model] = true
  while #freed > 0 do room_grew(read_worker(table.remove(freed))) end
  meet_others(model)
  return granted
end

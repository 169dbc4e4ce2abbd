-- The lines of waiting requests: one a priority, and before each the front, for those given back.
-- Beside each line stands a zset of its entries by cost, so that "does anything here fit?" costs O(log n).

local LINES = {
  {'high', ':front'}, {'high', ''}, {'normal', ':front'}, {'normal', ''}, {'low', ':front'}, {'low', ''},
}

local function k_line(model, priority, part) return TAG .. 'queue:' .. model .. ':' .. priority .. part end
local function k_sizes(model, priority, part) return TAG .. 'sizes:' .. model .. ':' .. priority .. part end

local function is_paused(model) return redis.call('SISMEMBER', K_PAUSED, model) == 1 end

local function backlog(model)
  local waiting = 0
  for _, line in ipairs(LINES) do waiting = waiting + redis.call('XLEN', k_line(model, line[1], line[2])) end
  return waiting
end

-- How many are looked at no later than the last of this priority.
local function waiting_through(model, priority)
  local waiting = 0
  for _, line in ipairs(LINES) do
    waiting = waiting + redis.call('XLEN', k_line(model, line[1], line[2]))
    if line[1] == priority and line[2] == '' then break end
  end
  return waiting
end

-- part: '' behind the others, ':front' before them (streams only grow at their end, so the head is a line of its own).
local function put_in_line(r, part)
  r.entry = redis.call('XADD', k_line(r.model, r.priority, part), '*', 'id', r.id, 'cost', r.cost)
  redis.call('ZADD', k_sizes(r.model, r.priority, part), r.cost, r.entry)
  r.state = 'queued'
  r.part = part
  redis.call('HSET', k_request(r.id), 'state', 'queued', 'part', part, 'entry', r.entry, 'queued_at', now)
  set_timer(r)
end

local function remove_entry(model, priority, part, entry)
  redis.call('XDEL', k_line(model, priority, part), entry)
  redis.call('ZREM', k_sizes(model, priority, part), entry)
end

local function take_off_line(r) remove_entry(r.model, r.priority, r.part, r.entry) end

-- The ground under the autoscaler's scripts: who leads a group. KEYS[1] is the group's leader.
local LEADER, K_ORDERS
local K_LOG = '{scale}:log'
local K_STATUS = '{scale}:status'
local K_COUNTS = '{scale}:counts'

local failures = {}
local function share() end
local function end_call() end

local function start_call(leader)
  LEADER = leader
  K_ORDERS = '{scale}:orders:' .. string.sub(leader, #'{scale}:leader:' + 1)
  if now == '' then
    local time = redis.call('TIME')
    now = time[1] * 1000 + math.floor(time[2] / 1000)
  else
    now = tonumber(now)
  end
end

-- Who leads, under which epoch, and until when (ms).
local function leadership()
  local found = redis.call('HMGET', LEADER, 'id', 'epoch', 'until')
  return found[1] or '', tonumber(found[2]) or 0, tonumber(found[3]) or 0
end

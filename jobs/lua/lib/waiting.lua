-- What of a project waits to be sent, over all of its webhooks: bounded, since a receiver may be away for days.
--
-- Keys:
--   hash stockade:webhook_waiting:PROJECT   delivery -> bytes of its body; total: the sum of these
local function waiting(project) return 'stockade:webhook_waiting:' .. project end

local function waits(project, delivery, bytes)
  if redis.call('HSETNX', waiting(project), delivery, bytes) == 1 then
    redis.call('HINCRBY', waiting(project), 'total', bytes)
  end
end

local function waits_no_more(project, delivery)
  local bytes = redis.call('HGET', waiting(project), delivery)
  if not bytes then return end
  redis.call('HDEL', waiting(project), delivery)
  if redis.call('HINCRBY', waiting(project), 'total', -bytes) == 0 then redis.call('DEL', waiting(project)) end
end

-- How many deliveries wait, and how many bytes they have.
local function load_of_waiting(project)
  local total = redis.call('HGET', waiting(project), 'total')
  return math.max(0, redis.call('HLEN', waiting(project)) - 1), tonumber(total or 0)
end

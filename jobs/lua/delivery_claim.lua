-- needs: clock waiting
-- Take deliveries that are due, at most one of each webhook, the one first that has waited longest for its turn.
-- A claimed delivery is due again when the lease ends: what a claimer that died did not settle is sent once more.
-- KEYS 1 zset stockade:webhook_due   webhook id -> when it has something to be sent, or had its last turn, ms
-- ARGV 1 lease, ms  2 most  3 tries that a delivery has  4 prefix of a webhook's key  5 of a delivery's
--      6.. webhooks that are to be passed over
-- Returns {ms until something is due (-1: nothing waits), claim, claim, ...}; a claim is {webhook, delivery,
-- number of this try, of how many since it was begun, body, url, secret, old secret or '', 1 when the webhook fails}.
local now = clock()
local busy = {}
for n = 6, #ARGV do busy[ARGV[n]] = true end

-- It is not pending any more.
local function leave(id, hook, delivery)
  redis.call('ZREM', ARGV[4] .. id .. ':due', delivery)
  redis.call('ZREM', ARGV[4] .. id .. ':pending', delivery)
  waits_no_more(hook[7], delivery)
end

-- The delivery of this webhook that is due, marked as being tried; nil when there is none.
local function take(id, hook)
  local due = ARGV[4] .. id .. ':due'
  for _, delivery in ipairs(redis.call('ZRANGEBYSCORE', due, '-inf', whole(now), 'LIMIT', 0, 16)) do
    local key = ARGV[5] .. delivery
    local found = redis.call('HMGET', key, 'body', 'tries', 'begun')
    if not found[1] then  -- it expired
      leave(id, hook, delivery)
    elseif found[2] - found[3] >= tonumber(ARGV[3]) then  -- every try was cut off: settle.lua never saw the last
      leave(id, hook, delivery)
      redis.call('HSET', key, 'state', 'dead')
      redis.call('ZADD', ARGV[4] .. id .. ':dead', redis.call('HGET', key, 'number'), delivery)
    else
      local number = redis.call('HINCRBY', key, 'tries', 1)
      redis.call('ZADD', due, whole(now + ARGV[1]), delivery)
      local old = hook[4] and tonumber(hook[5]) > now and hook[4] or ''
      return {id, delivery, number, number - found[3], found[1], hook[2], hook[3], old, hook[6] ~= '' and 1 or 0}
    end
  end
end

local answer = {-1}
local most = tonumber(ARGV[2])
for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', whole(now), 'LIMIT', 0, most + #ARGV)) do
  if #answer > most then break end
  if not busy[id] then
    local hook = redis.call('HMGET', ARGV[4] .. id, 'state', 'url', 'secret', 'old_secret', 'old_until',
      'failing_since', 'tenant')
    if hook[1] == 'active' then answer[#answer + 1] = take(id, hook) end
    local first = redis.call('ZRANGE', ARGV[4] .. id .. ':due', 0, 0, 'WITHSCORES')
    if hook[1] == 'active' and first[1] then
      redis.call('ZADD', KEYS[1], whole(math.max(now, tonumber(first[2]))), id)
    else
      redis.call('ZREM', KEYS[1], id)
    end
  end
end
for _, id in ipairs(redis.call('ZRANGE', KEYS[1], 0, #ARGV)) do
  if not busy[id] then
    answer[1] = math.max(0, tonumber(redis.call('ZSCORE', KEYS[1], id)) - now)
    break
  end
end
return answer

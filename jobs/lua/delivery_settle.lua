-- needs: clock waiting
-- Write down what became of one try of a delivery.
-- KEYS 1 hash stockade:webhook:ID
--      2 hash stockade:delivery:ID
--      3 zset stockade:webhook_due
-- ARGV 1 webhook  2 delivery  3 number of the try  4 JSON about it
--      5 'delivered'; 'again', to be tried later; 'dead', not to be tried again; 'gone', and nothing else is either
--      6 ms until it is tried again  7 tries and settled deliveries to keep  8 the same  9 prefix of a delivery's key
--      10 ms of failing after which the webhook is paused
-- Returns the webhook's state: '' when it or the delivery is gone, or the try is not the latest (its lease ended and
-- another has begun) and no success.
local now = clock()
local hook, found = redis.call('HMGET', KEYS[1], 'state', 'failing_since', 'tenant'), redis.call('HMGET', KEYS[2], 'state',
  'tries', 'number')
if not hook[1] or found[1] ~= 'pending' then return '' end
if found[2] ~= ARGV[3] and ARGV[5] ~= 'delivered' then return '' end
redis.call('HSET', KEYS[2], 'try:' .. ARGV[3], ARGV[4])
redis.call('HDEL', KEYS[2], string.format('try:%d', ARGV[3] - ARGV[7]))

local state = hook[1]
local function pause(reason)
  if state ~= 'active' then return end
  state = 'paused'
  redis.call('HSET', KEYS[1], 'state', state, 'reason', reason)
end
if ARGV[5] == 'delivered' then
  redis.call('HSET', KEYS[1], 'failing_since', '')
elseif ARGV[5] == 'gone' then
  pause('It answered 410 Gone.')
elseif hook[2] == '' then
  redis.call('HSET', KEYS[1], 'failing_since', whole(now))
elseif now - hook[2] >= tonumber(ARGV[10]) then
  pause(string.format('Nothing was delivered for %d hours.', (now - hook[2]) / 3600000))
end

-- Move the delivery into the log of what is settled, and out of that what has become too old.
local function file(kept)
  local log = KEYS[1] .. ':' .. kept
  redis.call('HSET', KEYS[2], 'state', kept)
  redis.call('ZREM', KEYS[1] .. ':due', ARGV[2])
  redis.call('ZREM', KEYS[1] .. ':pending', ARGV[2])
  waits_no_more(hook[3], ARGV[2])
  redis.call('ZADD', log, found[3], ARGV[2])
  local surplus = redis.call('ZCARD', log) - ARGV[8]
  if surplus <= 0 then return end
  for _, oldest in ipairs(redis.call('ZRANGE', log, 0, surplus - 1)) do redis.call('UNLINK', ARGV[9] .. oldest) end
  redis.call('ZREMRANGEBYRANK', log, 0, surplus - 1)
end
if ARGV[5] == 'again' then
  redis.call('ZADD', KEYS[1] .. ':due', whole(now + ARGV[6]), ARGV[2])
else
  file(ARGV[5] == 'delivered' and 'delivered' or 'dead')
end

local first = redis.call('ZRANGE', KEYS[1] .. ':due', 0, 0, 'WITHSCORES')
if not first[1] or state ~= 'active' then
  redis.call('ZREM', KEYS[3], ARGV[1])
elseif tonumber(first[2]) > now then
  redis.call('ZADD', KEYS[3], first[2], ARGV[1])
else
  redis.call('ZADD', KEYS[3], 'LT', whole(now), ARGV[1])  -- it keeps its turn
end
return state

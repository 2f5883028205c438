-- Count events that were never written as dropped of the webhooks that would have been told.
-- KEYS 1 hash stockade:missed:PROJECT   state -> events
--      2.. hash stockade:webhook:ID
-- ARGV 1 state  2 how many
-- When fewer are left than that, another has counted them, and nothing is done.
local left = tonumber(redis.call('HGET', KEYS[1], ARGV[1]) or 0) - ARGV[2]
if left < 0 then return end
if left == 0 then redis.call('HDEL', KEYS[1], ARGV[1]) else redis.call('HSET', KEYS[1], ARGV[1], left) end
for n = 2, #KEYS do
  if redis.call('EXISTS', KEYS[n]) == 1 then redis.call('HINCRBY', KEYS[n], 'dropped', ARGV[2]) end
end

-- needs: clock
-- Make a webhook, unless the project has as many as it may.
-- KEYS 1 hash stockade:webhook:ID (fields: jobs/webhooks.py)
--      2 zset stockade:webhooks:TENANT   webhook id -> time of creation, ms
--      3 set  stockade:told              projects that have webhooks
-- ARGV 1 id  2 project  3 most  4 url  5 events  6 description  7 secret
-- Returns 1 when it is there, 0 when there are too many.
if redis.call('EXISTS', KEYS[1]) == 1 then return 1 end
if redis.call('ZCARD', KEYS[2]) >= tonumber(ARGV[3]) then return 0 end
local now = whole(clock())
redis.call('HSET', KEYS[1], 'tenant', ARGV[2], 'url', ARGV[4], 'events', ARGV[5], 'description', ARGV[6],
  'secret', ARGV[7], 'state', 'active', 'reason', '', 'failing_since', '', 'dropped', 0, 'created', now)
redis.call('ZADD', KEYS[2], now, ARGV[1])
redis.call('SADD', KEYS[3], ARGV[2])
return 1

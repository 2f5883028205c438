-- needs: clock waiting
-- Send a delivery again, now, with all its tries before it once more.
-- KEYS 1 hash stockade:webhook:ID
--      2 hash stockade:delivery:ID
--      3 zset stockade:webhook_due
-- ARGV 1 webhook  2 delivery  3 project  4 retention, ms
-- Returns 1; 0 when the project's webhook has no such delivery; -1 when the webhook is not active.
local hook = redis.call('HMGET', KEYS[1], 'tenant', 'state')
local found = redis.call('HMGET', KEYS[2], 'webhook', 'tries', 'number', 'body')
if hook[1] ~= ARGV[3] or found[1] ~= ARGV[1] then return 0 end
if hook[2] ~= 'active' then return -1 end
local now = whole(clock())
redis.call('HSET', KEYS[2], 'state', 'pending', 'begun', found[2])
redis.call('PEXPIRE', KEYS[2], ARGV[4])
waits(ARGV[3], ARGV[2], #found[4])
for _, state in ipairs({'delivered', 'dead'}) do redis.call('ZREM', KEYS[1] .. ':' .. state, ARGV[2]) end
redis.call('ZADD', KEYS[1] .. ':pending', found[3], ARGV[2])
redis.call('ZADD', KEYS[1] .. ':due', now, ARGV[2])
redis.call('ZADD', KEYS[3], 'LT', now, ARGV[1])
return 1

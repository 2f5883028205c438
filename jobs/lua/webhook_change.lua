-- needs: clock
-- Change a webhook's fields, its secret among them.
-- KEYS 1 hash stockade:webhook:ID
--      2 zset stockade:webhook_due   webhook id -> when it has something to be sent, ms
-- ARGV 1 id  2 project  3 new secret, or ''  4 ms that the old one is still good for; then field, value, ...
-- Returns 1, or 0 when the project has no such webhook.
if redis.call('HGET', KEYS[1], 'tenant') ~= ARGV[2] then return 0 end
local now = clock()
if ARGV[3] ~= '' and redis.call('HGET', KEYS[1], 'secret') ~= ARGV[3] then
  redis.call('HSET', KEYS[1], 'old_secret', redis.call('HGET', KEYS[1], 'secret'), 'old_until', whole(now + ARGV[4]),
    'secret', ARGV[3])
end
for n = 5, #ARGV, 2 do redis.call('HSET', KEYS[1], ARGV[n], ARGV[n + 1]) end
redis.call('ZADD', KEYS[2], 'LT', whole(now), ARGV[1])
return 1

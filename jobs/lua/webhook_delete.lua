-- needs: waiting
-- Remove a webhook, everything that waits to be sent to it, and its log.
-- KEYS 1 hash stockade:webhook:ID
--      2 zset stockade:webhooks:TENANT
--      3 set  stockade:told
--      4 zset stockade:webhook_due
--      what goes with the project's last webhook (jobs/news.py):  5 zset stockade:news  6 stream stockade:news:TENANT
--      7 hash stockade:missed:TENANT
-- ARGV 1 id  2 project  3 prefix of a delivery's key
-- Returns 1, or 0 when the project has no such webhook.
if redis.call('HGET', KEYS[1], 'tenant') ~= ARGV[2] then return 0 end
for _, state in ipairs({'pending', 'delivered', 'dead'}) do
  for _, delivery in ipairs(redis.call('ZRANGE', KEYS[1] .. ':' .. state, 0, -1)) do
    redis.call('UNLINK', ARGV[3] .. delivery)
    if state == 'pending' then waits_no_more(ARGV[2], delivery) end
  end
  redis.call('UNLINK', KEYS[1] .. ':' .. state)
end
redis.call('UNLINK', KEYS[1], KEYS[1] .. ':due')
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('ZREM', KEYS[4], ARGV[1])
if redis.call('EXISTS', KEYS[2]) == 0 then
  redis.call('SREM', KEYS[3], ARGV[2])
  redis.call('ZREM', KEYS[5], ARGV[2])
  redis.call('UNLINK', KEYS[6], KEYS[7])
end
return 1

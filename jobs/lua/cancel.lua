-- Cancel a job: one that waits ends at once, one that runs is marked and its worker told.
-- KEYS 1 hash   stockade:job:ID
--      2 zset   stockade:queued
-- ARGV 1 id  2 tenant  3 result JSON when it had not started  4 channel for finished jobs  5 channel for cancellations
-- Returns 1 when the tenant has such a job, whatever its state; else 0.
local job = redis.call('HMGET', KEYS[1], 'tenant', 'state', 'retention')
if job[1] ~= ARGV[2] then return 0 end
if job[2] == 'queued' then
  local t = redis.call('TIME')
  redis.call('HSET', KEYS[1], 'state', 'finished', 'result', ARGV[3],
    'finished', t[1] * 1000 + math.floor(t[2] / 1000))
  redis.call('HDEL', KEYS[1], 'token')
  redis.call('PEXPIRE', KEYS[1], job[3])
  redis.call('ZREM', KEYS[2], ARGV[1])
  redis.call('PUBLISH', ARGV[4], ARGV[1])
elseif job[2] == 'running' then
  redis.call('HSET', KEYS[1], 'state', 'cancelling')
  redis.call('PUBLISH', ARGV[5], ARGV[1])
end
return 1

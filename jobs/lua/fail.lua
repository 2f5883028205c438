-- End an attempt that failed for a reason of ours: queue the job again, or end it when its attempts are used up
-- or its cancellation was asked for.
-- KEYS 1 hash   stockade:job:ID
--      2 zset   stockade:queued
--      3 zset   stockade:leases
-- ARGV 1 id  2 token  3 "expired" to act only when the lease has ended, else ""  4 attempts a job may have
--      5 result JSON when they are used up  6 result JSON when cancelled  7 channel for finished jobs
-- Returns the number of the next attempt when queued again, 0 when finished, -1 when the token is stale or the
-- lease still holds.
local job = redis.call('HMGET', KEYS[1], 'token', 'state', 'attempt', 'retention')
if job[1] ~= ARGV[2] or (job[2] ~= 'running' and job[2] ~= 'cancelling') then return -1 end
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
if ARGV[3] == 'expired' and tonumber(redis.call('ZSCORE', KEYS[3], ARGV[1]) or 0) > now then return -1 end
redis.call('ZREM', KEYS[3], ARGV[1])
if job[2] == 'running' and tonumber(job[3]) < tonumber(ARGV[4]) then
  redis.call('HSET', KEYS[1], 'state', 'queued')
  redis.call('HDEL', KEYS[1], 'worker', 'token', 'started')
  redis.call('ZADD', KEYS[2], now, ARGV[1])
  return job[3] + 1
end
redis.call('HSET', KEYS[1], 'state', 'finished', 'finished', now,
  'result', job[2] == 'cancelling' and ARGV[6] or ARGV[5])
redis.call('PEXPIRE', KEYS[1], job[4])
redis.call('PUBLISH', ARGV[7], ARGV[1])
return 0

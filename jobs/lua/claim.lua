-- needs: clock budget release ending
-- Take a queued job for one attempt: the compare-and-set that makes execution once per attempt.
-- KEYS 1 hash   stockade:job:ID
--      2 string stockade:fence   counter of fencing tokens
-- ARGV 1 id  2 attempt  3 worker  4 lease, ms
-- Returns {token, now in ms, tenant, spec, admission, created, pool}, or false when the job is unknown, not queued
-- (a duplicate delivery), queued for another attempt (an old message), not released, or too late to start: it ends.
local job = job_of(ARGV[1])
if not job or job.state ~= 'queued' or job.attempt + 1 ~= tonumber(ARGV[2]) then return false end
local now = clock()
local published = redis.call('ZSCORE', 'stockade:released:' .. job.pool, ARGV[1])
if not published then return false end
local why = late(job, now)
if why then
  finish(ARGV[1], job, late_ending(why), nil, now)
  return false
end
local token = redis.call('INCR', KEYS[2])
redis.call('HSET', KEYS[1], 'state', 'running', 'attempt', ARGV[2], 'worker', ARGV[3], 'token', token,
  'started', whole(now))
redis.call('ZREM', 'stockade:released:' .. job.pool, ARGV[1])
redis.call('ZADD', 'stockade:leases:' .. job.pool, whole(now + ARGV[4]), ARGV[1])
redis.call('ZREM', 'stockade:due', ARGV[1])
local delivered = 'stockade:delivered:' .. job.pool
if tonumber(published) > tonumber(redis.call('GET', delivered) or 0) then redis.call('SET', delivered, published) end
announce(ARGV[1], job.tenant, 'running', '', ARGV[2], now)
local stored = redis.call('HMGET', KEYS[1], 'spec', 'admission', 'created')
return {token, now, job.tenant, stored[1], stored[2], stored[3], job.pool}

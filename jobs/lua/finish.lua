-- Store an attempt's result, end the job and tell those who wait.
-- KEYS 1 hash   stockade:job:ID
--      2 zset   stockade:leases
--      3 hash   stockade:artifacts:ID:TOKEN   path -> content
-- ARGV 1 id  2 token  3 result JSON  4 channel for finished jobs
-- Returns 1 when the result is stored (also when this same attempt had stored it before, so that a caller whose
-- answer was lost can ask again) and 0 when the token is stale.
local job = redis.call('HMGET', KEYS[1], 'token', 'state', 'retention')
if job[1] ~= ARGV[2] then return 0 end
if job[2] == 'finished' then return 1 end
if job[2] ~= 'running' and job[2] ~= 'cancelling' then return 0 end
local t = redis.call('TIME')
redis.call('HSET', KEYS[1], 'state', 'finished', 'result', ARGV[3],
  'finished', t[1] * 1000 + math.floor(t[2] / 1000))
redis.call('PEXPIRE', KEYS[1], job[3])
redis.call('PEXPIRE', KEYS[3], job[3])
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('PUBLISH', ARGV[4], ARGV[1])
return 1

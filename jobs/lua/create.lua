-- Write a new job, queued for its first attempt. One call: the job exists completely or not at all.
-- KEYS 1 hash   stockade:job:ID   the job (fields: jobs/store.py)
--      2 zset   stockade:queued   job id -> time of its last publication, ms
-- ARGV 1 id  2 tenant  3 spec JSON  4 admission JSON  5 policy name  6 retention, s
-- Returns the time of creation in ms (server clock), or -1 when the id is taken.
if redis.call('EXISTS', KEYS[1]) == 1 then return -1 end
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
redis.call('HSET', KEYS[1], 'id', ARGV[1], 'tenant', ARGV[2], 'state', 'queued', 'attempt', 1,
  'spec', ARGV[3], 'admission', ARGV[4], 'policy', ARGV[5], 'retention', ARGV[6], 'created', now)
redis.call('ZADD', KEYS[2], now, ARGV[1])
return now

-- Write a new job, queued for its first attempt. One call: the job exists completely or not at all.
-- KEYS 1 hash   stockade:job:ID   the job (fields: jobs/store.py)
--      2 zset   stockade:queued   job id -> time of its last publication, ms
-- ARGV 1 id  2 tenant  3 spec JSON  4 admission JSON  5 retention, ms
-- Returns the time of creation in ms (server clock). Ids are random: a job that is there already was written by an
-- earlier try of this same call, whose answer was lost.
local created = redis.call('HGET', KEYS[1], 'created')
if created then return tonumber(created) end
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
redis.call('HSET', KEYS[1], 'tenant', ARGV[2], 'state', 'queued', 'attempt', 0,
  'spec', ARGV[3], 'admission', ARGV[4], 'retention', ARGV[5], 'created', now)
redis.call('ZADD', KEYS[2], now, ARGV[1])
return now

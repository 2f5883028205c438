-- Take a queued job for one attempt: the compare-and-set that makes execution once per attempt.
-- KEYS 1 hash   stockade:job:ID
--      2 zset   stockade:queued     job id -> time of its last publication, ms
--      3 zset   stockade:leases     job id -> end of the running attempt's lease, ms
--      4 string stockade:fence      counter of fencing tokens
--      5 string stockade:delivered  publication time of the latest job that was claimed, ms
-- ARGV 1 id  2 attempt  3 worker  4 lease, ms
-- Returns {token, now in ms, tenant, spec, admission, created}, or false when the job is unknown, not queued
-- (a duplicate delivery) or queued for another attempt (an old message).
local job = redis.call('HMGET', KEYS[1], 'state', 'attempt', 'tenant', 'spec', 'admission', 'created')
if job[1] ~= 'queued' or job[2] + 1 ~= tonumber(ARGV[2]) then return false end
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local token = redis.call('INCR', KEYS[4])
redis.call('HSET', KEYS[1], 'state', 'running', 'attempt', ARGV[2], 'worker', ARGV[3], 'token', token,
  'started', now)
redis.call('ZADD', KEYS[3], now + ARGV[4], ARGV[1])
local published = redis.call('ZSCORE', KEYS[2], ARGV[1])
if published then
  redis.call('ZREM', KEYS[2], ARGV[1])
  if tonumber(published) > tonumber(redis.call('GET', KEYS[5]) or 0) then
    redis.call('SET', KEYS[5], published)
  end
end
return {token, now, job[3], job[4], job[5], job[6]}

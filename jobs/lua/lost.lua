-- Queued jobs whose message got lost, marked as published now; the caller publishes them. The broker's list is
-- first in, first out: a message is taken for lost when one published well after it was claimed, or when the list
-- is empty and it was published a while ago. Being wrong costs one duplicate delivery, which claims nothing.
-- KEYS 1 zset   stockade:queued
--      2 string stockade:delivered
--      3 list   the broker's queue
-- ARGV 1 a while, ms  2 most to return  3 prefix of a job's key
-- Returns {id, next attempt, id, next attempt, ...}. Entries whose job is gone are removed.
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local before = now - ARGV[1]
if redis.call('LLEN', KEYS[3]) > 0 then
  before = math.min(before, tonumber(redis.call('GET', KEYS[2]) or 0) - ARGV[1])
end
local answer = {}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', before, 'LIMIT', 0, ARGV[2])) do
  local attempt = redis.call('HGET', ARGV[3] .. id, 'attempt')
  if attempt then
    redis.call('ZADD', KEYS[1], now, id)
    answer[#answer + 1] = id
    answer[#answer + 1] = attempt + 1
  else
    redis.call('ZREM', KEYS[1], id)
  end
end
return answer

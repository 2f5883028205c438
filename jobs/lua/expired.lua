-- Attempts whose lease has ended. None while the server itself is younger than a lease: workers that could not
-- reach it then had no chance to renew.
-- KEYS 1 zset   stockade:leases
-- ARGV 1 lease, ms  2 most to return  3 prefix of a job's key
-- Returns {id, token, id, token, ...}. Entries whose job is gone are removed.
local up = tonumber(string.match(redis.call('INFO', 'server'), 'uptime_in_seconds:(%d+)'))
if up * 1000 < tonumber(ARGV[1]) then return {} end
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local answer = {}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, ARGV[2])) do
  local token = redis.call('HGET', ARGV[3] .. id, 'token')
  if token then
    answer[#answer + 1] = id
    answer[#answer + 1] = token
  else
    redis.call('ZREM', KEYS[1], id)
  end
end
return answer

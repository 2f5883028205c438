-- Prolong the leases of everything that one worker runs, and tell it what it should stop.
-- KEYS 1 zset   stockade:leases
--      2.. hash stockade:job:ID, one for each attempt
-- ARGV 1 lease, ms; then for each attempt: id, token
-- Returns for each attempt 0 (lost: the token is stale), 1 (renewed) or 2 (renewed; cancellation was asked for).
local t = redis.call('TIME')
local until_ = t[1] * 1000 + math.floor(t[2] / 1000) + ARGV[1]
local answers = {}
for n = 2, #KEYS do
  local id, token = ARGV[2 * n - 2], ARGV[2 * n - 1]
  local job = redis.call('HMGET', KEYS[n], 'token', 'state')
  if job[1] ~= token or (job[2] ~= 'running' and job[2] ~= 'cancelling') then
    answers[n - 1] = 0
  else
    redis.call('ZADD', KEYS[1], until_, id)
    answers[n - 1] = job[2] == 'cancelling' and 2 or 1
  end
end
return answers

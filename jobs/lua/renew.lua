-- needs: clock
-- Prolong the leases of everything that one worker runs, and tell it what it should stop.
-- KEYS hash stockade:job:ID, one for each attempt; and zset stockade:leases:POOL of each job's pool
-- ARGV 1 lease, ms; then for each attempt: id, token
-- Returns for each attempt 0 (lost: the token is stale), 1 (renewed) or 2 (renewed; cancellation was asked for).
local until_ = clock() + ARGV[1]
local answers = {}
for n = 1, #KEYS do
  local id, token = ARGV[2 * n], ARGV[2 * n + 1]
  local job = redis.call('HMGET', KEYS[n], 'token', 'state', 'pool')
  if job[1] ~= token or (job[2] ~= 'running' and job[2] ~= 'cancelling') then
    answers[n] = 0
  else
    redis.call('ZADD', 'stockade:leases:' .. job[3], whole(until_), id)
    answers[n] = job[2] == 'cancelling' and 2 or 1
  end
end
return answers

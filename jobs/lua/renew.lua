-- needs: clock budget release
-- Prolong the leases of everything that one worker runs, charge what runs longer than usual, and tell what is to stop.
-- KEYS hash stockade:job:ID, one for each attempt; and zset stockade:leases:POOL of each job's pool
-- ARGV 1 lease, ms; then for each attempt: id, token
-- Returns for each attempt 0 (lost: the token is stale), 1 (renewed) or 2 (renewed; cancellation was asked for).
local now = clock()
local until_ = now + ARGV[1]
local answers = {}
for n = 1, #KEYS do
  local id, token = ARGV[2 * n], ARGV[2 * n + 1]
  local job = redis.call('HMGET', KEYS[n], 'token', 'state', 'pool', 'tenant', 'started', 'charged')
  if job[1] ~= token or (job[2] ~= 'running' and job[2] ~= 'cancelling') then
    answers[n] = 0
  else
    redis.call('ZADD', 'stockade:leases:' .. job[3], whole(until_), id)
    local seconds, charged = (now - job[5]) / 1000, tonumber(job[6] or 0)
    if seconds > charged then
      charge_more(job[3], job[4], seconds - charged)
      redis.call('HSET', KEYS[n], 'charged', exact(seconds))
    end
    answers[n] = job[2] == 'cancelling' and 2 or 1
  end
end
return answers

-- needs: clock budget release ending
-- Cancel a job: one that waits ends at once, one that runs is marked and its worker told.
-- KEYS 1 hash   stockade:job:ID
-- ARGV 1 id  2 project  3..5 kind, outcome JSON, result JSON when it had not started  6 channel for cancellations
-- Returns 1 when the project has such a job, whatever its state; else 0.
local job = job_of(ARGV[1])
if not job or job.tenant ~= ARGV[2] then return 0 end
if job.state == 'queued' then
  finish(ARGV[1], job, {ARGV[3], ARGV[4], ARGV[5]}, nil, clock())
elseif job.state == 'running' then
  redis.call('HSET', KEYS[1], 'state', 'cancelling')
  announce(ARGV[1], job.tenant, 'cancelling', '', job.attempt, clock())
  redis.call('PUBLISH', ARGV[6], ARGV[1])
end
return 1

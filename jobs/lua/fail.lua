-- needs: clock budget release ending
-- End an attempt that failed for a reason of ours (see `fail` in lib/ending.lua).
-- KEYS none but those of the libraries
-- ARGV 1 id  2 token  3 attempts a job may have
--      4..6 kind, outcome JSON, result JSON when they are used up  7..9 the same when it was to be cancelled
-- Returns the number of the next attempt, 0 when the job has ended, -1 when the token is stale.
local job = job_of(ARGV[1])
if not job or job.token ~= ARGV[2] or (job.state ~= 'running' and job.state ~= 'cancelling') then return -1 end
return fail(ARGV[1], job, tonumber(ARGV[3]), {ARGV[4], ARGV[5], ARGV[6]}, {ARGV[7], ARGV[8], ARGV[9]}, clock())

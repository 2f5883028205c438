-- needs: clock budget release ending
-- Delete a finished job with all that is kept of it. What the audit log says of it stays.
-- ARGV 1 id  2 project  3 who asked, for the audit log
-- Returns 1 when it is gone, 0 when the project has no such job, -1 when it has not finished.
local job = job_of(ARGV[1])
if not job or job.tenant ~= ARGV[2] then return 0 end
if job.state ~= 'finished' then return -1 end
purge(ARGV[1], job, clock())
record(job.tenant, ARGV[3], 'job.deleted', string.format('{"job":"%s"}', ARGV[1]))
return 1

-- needs: clock budget release ending
-- Store an attempt's result, end the job, charge its tenants, release the next.
-- KEYS 1 hash   stockade:artifacts:ID:TOKEN   path -> content
-- ARGV 1 id  2 token  3 kind of the outcome  4 outcome JSON  5 result JSON
--      6 cpu seconds  7 memory GB-seconds  8 wall seconds  9 bytes of artifacts
-- Returns 1 when the result is stored (also when this same attempt had stored it before, so that a caller whose
-- answer was lost can ask again) and 0 when the token is stale, or the job was ended otherwise in the meantime.
local job = job_of(ARGV[1])
if not job or job.token ~= ARGV[2] then return 0 end
if job.state == 'finished' then
  return redis.call('HGET', 'stockade:job:' .. ARGV[1], 'result') == ARGV[5] and 1 or 0
end
if job.state ~= 'running' and job.state ~= 'cancelling' then return 0 end
finish(ARGV[1], job, {ARGV[3], ARGV[4], ARGV[5]}, {ARGV[6], ARGV[7], ARGV[8], ARGV[9]}, clock())
redis.call('PEXPIRE', KEYS[1], whole(job.retention + BACKSTOP))
return 1

-- Drop what was put among an attempt's artifacts when the attempt does not have the job any more.
-- KEYS 1 hash   stockade:job:ID
--      2 hash   stockade:artifacts:ID:TOKEN   path -> content
-- ARGV 1 token
-- Returns 1 when the artifacts are kept, 0 when they are gone.
local job = redis.call('HMGET', KEYS[1], 'token', 'state')
if job[1] == ARGV[1] and (job[2] == 'running' or job[2] == 'cancelling') then return 1 end
redis.call('UNLINK', KEYS[2])
return 0

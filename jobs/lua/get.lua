-- Read a job, if it is the project's: of another's nothing is touched but whose it is, so that it takes no longer than
-- one that is not there.
-- KEYS 1 hash   stockade:job:ID
-- ARGV 1 project, or '' for anybody's; then the fields that are wanted
-- Returns their values, or false.
local tenant = redis.call('HGET', KEYS[1], 'tenant')
if not tenant or (ARGV[1] ~= '' and tenant ~= ARGV[1]) then return false end
return redis.call('HMGET', KEYS[1], unpack(ARGV, 2))

-- needs: clock
-- Write a new API key of a project, unless it has too many.
-- KEYS 1 hash   stockade:key:ID       the key (fields: jobs/keys.py)
--      2 set    stockade:keys:TENANT  ids of the project's keys
-- ARGV 1 id  2 tenant  3 name  4 scopes  5 SHA-256 of the secret  6 expiry, ms, or ""
--      7 ms that an expired key is still listed  8 most keys of a project  9 prefix of a key's key
--      10 the project's key, stockade:tenant:ID: a user of Redis that may only read it may not have it among KEYS
-- Returns the time of creation in ms (server clock), -1 when there is no such project, -2 when it has too many keys.
-- Ids are random: a key that is there was written by an earlier try of this same call, whose answer was lost.
if (redis.call('HGET', ARGV[10], 'parent') or '') == '' then return -1 end
local created = redis.call('HGET', KEYS[1], 'created')
if created then return tonumber(created) end
if redis.call('SCARD', KEYS[2]) >= tonumber(ARGV[8]) then
  for _, id in ipairs(redis.call('SMEMBERS', KEYS[2])) do
    if redis.call('EXISTS', ARGV[9] .. id) == 0 then redis.call('SREM', KEYS[2], id) end
  end
  if redis.call('SCARD', KEYS[2]) >= tonumber(ARGV[8]) then return -2 end
end
local now = clock()
redis.call('HSET', KEYS[1], 'tenant', ARGV[2], 'name', ARGV[3], 'scopes', ARGV[4], 'sha256', ARGV[5],
  'created', now, 'expires', ARGV[6])
if ARGV[6] ~= '' then redis.call('PEXPIREAT', KEYS[1], ARGV[6] + ARGV[7]) end
redis.call('SADD', KEYS[2], ARGV[1])
return now

-- needs: clock
-- Give an API key a new secret; the one that it had may work on for a while.
-- KEYS 1 hash   stockade:key:ID
-- ARGV 1 tenant whose it must be, "" for any  2 SHA-256 of the new secret  3 ms that the old one still works, 0 for none
-- Returns 1 when it is done (also by an earlier try, whose answer was lost), 0 when there is no such key, -1 when it
-- has expired.
local key = redis.call('HMGET', KEYS[1], 'tenant', 'sha256', 'expires')
if not key[1] or (ARGV[1] ~= '' and key[1] ~= ARGV[1]) then return 0 end
if key[2] == ARGV[2] then return 1 end
local now = clock()
if key[3] ~= '' and tonumber(key[3]) <= now then return -1 end
redis.call('HSET', KEYS[1], 'sha256', ARGV[2])
if tonumber(ARGV[3]) > 0 then
  redis.call('HSET', KEYS[1], 'old_sha256', key[2], 'old_until', now + ARGV[3])
else
  redis.call('HDEL', KEYS[1], 'old_sha256', 'old_until')
end
return 1

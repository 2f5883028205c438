-- Remove an API key.
-- KEYS 1 hash   stockade:key:ID
-- ARGV 1 id  2 tenant whose it must be, "" for any  3 prefix of the sets of a tenant's keys
-- Returns 1, or 0 when there is no such key.
local tenant = redis.call('HGET', KEYS[1], 'tenant')
if not tenant or (ARGV[2] ~= '' and tenant ~= ARGV[2]) then return 0 end
redis.call('DEL', KEYS[1])
redis.call('SREM', ARGV[3] .. tenant, ARGV[1])
return 1

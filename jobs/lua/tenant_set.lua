-- needs: clock budget release
-- Change fields of a tenant that is there; its place in the orders follows its weight.
-- KEYS 1 hash   stockade:tenant:ID
--      and those of lib/release.lua
-- ARGV 1 how many fields are set; then each field and its value; then the fields that are taken away
-- Returns 1, or 0 when there is no such tenant.
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
local id = redis.call('HGET', KEYS[1], 'id')
local before = tenant(id).weight
local last = 1 + 2 * tonumber(ARGV[1])
for n = 2, last, 2 do redis.call('HSET', KEYS[1], ARGV[n], ARGV[n + 1]) end
for n = last + 1, #ARGV do redis.call('HDEL', KEYS[1], ARGV[n]) end
local after = tonumber(redis.call('HGET', KEYS[1], 'weight'))
if after ~= before then reweigh(id, before, after) end
return 1

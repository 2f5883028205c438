-- needs: clock
-- Everything that says who an API key speaks for, at one moment. The same calls whether or not there is such a key.
-- KEYS 1 hash   stockade:key:ID
-- ARGV 1 prefix of a tenant's key
-- Returns {now in ms, the key's fields and values, its project's, its organisation's}; those that are not there are empty.
local tenant = ARGV[1] .. (redis.call('HGET', KEYS[1], 'tenant') or '')
local parent = ARGV[1] .. (redis.call('HGET', tenant, 'parent') or '')
return {
  clock(),
  redis.call('HGETALL', KEYS[1]), redis.call('HGETALL', tenant), redis.call('HGETALL', parent)
}

-- Note when an API key was used, unless it is gone meanwhile.
-- KEYS 1 hash   stockade:key:ID
-- ARGV 1 when, ms
if redis.call('EXISTS', KEYS[1]) == 1 then redis.call('HSET', KEYS[1], 'used', ARGV[1]) end

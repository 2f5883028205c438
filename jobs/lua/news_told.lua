-- needs: clock
-- Forget news that were told, and give the project its next turn, the last of all. The stream stays when it is empty,
-- so that no identifier in it comes twice.
-- KEYS 1 zset   stockade:news
--      2 stream stockade:news:PROJECT
--      3 hash   stockade:missed:PROJECT
-- ARGV 1 project; then identifiers of entries
if ARGV[2] then redis.call('XDEL', KEYS[2], unpack(ARGV, 2)) end
redis.call('ZREM', KEYS[1], ARGV[1])
if redis.call('XLEN', KEYS[2]) == 0 and redis.call('EXISTS', KEYS[3]) == 0 then return end
-- Within one millisecond turns are told apart by thousandths: the latest turn that there is, but for leases.
local now = clock()
local last = redis.call('ZREVRANGEBYSCORE', KEYS[1], '(' .. whole(now + 1), '-inf', 'WITHSCORES', 'LIMIT', 0, 1)[2]
redis.call('ZADD', KEYS[1], exact(math.max(now, last and last + 0.001 or now)), ARGV[1])

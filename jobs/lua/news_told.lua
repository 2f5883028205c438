-- needs: clock
-- Forget news that were told, and give the project its next turn, the last of all. The stream stays when it is empty,
-- so that no identifier in it comes twice.
-- KEYS 1 zset   stockade:news
--      2 stream stockade:news:PROJECT
--      3 hash   stockade:missed:PROJECT
-- ARGV 1 project; then identifiers of entries
if ARGV[2] then redis.call('XDEL', KEYS[2], unpack(ARGV, 2)) end
if redis.call('XLEN', KEYS[2]) == 0 and redis.call('EXISTS', KEYS[3]) == 0 then
  redis.call('ZREM', KEYS[1], ARGV[1])
else
  redis.call('ZADD', KEYS[1], whole(clock()), ARGV[1])
end

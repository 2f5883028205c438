-- needs: clock
-- Take the oldest news of the project whose turn it is. Nobody else is given them before the lease ends.
-- KEYS 1 zset stockade:news   project -> when its turn is, or the lease of who has taken its news ends, ms
-- ARGV 1 lease, ms  2 most events
--      prefixes  3 stockade:news: (stream, fields: jobs/events.py)  4 stockade:missed: (hash, state -> events)
-- Returns {0, project, entries of its stream, fields and values of what it missed}; when it is nobody's turn, {ms until
-- it is}, {-1} when there are no news.
local now = clock()
local first = redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')
if not first[1] then return {-1} end
if math.floor(first[2]) > now then return {math.floor(first[2]) - now} end
redis.call('ZADD', KEYS[1], whole(now + ARGV[1]), first[1])
return {0, first[1], redis.call('XRANGE', ARGV[3] .. first[1], '-', '+', 'COUNT', ARGV[2]),
  redis.call('HGETALL', ARGV[4] .. first[1])}

-- Say that a worker lives, and forget those that have been silent for long.
-- KEYS 1 hash   stockade:workers   worker -> when it was last heard of, ms (server clock), space, JSON about it
-- ARGV 1 worker  2 JSON about it  3 silence, ms
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
redis.call('HSET', KEYS[1], ARGV[1], string.format('%.0f ', now) .. ARGV[2])
local all = redis.call('HGETALL', KEYS[1])
for n = 1, #all, 2 do
  if now - string.match(all[n + 1], '^%d+') > tonumber(ARGV[3]) then redis.call('HDEL', KEYS[1], all[n]) end
end

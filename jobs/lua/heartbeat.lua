-- needs: clock
-- Say that a worker lives, or has stopped; forget those that have been silent for long; count the slots of each pool.
-- KEYS 1 hash   stockade:workers   worker -> when it was last heard of, ms (server clock), space, JSON about it
--      2 hash   stockade:slots    pool -> slots of the live workers that serve it
-- ARGV 1 worker  2 JSON about it, or '' when it has stopped  3 silence, ms
local now, slots = clock(), {}
if ARGV[2] == '' then
  redis.call('HDEL', KEYS[1], ARGV[1])
else
  redis.call('HSET', KEYS[1], ARGV[1], whole(now) .. ' ' .. ARGV[2])
end
local all = redis.call('HGETALL', KEYS[1])
for n = 1, #all, 2 do
  local seen, about = string.match(all[n + 1], '^(%d+) (.*)$')
  if now - seen > tonumber(ARGV[3]) then
    redis.call('HDEL', KEYS[1], all[n])
  else
    local worker = cjson.decode(about)
    for _, pool in ipairs(worker.pools) do slots[pool] = (slots[pool] or 0) + worker.slots end
  end
end
redis.call('DEL', KEYS[2])
for pool, number in pairs(slots) do redis.call('HSET', KEYS[2], pool, whole(number)) end

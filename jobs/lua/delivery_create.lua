-- needs: clock waiting
-- Make a delivery, due at once. One that is there already was made by an earlier handling of the same event.
-- KEYS 1 hash stockade:webhook:ID; beside it :due (zset, delivery -> when it is to be sent, or sent again, ms) and
--             :pending, :delivered, :dead (zsets, delivery -> its number), the log
--      2 hash stockade:delivery:ID (fields: jobs/deliveries.py)
--      3 zset stockade:webhook_due
--      4 string stockade:webhook_sequence   counts deliveries
-- ARGV 1 webhook  2 delivery  3 type  4 job, or ''  5 body  6 retention, ms
--      7 most that may wait of a project  8 most bytes of these  9 what may wait of a webhook all the same
-- Returns 1 when it is there; 0 when the webhook is gone, not active, or too many wait (counted as dropped).
if redis.call('EXISTS', KEYS[2]) == 1 then return 1 end
local hook = redis.call('HMGET', KEYS[1], 'state', 'tenant')
if hook[1] ~= 'active' then return 0 end
local due, pending = KEYS[1] .. ':due', KEYS[1] .. ':pending'
local count, bytes = load_of_waiting(hook[2])
if (count >= tonumber(ARGV[7]) or bytes + #ARGV[5] > tonumber(ARGV[8]))
    and redis.call('ZCARD', due) >= tonumber(ARGV[9]) then
  redis.call('HINCRBY', KEYS[1], 'dropped', 1)
  return 0
end
local now = whole(clock())
local number = redis.call('INCR', KEYS[4])
redis.call('HSET', KEYS[2], 'webhook', ARGV[1], 'type', ARGV[3], 'job', ARGV[4], 'body', ARGV[5], 'state', 'pending',
  'tries', 0, 'begun', 0, 'number', number, 'created', now)
redis.call('PEXPIRE', KEYS[2], ARGV[6])
waits(hook[2], ARGV[2], #ARGV[5])
redis.call('ZADD', due, now, ARGV[2])
redis.call('ZADD', pending, number, ARGV[2])
redis.call('ZADD', KEYS[3], 'LT', now, ARGV[1])
return 1

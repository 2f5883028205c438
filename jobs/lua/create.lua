-- needs: clock budget release ending
-- Accept a new job: budgets, record, place in the backlog, and release of what there is room for. One call: the job
-- exists completely or not at all, and what is released is in the Celery queue.
-- KEYS 1 hash   stockade:job:ID
--      2 hash   stockade:idempotency:PROJECT:SHA-256 of the caller's key, if it sent one (fields: job, body)
-- ARGV 1 id  2 project  3 spec JSON  4 admission JSON  5 retention, ms  6 pool  7 priority class, 0 first
--      8 max_queue_time, ms  9 deadline, ms since the epoch, or ''  10 labels JSON  11 policy's name
--      12 SHA-256 of the body  13 who asked, for the audit log
-- Returns {'created', ms (server clock), submits per minute, left, ms until all are back} (the last three only where
-- that budget is set); {'again', id} when the idempotency key was used with the same body; {'mismatch', id} when with
-- another; {'over', budget, tenant, limit, used, ms to wait} when a budget is used up.
-- Ids are random: a job that is there already was written by an earlier try of this same call, whose answer was lost.
local id, project, pool = ARGV[1], ARGV[2], ARGV[6]
local now = clock()
local created = redis.call('HGET', KEYS[1], 'created')
if created then return {'created', tonumber(created)} end
if KEYS[2] then
  local used = redis.call('HMGET', KEYS[2], 'job', 'body')
  local expires = used[1] and redis.call('HGET', 'stockade:job:' .. used[1], 'expires')
  if used[1] and not (expires and tonumber(expires) <= now) then
    return {used[2] == ARGV[12] and 'again' or 'mismatch', used[1]}
  end
end
local budget, level, limit, used, wait = refused(project, now)
if budget then return {'over', budget, level, exact(limit), exact(used), wait} end

local starts_by = now + ARGV[8]
local due = ARGV[9] == '' and starts_by or math.min(starts_by, tonumber(ARGV[9]))
redis.call('HSET', KEYS[1], 'tenant', project, 'state', 'queued', 'attempt', 0, 'spec', ARGV[3], 'admission', ARGV[4],
  'retention', ARGV[5], 'created', whole(now), 'pool', pool, 'starts_by', whole(starts_by), 'labels', ARGV[10],
  'policy', ARGV[11])
if ARGV[9] ~= '' then redis.call('HSET', KEYS[1], 'ends_by', ARGV[9]) end
if KEYS[2] then
  redis.call('HSET', KEYS[1], 'idempotency', KEYS[2])
  redis.call('HSET', KEYS[2], 'job', id, 'body', ARGV[12])
  redis.call('PERSIST', KEYS[2])
end
redis.call('ZADD', 'stockade:jobs:' .. project, whole(now), id)
redis.call('ZADD', 'stockade:due', whole(due), id)
redis.call('XADD', 'stockade:audit:' .. project, 'MAXLEN', '~', 10000, '*', 'at', whole(now), 'actor', ARGV[13],
  'action', 'job.admitted', 'about', string.format('{"job":"%s","policy":"%s"}', id, ARGV[11]))
announce(id, project, 'queued', '', 0, now)

redis.call('SADD', 'stockade:pools', pool)
redis.call('ZADD', 'stockade:backlog:' .. pool .. ':' .. project,
  whole(ARGV[7] * 2 ^ 48 + redis.call('INCR', 'stockade:arrivals')), id)
count(project, 'queued', 1)
for _, level in ipairs(chain(project)) do review(pool, level, now) end
activate(pool, project)
local most, left, full = take_token(project, now)
release(pool, now, 16)
if most then return {'created', now, math.floor(most), math.floor(left), math.ceil(full)} end
return {'created', now}

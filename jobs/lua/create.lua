-- needs: clock budget release ending idempotency
-- Accept a new job: budgets, record, place in the backlog, and release of what there is room for. One call: the job
-- exists completely or not at all, and what is released is in the Celery queue.
-- KEYS 1 hash   stockade:job:ID
--      2 hash   stockade:idempotency:PROJECT:SHA-256 of the caller's key, if it sent one
-- ARGV 1 id  2 project  3 spec JSON  4 admission JSON  5 retention, ms  6 pool  7 priority class, 0 first
--      8 max_queue_time, ms  9 deadline, ms since the epoch, or ''  10 labels JSON  11 policy's name
--      12 SHA-256 of the body  13 who asked, for the audit log  14 what of the spec is kept after its end, '' for all
--      15 sizes of its files then
-- Returns {'created', ms (server clock), jobs of its own that go before it or -1 when it is released, RATE};
-- {'again', id, RATE} when the idempotency key was used with the same body; {'mismatch', id, RATE} when with another;
-- {'over', budget, tenant, limit, used, ms to wait, RATE} when a budget is used up; {'gone'} when there is no such
-- project any more. RATE is three numbers, as `rate` in lib/budget.lua tells them, or nothing.
-- Ids are random: a job that is there already was written by an earlier try of this same call, whose answer was lost.
local id, project, pool = ARGV[1], ARGV[2], ARGV[6]
local backlog = 'stockade:backlog:' .. pool .. ':' .. project
local now = clock()
local function accepted(created)
  return with_rate({'created', created, redis.call('ZRANK', backlog, id) or -1}, project, now)
end

local created = redis.call('HGET', KEYS[1], 'created')
if created then return accepted(tonumber(created)) end
if redis.call('EXISTS', 'stockade:tenant:' .. project) == 0 then return {'gone'} end
local before = KEYS[2] and earlier(KEYS[2], ARGV[12])
if before then return with_rate(before, project, now) end
local budget, level, limit, used, wait = refused(project, now)
if budget then return with_rate({'over', budget, level, exact(limit), exact(used), wait}, project, now) end

local function enter()
  local starts_by = now + ARGV[8]
  local due = ARGV[9] == '' and starts_by or math.min(starts_by, tonumber(ARGV[9]))
  redis.call('HSET', KEYS[1], 'tenant', project, 'state', 'queued', 'attempt', 0, 'spec', ARGV[3], 'admission', ARGV[4],
    'retention', ARGV[5], 'created', whole(now), 'pool', pool, 'starts_by', whole(starts_by), 'labels', ARGV[10],
    'policy', ARGV[11])
  if ARGV[9] ~= '' then redis.call('HSET', KEYS[1], 'ends_by', ARGV[9]) end
  if ARGV[14] ~= '' then redis.call('HSET', KEYS[1], 'kept', ARGV[14], 'sizes', ARGV[15]) end
  if KEYS[2] then
    redis.call('HSET', KEYS[1], 'idempotency', KEYS[2])
    redis.call('HSET', KEYS[2], 'job', id, 'body', ARGV[12])
    redis.call('PERSIST', KEYS[2])
  end
  redis.call('ZADD', 'stockade:jobs:' .. project, whole(now), id)
  redis.call('ZADD', 'stockade:due', whole(due), id)
  record(project, ARGV[13], 'job.admitted', string.format('{"job":"%s","policy":"%s"}', id, ARGV[11]))
  announce(id, project, 'queued', '', 0, now)
  redis.call('SADD', 'stockade:pools', pool)
  redis.call('ZADD', backlog, whole(ARGV[7] * 2 ^ 48 + redis.call('INCR', 'stockade:arrivals')), id)
  count(project, 'queued', 1)
end

-- Redis keeps what a script wrote before it failed. A job that is half there would be taken for the answer to the
-- next try with its idempotency key; what else names it is dropped by whoever finds that there is no such job.
local done, failure = pcall(enter)
if not done then
  redis.call('DEL', unpack(KEYS))
  redis.pcall('ZREM', backlog, id)
  error(failure, 0)
end
for _, level in ipairs(chain(project)) do review(pool, level, now) end
activate(pool, project)
take_token(project, now)
release(pool, now, 16)
return accepted(now)

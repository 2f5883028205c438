-- The end of a job, whatever brought it: its record, its places in the queues, what it used, who is told.
--
-- Keys beside those of lib/release.lua and lib/budget.lua:
--   hash   stockade:job:ID       the job (jobs/store.py)
--   zset   stockade:due          queued jobs -> when they end unless they have started, ms
--   zset   stockade:expiry       finished jobs -> when they are deleted, ms
--   zset   stockade:jobs:PROJECT its jobs -> when they were accepted, ms
--   hash   stockade:artifacts:ID:TOKEN   what the attempt of that token collected: path -> content
--   stream stockade:audit:PROJECT:jobs   what its audit log has about jobs (jobs/audit.py)
--   stream stockade:events       every change of a job's state: job, tenant, state, outcome, attempt, at
--   set    stockade:told         projects that have webhooks; what follows is only of these (jobs/news.py)
--   stream stockade:news:PROJECT its events that its webhooks are still to be told of
--   hash   stockade:missed:PROJECT   state -> events that came when too many waited there
--   zset   stockade:news         projects that have news -> when their turn is, ms
--   channel stockade:news        projects that have news and had none
--   channel stockade:finished    ids of jobs that end
--   hash   stockade:metrics      counters (jobs/metrics.py); here jobs_finished_total|KIND|POOL
local BACKSTOP = 86400000  -- ms after which an expired job vanishes by itself if nobody sweeps
local EVENTS = 100000
local NEWS = 20000
local ENTRIES = 10000
local LATE = {
  deadline_exceeded = 'Its deadline came before it was started.',
  queue_time_exceeded = 'It waited for its start longer than it may.',
}

local function artifacts(id, token) return 'stockade:artifacts:' .. id .. ':' .. token end

local function record(project, actor, action, about)
  redis.call('XADD', 'stockade:audit:' .. project .. ':jobs', 'MAXLEN', '~', ENTRIES, '*', 'actor', actor, 'action',
    action, 'about', about)
end

-- Write down a change of a job's state: for everyone, and once more for the webhooks of its project, if it has any.
local function announce(id, project, state, outcome, attempt, now)
  local event = {'job', id, 'tenant', project, 'state', state, 'outcome', outcome, 'attempt', attempt, 'at', whole(now)}
  redis.call('XADD', 'stockade:events', 'MAXLEN', '~', EVENTS, '*', unpack(event))
  if redis.call('SISMEMBER', 'stockade:told', project) == 0 then return end
  if redis.call('XLEN', 'stockade:news:' .. project) < NEWS then
    redis.call('XADD', 'stockade:news:' .. project, '*', unpack(event))
  else
    redis.call('HINCRBY', 'stockade:missed:' .. project, state, 1)
  end
  if redis.call('ZADD', 'stockade:news', 'NX', whole(now), project) == 1 then
    redis.call('PUBLISH', 'stockade:news', project)
  end
end

-- Why a job that has not started may not start any more; nil when it may.
local function late(job, now)
  if job.ends_by and now >= job.ends_by then return 'deadline_exceeded' end
  if job.attempt == 0 and now >= job.starts_by then return 'queue_time_exceeded' end
end

-- Correct the charge of a job that was released by what it did take, and learn from it.
local function settle(pool, project, job, now)
  local seconds = math.max(FLOOR, job.started and (now - job.started) / 1000 or 0)
  settle_pass(pool, project, seconds, job.charged or 0)
  if not job.started then return end
  local usual = tonumber(redis.call('HGET', 'stockade:load:' .. project, 'typical') or seconds)
  redis.call('HSET', 'stockade:load:' .. project, 'typical', exact(usual + (seconds - usual) / 8))
end

-- Take a job out of wherever it waits or runs.
local function leave(id, job, now)
  local pool, project = job.pool, job.tenant
  local backlog = 'stockade:backlog:' .. pool .. ':' .. project
  redis.call('ZREM', 'stockade:due', id)
  if redis.call('ZREM', backlog, id) == 1 then
    count(project, 'queued', -1)
    if redis.call('EXISTS', backlog) == 0 then
      redis.call('ZREM', 'stockade:order:' .. pool .. ':' .. organisation(project), project)
    end
    return
  end
  withdraw(pool, id, job.attempt + 1)
  redis.call('ZREM', 'stockade:leases:' .. pool, id)
  count(project, 'running', -1)
  settle(pool, project, job, now)
end

-- A job's fields that this needs, as numbers where they are numbers; nil when there is no such job.
local function job_of(id)
  local names = {'tenant', 'pool', 'state', 'attempt', 'token', 'retention', 'started', 'charged', 'idempotency',
    'starts_by', 'ends_by'}
  local values = redis.call('HMGET', 'stockade:job:' .. id, unpack(names))
  if not values[1] then return nil end
  local job = {}
  for n, name in ipairs(names) do job[name] = values[n] or nil end
  for _, name in ipairs({'attempt', 'retention', 'started', 'charged', 'starts_by', 'ends_by'}) do job[name] = tonumber(job[name]) end
  return job
end

-- Write down the end of a job. `ending` is {kind of outcome, JSON of the outcome, JSON of the result}, `charge` is as
-- in `account`, or nil when nothing of it ran.
local function conclude(id, job, ending, charge, now)
  local key, expires = 'stockade:job:' .. id, now + job.retention
  charge = charge or {0, 0, 0, 0}
  redis.call('HSET', key, 'state', 'finished', 'result', ending[3], 'outcome', ending[2], 'finished', whole(now),
    'expires', whole(expires), 'artifact_bytes', charge[4])
  local kept = redis.call('HGET', key, 'kept')
  if kept then
    redis.call('HSET', key, 'spec', kept)
    redis.call('HDEL', key, 'kept')
  end
  redis.call('PEXPIRE', key, whole(job.retention + BACKSTOP))
  if job.idempotency then redis.call('PEXPIRE', job.idempotency, whole(job.retention)) end
  redis.call('ZADD', 'stockade:expiry', whole(expires), id)
  leave(id, job, now)
  account(job.tenant, ending[1], charge, now)
  redis.call('HINCRBY', 'stockade:metrics', 'jobs_finished_total|' .. ending[1] .. '|' .. job.pool, 1)
  announce(id, job.tenant, 'finished', ending[1], job.attempt, now)
  redis.call('PUBLISH', 'stockade:finished', id)
end

-- End a job as `conclude` does. What there is room for now is released in the same step, also in other pools where this
-- job's end leaves its tenants room.
local function finish(id, job, ending, charge, now)
  conclude(id, job, ending, charge, now)
  for _, pool in ipairs(review_all(job.tenant, now)) do
    if pool ~= job.pool then release(pool, now, 16) end
  end
  release(job.pool, now, 16)
end

-- The ending of a job for which `late` says why.
local function late_ending(why)
  local outcome = string.format('{"kind":"%s","message":"%s"}', why, LATE[why])
  return {why, outcome, '{"outcome":' .. outcome .. '}'}
end

-- End a job at the head of a backlog when it may not start any more, or drop what is there no longer; tell whether.
-- Its project has had its turn for that, or a flood of such jobs would hold everybody else up.
ended_late = function(pool, project, id, now)
  local job = job_of(id)
  local why = job and late(job, now)
  if job and not why then return false end
  settle_pass(pool, project, FLOOR, 0)
  if why then
    conclude(id, job, late_ending(why), nil, now)
  elseif redis.call('ZREM', 'stockade:backlog:' .. pool .. ':' .. project, id) == 1 then
    count(project, 'queued', -1)
  end
  return true
end

-- End an attempt that we failed: publish the job again, or end it when its attempts are used up or it was to be
-- cancelled. A job that is tried again keeps its place in the window; what the attempt collected is dropped. Answers
-- the next attempt, 0 when it has ended.
local function fail(id, job, attempts, ending, cancelled, now)
  redis.call('UNLINK', artifacts(id, job.token))
  if job.state == 'running' and job.attempt < attempts then
    redis.call('ZREM', 'stockade:leases:' .. job.pool, id)
    redis.call('HSET', 'stockade:job:' .. id, 'state', 'queued')
    redis.call('HDEL', 'stockade:job:' .. id, 'worker', 'token', 'started')
    if job.ends_by then redis.call('ZADD', 'stockade:due', whole(job.ends_by), id) end
    announce(id, job.tenant, 'queued', '', job.attempt, now)
    publish(job.pool, id, job.attempt + 1, now)
    return job.attempt + 1
  end
  finish(id, job, job.state == 'cancelling' and cancelled or ending, nil, now)
  return 0
end

-- Delete all that is kept of a finished job. DEL comes first: where the memory is full, Redis refuses whatever could
-- need more to a script that has not written yet.
local function purge(id, job, now)
  local bytes = tonumber(redis.call('HGET', 'stockade:job:' .. id, 'artifact_bytes') or 0)
  redis.call('DEL', 'stockade:job:' .. id, 'stockade:live:' .. id)
  if bytes > 0 and redis.call('EXISTS', 'stockade:load:' .. job.tenant) == 1 then  -- it may have been removed
    count(job.tenant, 'artifact_bytes', -bytes)
  end
  if job.token then redis.call('UNLINK', artifacts(id, job.token)) end
  if job.idempotency and redis.call('HGET', job.idempotency, 'job') == id then redis.call('DEL', job.idempotency) end
  redis.call('ZREM', 'stockade:jobs:' .. job.tenant, id)
  redis.call('ZREM', 'stockade:expiry', id)
  announce(id, job.tenant, 'deleted', '', job.attempt, now)
end

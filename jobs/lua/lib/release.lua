-- Fair release: whose job goes into the Celery queue next.
--
-- Celery's queue knows no tenants and is first in, first out. So only as many jobs stand in it, or run, as the live
-- workers of its pool have slots, and a few more (the window); all others wait in a backlog of their project. When
-- there is room, the turn is that of the organisation, and within it of the project, that has had the least so far
-- for its weight (start-time fair queueing): each has a pass, the slot-seconds it has had divided by its weight. The
-- smallest pass goes first and moves on by what its job takes: at its release by what the project's jobs usually
-- take (charged ahead), while it runs for longer by what it has taken (renew.lua), at its end by the difference to what
-- it did take, at least FLOOR.
--
-- Who comes back from having nothing to run starts where the tenant that was served last stood, without what that one
-- was charged ahead, and never behind everybody who waits: idling earns no credit, and a newcomer does not pay for a
-- guess that was too high. Who had more than its share before it went idle keeps that.
--
-- Who may not have more now (concurrent_jobs reached, a budget of the hour used up) leaves the order and is parked.
-- It stands in the order again when the end of one of its jobs, a new job of it, or the time given in the set of the
-- parked finds that nothing bars it any more; a parked tenant is never in the order, so that none is looked at twice.
--
-- Keys (PATH is POOL, where organisations stand, or POOL:ORGANISATION, where its projects do):
--   set  stockade:pools                 names of the pools that ever had a job
--   hash stockade:slots                 pool -> slots of the live workers that serve it (heartbeat.lua)
--   zset stockade:backlog:POOL:PROJECT  job id -> priority class * 2^48 + number of its arrival
--   zset stockade:order:PATH            tenants that have something to release -> pass
--   hash stockade:pass:PATH             tenant -> its latest pass; '' -> pass from which those who come now start
--   hash stockade:ahead:PATH            tenant -> how much of its pass was charged ahead, for jobs not yet ended
--   zset stockade:parked                POOL|TENANT -> when to look at it again, ms
--   zset stockade:released:POOL         jobs in the Celery queue -> time of their last publication, ms
--   zset stockade:leases:POOL           jobs that run -> end of the running attempt's lease, ms
--   list stockade:celery:POOL           the Celery queue itself (kombu's Redis transport: LPUSH, BRPOP)
--   hash stockade:load:PROJECT          queued, running (lib/budget.lua); typical: seconds of its usual job
-- A project without an organisation (none that was made by jobs/tenants.py) is its own.
-- Cost: O(log tenants) for each job, however many wait and however many tenants there are; what a job that is withdrawn
-- from the Celery queue costs is in the length of that, which is the window.
-- Numbers: a pass is a double. 1,000 slots for 10 years at weight 1 are 3 * 10^11, where doubles are 0.00006 apart.
local FLOOR = 0.05
local FIRST = 1
local PARKED = 5000
local PARKED_MAX = 128
local LATE_MAX = 256

local ended_late  -- in lib/ending.lua

local function organisation(project) return tenant(project).parent or project end

-- The message of a job; jobs/broker.py lets in exactly this form.
local function message(pool, id, attempt, published)
  return string.format(
    '{"body":"[[\\"%s\\",%d],{},{}]","content-encoding":"utf-8","content-type":"application/json",' ..
    '"headers":{"lang":"py","task":"stockade.run_job","id":"%s/%d"},' ..
    '"properties":{"delivery_tag":"%s/%d/%.0f","delivery_mode":2,"delivery_info":{"exchange":"","routing_key":"%s"}}}',
    id, attempt, id, attempt, id, attempt, published, pool)
end

local function publish(pool, id, attempt, now)
  redis.call('ZADD', 'stockade:released:' .. pool, whole(now), id)
  redis.call('LPUSH', 'stockade:celery:' .. pool, message(pool, id, attempt, now))
end

-- Take a job's message out of the queue again, where no worker has fetched it yet: who submits and cancels in a loop
-- would else fill the queue, and everybody waits until the workers have been through it.
local function withdraw(pool, id, attempt)
  local published = redis.call('ZSCORE', 'stockade:released:' .. pool, id)
  if not published then return end
  redis.call('ZREM', 'stockade:released:' .. pool, id)
  redis.call('LREM', 'stockade:celery:' .. pool, 1, message(pool, id, attempt, published))
end

local function is_parked(pool, id) return redis.call('ZSCORE', 'stockade:parked', pool .. '|' .. id) end

-- The two places of a project, each {path, who stands there}: its own, and that of its organisation.
local function places(pool, project)
  local group = organisation(project)
  return {{pool .. ':' .. group, project}, {pool, group}}
end

local function join(pool, path, name)
  local order, pass = 'stockade:order:' .. path, 'stockade:pass:' .. path
  if redis.call('ZSCORE', order, name) or is_parked(pool, name) then return end
  local passes = redis.call('HMGET', pass, name, '')
  local start = tonumber(passes[2] or 0)
  local front = redis.call('ZRANGE', order, 0, 0, 'WITHSCORES')[2]
  if front then start = math.min(start, tonumber(front)) end
  start = exact(math.max(start, tonumber(passes[1] or 0)))
  redis.call('HSET', pass, name, start)
  redis.call('ZADD', order, start, name)
end

-- Let a project that has a backlog, and its organisation, take their turns.
local function activate(pool, project)
  for _, place in ipairs(places(pool, project)) do join(pool, place[1], place[2]) end
end

-- Move a tenant's pass, and its place in the order, by slot-seconds that it `had` and by those that it is charged
-- ahead (negative: that had been).
local function move(path, name, had, ahead)
  local weight = tenant(name).weight
  local moved = redis.call('HINCRBYFLOAT', 'stockade:pass:' .. path, name, exact((had + ahead) / weight))
  redis.call('ZADD', 'stockade:order:' .. path, 'XX', moved, name)
  local rest = redis.call('HINCRBYFLOAT', 'stockade:ahead:' .. path, name, exact(ahead / weight))
  if tonumber(rest) < 1e-6 then redis.call('HDEL', 'stockade:ahead:' .. path, name) end
end

-- A tenant's pass without what it was charged ahead.
local function settled(path, name)
  local ahead = tonumber(redis.call('HGET', 'stockade:ahead:' .. path, name) or 0)
  return tonumber(redis.call('HGET', 'stockade:pass:' .. path, name) or 0) - ahead
end

-- Exchange what a project and its organisation were charged ahead for a job by what it took. While nobody waits, what
-- is had is had at nobody's expense: those who come next start behind it.
local function settle_pass(pool, project, had, charged)
  for _, place in ipairs(places(pool, project)) do
    local path, name = place[1], place[2]
    move(path, name, had, -charged)
    if redis.call('EXISTS', 'stockade:order:' .. path) == 0 then
      local start = tonumber(redis.call('HGET', 'stockade:pass:' .. path, '') or 0)
      redis.call('HSET', 'stockade:pass:' .. path, '', exact(math.max(start, settled(path, name))))
    end
  end
end

-- Charge a job that has run for longer than it was charged ahead for that too, so that who holds slots for hours with
-- jobs that used to take seconds is not taken for one who has had next to nothing.
local function charge_more(pool, project, seconds)
  for _, place in ipairs(places(pool, project)) do move(place[1], place[2], 0, seconds) end
end

-- Carry what a tenant has had more, or less, than the others over to its new weight.
local function reweigh(id, old, new)
  for _, pool in ipairs(redis.call('SMEMBERS', 'stockade:pools')) do
    local path = tenant(id).parent and pool .. ':' .. tenant(id).parent or pool
    local passes = redis.call('HMGET', 'stockade:pass:' .. path, id, '')
    if passes[1] then
      local start = tonumber(passes[2] or 0)
      local pass = exact(start + (passes[1] - start) * old / new)
      redis.call('HSET', 'stockade:pass:' .. path, id, pass)
      redis.call('ZADD', 'stockade:order:' .. path, 'XX', pass, id)
      local ahead = redis.call('HGET', 'stockade:ahead:' .. path, id)
      if ahead then redis.call('HSET', 'stockade:ahead:' .. path, id, exact(ahead * old / new)) end
    end
  end
end

-- ms after which a tenant that may have no further job now is looked at again; nil when it may.
local function barred(id, now)
  local most = tenant(id).concurrent_jobs
  if most and load_of(id, 'running') >= most then return PARKED end
  local budget, _, _, wait = spent(id, now)
  if budget then return math.min(wait, 60000) end
end

local function park(pool, order, id, now)
  local wait = barred(id, now)
  if not wait then return false end
  redis.call('ZREM', order, id)
  redis.call('ZADD', 'stockade:parked', whole(now + wait), pool .. '|' .. id)
  return true
end

-- Look at a parked tenant: when nothing bars it, it is back in the order, if it has something to release there.
-- Answers whether that is so.
local function review(pool, id, now)
  if not is_parked(pool, id) then return false end
  local backlog = redis.call('EXISTS', 'stockade:backlog:' .. pool .. ':' .. id) == 1
  local waits = backlog or redis.call('EXISTS', 'stockade:order:' .. pool .. ':' .. id) == 1
  local wait = waits and barred(id, now)
  if wait then
    redis.call('ZADD', 'stockade:parked', whole(now + wait), pool .. '|' .. id)
    return false
  end
  redis.call('ZREM', 'stockade:parked', pool .. '|' .. id)
  if backlog then activate(pool, id) elseif waits then join(pool, pool, id) end
  return waits
end

-- The same for a project and its organisation, in all pools, after one of their jobs. Answers the pools where one of
-- them is back.
local function review_all(project, now)
  local found = {}
  for _, pool in ipairs(redis.call('SMEMBERS', 'stockade:pools')) do
    for _, level in ipairs(chain(project)) do
      if review(pool, level, now) then found[#found + 1] = pool end
    end
  end
  return found
end

local function count(id, field, by)
  for _, level in ipairs(chain(id)) do redis.call('HINCRBY', 'stockade:load:' .. level, field, by) end
end

-- The project whose turn it is, with the order that it stands in; nil when nobody has anything to release. Tenants
-- that are barred are parked on the way, some at a time: this bounds the step, and nobody is parked twice.
local function next_project(pool, now)
  local groups = 'stockade:order:' .. pool
  for _ = 1, PARKED_MAX do
    local group = redis.call('ZRANGE', groups, 0, 0)[1]
    if not group then return nil end
    local order = groups .. ':' .. group
    local project = redis.call('ZRANGE', order, 0, 0)[1]
    if not project then
      redis.call('ZREM', groups, group)
    elseif group ~= project and park(pool, groups, group, now) then
      -- its projects stay in their order
    elseif not park(pool, order, project, now) then
      return project, order
    elseif redis.call('EXISTS', order) == 0 then
      redis.call('ZREM', groups, group)
    end
  end
end

-- Note whose turn it is, and charge ahead what the project's jobs usually take. Answers the seconds.
local function serve(pool, project)
  local seconds = tonumber(redis.call('HGET', 'stockade:load:' .. project, 'typical') or FIRST)
  for _, place in ipairs(places(pool, project)) do
    redis.call('HSET', 'stockade:pass:' .. place[1], '', exact(settled(place[1], place[2])))
    move(place[1], place[2], 0, seconds)
  end
  return seconds
end

-- Release jobs of a pool as long as there is room in its window, `most` at a time. Jobs that may not start any more end
-- instead, LATE_MAX at a time. Answers how many were released.
local function release(pool, now, most)
  local slots = tonumber(redis.call('HGET', 'stockade:slots', pool) or 0)
  local taken = redis.call('ZCARD', 'stockade:released:' .. pool) + redis.call('ZCARD', 'stockade:leases:' .. pool)
  -- A job of another tenant that comes now waits for at most one job's length: while each slot ends one job, all
  -- that stands in the queue has been taken, as long as that is fewer than there are slots.
  local room, released, ended = slots + math.floor(slots / 4) - taken, 0, 0
  while room > released and released < most and ended < LATE_MAX do
    local project, order = next_project(pool, now)
    if not project then break end
    local backlog = 'stockade:backlog:' .. pool .. ':' .. project
    local id = redis.call('ZRANGE', backlog, 0, 0)[1]
    if id and ended_late(pool, project, id, now) then
      ended = ended + 1
    elseif id then
      redis.call('ZREM', backlog, id)
      redis.call('HSET', 'stockade:job:' .. id, 'charged', exact(serve(pool, project)))
      count(project, 'queued', -1)
      count(project, 'running', 1)
      publish(pool, id, 1, now)
      released = released + 1
    end
    if redis.call('EXISTS', backlog) == 0 then redis.call('ZREM', order, project) end
  end
  return released
end

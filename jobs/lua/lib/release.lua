-- Fair release: whose job goes into the Celery queue next.
--
-- Celery's queue knows no tenants and is first in, first out. So only as many jobs stand in it, or run, as the live
-- workers of its pool have slots, and a few more (the window); all others wait in a backlog of their project. When
-- there is room, the turn is that of the organisation, and within it of the project, that has had the least so far
-- for its weight (start-time fair queueing): each has a pass, the slot-seconds it has had divided by its weight. The
-- smallest pass goes first and moves on by what its job takes: at its release by what the project's jobs usually
-- take, at its end by the difference to what it did take, at least FLOOR. Who comes back from having nothing to run
-- starts at the pass that was served last: idling earns no credit.
--
-- Who may not have more now (concurrent_jobs reached, a budget of the hour used up) leaves the order and is parked;
-- the end of one of its jobs, or the time given in the set of the parked, brings it back.
--
-- Keys:
--   set  stockade:pools                   names of the pools that ever had a job
--   hash stockade:slots                  pool -> slots of the live workers that serve it (heartbeat.lua)
--   zset stockade:backlog:POOL:PROJECT    job id -> priority class * 2^48 + number of its arrival
--   zset stockade:order:POOL               organisations that have something to release -> pass
--   zset stockade:order:POOL:ORGANISATION  projects of it that have something to release -> pass
--   hash stockade:pass:POOL               organisation -> its latest pass; '' -> pass that was served last
--   hash stockade:pass:POOL:ORGANISATION  project -> the same within the organisation
--   zset stockade:parked                  POOL|TENANT -> when to look at it again, ms
--   zset stockade:released:POOL           jobs in the Celery queue -> time of their last publication, ms
--   zset stockade:leases:POOL             jobs that run -> end of the running attempt's lease, ms
--   list stockade:celery:POOL             the Celery queue itself (kombu's Redis transport: LPUSH, BRPOP)
--   hash stockade:load:PROJECT            queued, running (lib/budget.lua); typical: seconds of its usual job
-- A project without an organisation (none that was made by jobs/tenants.py) is its own.
-- Cost: O(log tenants) for each job, however many wait and however many tenants there are.
local FLOOR = 0.05
local FIRST = 1
local PARKED = 5000

local function organisation(project) return tenant(project).parent or project end

-- Put a job's message into the queue of its pool; jobs/broker.py lets in exactly this form.
local function publish(pool, id, attempt, now)
  redis.call('ZADD', 'stockade:released:' .. pool, whole(now), id)
  redis.call('LPUSH', 'stockade:celery:' .. pool, string.format(
    '{"body":"[[\\"%s\\",%d],{},{}]","content-encoding":"utf-8","content-type":"application/json",' ..
    '"headers":{"lang":"py","task":"stockade.run_job","id":"%s/%d"},' ..
    '"properties":{"delivery_tag":"%s/%d/%.0f","delivery_mode":2,"delivery_info":{"exchange":"","routing_key":"%s"}}}',
    id, attempt, id, attempt, id, attempt, now, pool))
end

local function join(order, pass, name)
  if redis.call('ZSCORE', order, name) then return end
  local passes = redis.call('HMGET', pass, name, '')
  redis.call('ZADD', order, exact(math.max(tonumber(passes[1] or 0), tonumber(passes[2] or 0))), name)
end

-- Let a project that has a backlog, and its organisation, take their turns.
local function activate(pool, project)
  local group = organisation(project)
  join('stockade:order:' .. pool .. ':' .. group, 'stockade:pass:' .. pool .. ':' .. group, project)
  join('stockade:order:' .. pool, 'stockade:pass:' .. pool, group)
end

-- Move a tenant's pass by `seconds` of slot time; its place in the order with it.
local function move(order, pass, name, seconds)
  local moved = redis.call('HINCRBYFLOAT', pass, name, exact(seconds / tenant(name).weight))
  redis.call('ZADD', order, 'XX', moved, name)
end

local function move_both(pool, project, seconds)
  local group = organisation(project)
  move('stockade:order:' .. pool .. ':' .. group, 'stockade:pass:' .. pool .. ':' .. group, project, seconds)
  move('stockade:order:' .. pool, 'stockade:pass:' .. pool, group, seconds)
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

-- Bring a parked tenant back into the order, if it has something to release there.
local function unpark(pool, id)
  if redis.call('ZREM', 'stockade:parked', pool .. '|' .. id) == 0 then return end
  if redis.call('EXISTS', 'stockade:backlog:' .. pool .. ':' .. id) == 1 then activate(pool, id) end
  if redis.call('EXISTS', 'stockade:order:' .. pool .. ':' .. id) == 1 then
    join('stockade:order:' .. pool, 'stockade:pass:' .. pool, id)
  end
end

local function count(id, field, by)
  for _, level in ipairs(chain(id)) do redis.call('HINCRBY', 'stockade:load:' .. level, field, by) end
end

-- The project whose turn it is, with the order that it stands in; nil when nobody has anything to release. Tenants
-- that are barred are parked on the way, some at a time.
local function next_project(pool, now)
  local groups = 'stockade:order:' .. pool
  for _ = 1, 64 do
    local group = redis.call('ZRANGE', groups, 0, 0)[1]
    if not group then return nil end
    local order = groups .. ':' .. group
    local project = redis.call('ZRANGE', order, 0, 0)[1]
    if not project then
      redis.call('ZREM', groups, group)
    elseif not (group ~= project and park(pool, groups, group, now)) and not park(pool, order, project, now) then
      return project, order
    end
  end
end

-- The pass at which a tenant is served is the one from which those who come now start; it never goes back.
local function advance(passes, name, pass)
  local latest = tonumber(redis.call('HGET', passes, '') or 0)
  redis.call('HSET', passes, name, pass, '', exact(math.max(latest, tonumber(pass))))
end

-- Note whose turn it was, and charge what the project's jobs usually take. Answers the seconds.
local function serve(pool, project)
  local group = organisation(project)
  local groups, order = 'stockade:order:' .. pool, 'stockade:order:' .. pool .. ':' .. group
  local passes, within = 'stockade:pass:' .. pool, 'stockade:pass:' .. pool .. ':' .. group
  local pass, inner = redis.call('ZSCORE', groups, group), redis.call('ZSCORE', order, project)
  advance(passes, group, pass)
  advance(within, project, inner)
  local seconds = tonumber(redis.call('HGET', 'stockade:load:' .. project, 'typical') or FIRST)
  move_both(pool, project, seconds)
  return seconds
end

-- Release jobs of a pool as long as there is room in its window, `most` at a time. Answers how many.
local function release(pool, now, most)
  local slots = tonumber(redis.call('HGET', 'stockade:slots', pool) or 0)
  local taken = redis.call('ZCARD', 'stockade:released:' .. pool) + redis.call('ZCARD', 'stockade:leases:' .. pool)
  -- A job of another tenant that comes now waits for at most one job's length: while each slot ends one job, all
  -- that stands in the queue has been taken, as long as that is fewer than there are slots.
  local room, released = slots + math.floor(slots / 4) - taken, 0
  while room > released and released < most do
    local project, order = next_project(pool, now)
    if not project then break end
    local backlog = 'stockade:backlog:' .. pool .. ':' .. project
    local id = redis.call('ZPOPMIN', backlog)[1]
    if id then
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

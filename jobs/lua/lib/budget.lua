-- What tenants may use, and whether it is used up. Budgets are read where they are asked, so that a change counts
-- from the next question on.
--
-- Keys (tenants are projects and organisations):
--   hash stockade:tenant:ID     name, parent, weight, and a field for each budget that is set (jobs/tenants.py)
--   hash stockade:load:ID       queued (in the backlog), running (released and not ended), artifact_bytes,
--                               tokens and tokens_at (what is left of submits_per_minute, and when that was, ms)
--   hash stockade:usage:ID:h:N  what was used in hour N since the epoch: jobs, cpu_seconds, memory_gb_seconds,
--                               wall_seconds, artifact_bytes, outcome:KIND
--   hash stockade:usage:ID:d:N  the same for day N
local FIELDS = {'parent', 'weight', 'concurrent_jobs', 'queued_jobs', 'submits_per_minute', 'artifact_bytes',
  'cpu_seconds_per_hour', 'cpu_seconds_per_day', 'memory_gb_seconds_per_hour', 'memory_gb_seconds_per_day'}
local WINDOWS = {
  {budget = 'cpu_seconds_per_hour', field = 'cpu_seconds', key = ':h:', length = 3600000},
  {budget = 'cpu_seconds_per_day', field = 'cpu_seconds', key = ':d:', length = 86400000},
  {budget = 'memory_gb_seconds_per_hour', field = 'memory_gb_seconds', key = ':h:', length = 3600000},
  {budget = 'memory_gb_seconds_per_day', field = 'memory_gb_seconds', key = ':d:', length = 86400000},
}
local KEPT = {[':h:'] = 8 * 86400, [':d:'] = 400 * 86400}
local known = {}

-- A tenant's budgets and weight as numbers; one that is not in the store has none, and weight 1.
local function tenant(id)
  if not known[id] then
    local values = redis.call('HMGET', 'stockade:tenant:' .. id, unpack(FIELDS))
    local found = {id = id}
    for n, name in ipairs(FIELDS) do found[name] = tonumber(values[n] or nil) end
    found.parent = values[1] and values[1] ~= '' and values[1] or nil
    found.weight = found.weight or 1
    known[id] = found
  end
  return known[id]
end

-- The project and, if it has one, its organisation.
local function chain(project)
  local parent = tenant(project).parent
  return parent and {project, parent} or {project}
end

local function load_of(id, field) return tonumber(redis.call('HGET', 'stockade:load:' .. id, field) or 0) end

-- The first budget of a time window that a tenant has used up: name, limit, used, ms until the window ends.
local function spent(id, now)
  local has = tenant(id)
  for _, window in ipairs(WINDOWS) do
    local limit = has[window.budget]
    if limit then
      local number = math.floor(now / window.length)
      local used = tonumber(redis.call('HGET', 'stockade:usage:' .. id .. window.key .. whole(number), window.field) or 0)
      if used >= limit then return window.budget, limit, used, (number + 1) * window.length - now end
    end
  end
end

-- What is left of a tenant's submits_per_minute: a bucket of that many tokens, filled evenly over a minute.
local function tokens(id, now)
  local limit = tenant(id).submits_per_minute
  local bucket = redis.call('HMGET', 'stockade:load:' .. id, 'tokens', 'tokens_at')
  if not bucket[1] then return limit end
  return math.min(limit, bucket[1] + math.max(0, now - bucket[2]) * limit / 60000)
end

-- The first budget that keeps a project from handing in one more job: name, tenant, limit, used, ms to wait.
local function refused(project, now)
  for _, id in ipairs(chain(project)) do
    local has = tenant(id)
    if has.queued_jobs and load_of(id, 'queued') >= has.queued_jobs then
      return 'queued_jobs', id, has.queued_jobs, load_of(id, 'queued'), 1000
    end
    if has.artifact_bytes and load_of(id, 'artifact_bytes') >= has.artifact_bytes then
      return 'artifact_bytes', id, has.artifact_bytes, load_of(id, 'artifact_bytes'), 60000
    end
    local budget, limit, used, wait = spent(id, now)
    if budget then return budget, id, limit, used, wait end
    if has.submits_per_minute and tokens(id, now) < 1 - 1e-9 then  -- who waited as told is not refused by rounding
      local missing = 1 - tokens(id, now)
      return 'submits_per_minute', id, has.submits_per_minute, has.submits_per_minute,
        math.ceil(missing * 60000 / has.submits_per_minute)
    end
  end
end

-- Take one token of each level that has such a budget.
local function take_token(project, now)
  for _, id in ipairs(chain(project)) do
    if tenant(id).submits_per_minute then
      redis.call('HSET', 'stockade:load:' .. id, 'tokens', exact(tokens(id, now) - 1), 'tokens_at', whole(now))
    end
  end
end

-- How the tightest submits_per_minute of a project and its organisation stands: limit, left, ms until all is back.
local function rate(project, now)
  local limit, left
  for _, id in ipairs(chain(project)) do
    local most = tenant(id).submits_per_minute
    if most and (not left or tokens(id, now) < left) then limit, left = most, tokens(id, now) end
  end
  if limit then return math.floor(limit), math.max(0, math.floor(left)), math.ceil((limit - left) * 60000 / limit) end
end

-- An answer with that at its end, where there is such a budget.
local function with_rate(answer, project, now)
  for _, number in ipairs({rate(project, now)}) do answer[#answer + 1] = number end
  return answer
end

-- Count what a job used, for each level. `charge` is {cpu_seconds, memory_gb_seconds, wall_seconds, artifact_bytes}.
local function account(project, outcome, charge, now)
  for _, id in ipairs(chain(project)) do
    for _, window in ipairs({WINDOWS[1], WINDOWS[2]}) do
      local key = 'stockade:usage:' .. id .. window.key .. whole(math.floor(now / window.length))
      redis.call('HINCRBY', key, 'jobs', 1)
      redis.call('HINCRBY', key, 'outcome:' .. outcome, 1)
      redis.call('HINCRBYFLOAT', key, 'cpu_seconds', charge[1])
      redis.call('HINCRBYFLOAT', key, 'memory_gb_seconds', charge[2])
      redis.call('HINCRBYFLOAT', key, 'wall_seconds', charge[3])
      redis.call('HINCRBY', key, 'artifact_bytes', charge[4])
      redis.call('EXPIRE', key, KEPT[window.key])
    end
    if tonumber(charge[4]) > 0 then redis.call('HINCRBY', 'stockade:load:' .. id, 'artifact_bytes', charge[4]) end
  end
end

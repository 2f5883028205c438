-- needs: clock budget release ending
-- What time does, for all pools: leases end, messages get lost, jobs come too late, retention ends, parked tenants
-- come back, and what there is room for is released. Any number of reapers may call it at once.
-- ARGV 1 most of each kind in one call  2 lease, ms  3 ms after which a message may be taken for lost
--      4 attempts a job may have
--      5..7 kind, outcome JSON, result JSON for workers lost  8..10 the same for cancelled
-- Returns {what, id, number, what, id, number, ...}: 'expired' and the next attempt or 0; 'published' and the attempt;
-- 'late' and 0; 'deleted' and 0; 'reviewed', POOL|TENANT, and 1 when it is parked no more; 'released', a pool, and how
-- many.
local now, most, told = clock(), ARGV[1], {}
local function tell(what, id, number)
  for _, each in ipairs({what, id, number}) do told[#told + 1] = each end
end
local function ending(first) return {ARGV[first], ARGV[first + 1], ARGV[first + 2]} end
local function up_to(key, score) return redis.call('ZRANGEBYSCORE', key, '-inf', whole(score), 'LIMIT', 0, most) end

-- No lease ends while the server itself is younger than one: workers that could not reach it had no chance to renew.
local up = tonumber(string.match(redis.call('INFO', 'server'), 'uptime_in_seconds:(%d+)')) * 1000

local function expire_leases(pool)
  if up < tonumber(ARGV[2]) then return end
  for _, id in ipairs(up_to('stockade:leases:' .. pool, now)) do
    local job = job_of(id)
    if job then
      tell('expired', id, fail(id, job, tonumber(ARGV[4]), ending(5), ending(8), now))
    else
      redis.call('ZREM', 'stockade:leases:' .. pool, id)
    end
  end
end

-- The queue is first in, first out: a message is taken for lost when one published well after it was claimed, or when
-- the queue is empty and it was published a while ago. Being wrong costs a duplicate delivery, which claims nothing.
local function publish_lost(pool)
  local before = now - ARGV[3]
  if redis.call('LLEN', 'stockade:celery:' .. pool) > 0 then
    before = math.min(before, tonumber(redis.call('GET', 'stockade:delivered:' .. pool) or 0) - ARGV[3])
  end
  for _, id in ipairs(up_to('stockade:released:' .. pool, before)) do
    local job = job_of(id)
    if job then
      publish(pool, id, job.attempt + 1, now)
      tell('published', id, job.attempt + 1)
    else
      redis.call('ZREM', 'stockade:released:' .. pool, id)
    end
  end
end

-- First, because this gives memory back: see `purge`.
for _, id in ipairs(up_to('stockade:expiry', now)) do
  local job = job_of(id)
  if job then
    purge(id, job, now)
    tell('deleted', id, 0)
  else
    redis.call('ZREM', 'stockade:expiry', id)
  end
end
for _, id in ipairs(up_to('stockade:due', now)) do
  local job = job_of(id)
  local why = job and job.state == 'queued' and late(job, now)
  if why then
    finish(id, job, late_ending(why), nil, now)
    tell('late', id, 0)
  else
    redis.call('ZREM', 'stockade:due', id)
  end
end
for _, each in ipairs(up_to('stockade:parked', now)) do
  local pool, id = string.match(each, '^([^|]*)|(.*)$')
  tell('reviewed', each, review(pool, id, now) and 1 or 0)
end
for _, pool in ipairs(redis.call('SMEMBERS', 'stockade:pools')) do
  expire_leases(pool)
  publish_lost(pool)
  local released = release(pool, now, tonumber(most))
  if released > 0 then tell('released', pool, released) end
end
return told

-- Remove a project, or an organisation with all of its projects, and their API keys.
-- KEYS 1 hash   stockade:tenant_names
--      2 hash   stockade:tenant:ID
--      3 set    stockade:tenant_projects:ID   ids of its projects, when it is an organisation
--      and in each pool of stockade:pools what lib/release.lua keeps of it: parked, order, pass, ahead
-- ARGV 1 id  2 "force" to take API keys and further projects along, else ""
--      3 name of the project that every organisation has
--      prefixes  4 stockade:tenant:  5 stockade:load:  6 stockade:keys:  7 stockade:key:  8 stockade:tenant_projects:
-- Returns {} when it is done; {"gone"} when there is no such tenant; else what stands against it and the name of
-- the tenant that has it: {"jobs", name} (queued or running), {"keys", name} or {"project", name}.
local about = redis.call('HMGET', KEYS[2], 'name', 'parent')
if not about[1] then return {'gone'} end
local nodes = redis.call('SMEMBERS', KEYS[3])
nodes[#nodes + 1] = ARGV[1]
for _, id in ipairs(nodes) do
  local name = redis.call('HGET', ARGV[4] .. id, 'name') or id
  local load = redis.call('HMGET', ARGV[5] .. id, 'queued', 'running')
  if tonumber(load[1] or 0) + tonumber(load[2] or 0) > 0 then return {'jobs', name} end
  if ARGV[2] ~= 'force' then
    if id ~= ARGV[1] and name ~= about[1] .. '/' .. ARGV[3] then return {'project', name} end
    if redis.call('SCARD', ARGV[6] .. id) > 0 then return {'keys', name} end
  end
end
-- What stands of a tenant in a pool's orders (lib/release.lua); it has no jobs there any more.
local function forget(pool, id, parent)
  local path = parent ~= '' and pool .. ':' .. parent or pool
  redis.call('ZREM', 'stockade:parked', pool .. '|' .. id)
  redis.call('ZREM', 'stockade:order:' .. path, id)
  for _, kind in ipairs({'pass:', 'ahead:'}) do
    redis.call('HDEL', 'stockade:' .. kind .. path, id)
    redis.call('DEL', 'stockade:' .. kind .. pool .. ':' .. id)
  end
end
-- Its artifacts stay until their retention is over, and are no longer anybody's.
if about[2] ~= '' then
  local bytes = tonumber(redis.call('HGET', ARGV[5] .. ARGV[1], 'artifact_bytes') or 0)
  if bytes > 0 then redis.call('HINCRBY', ARGV[5] .. about[2], 'artifact_bytes', -bytes) end
end
local pools = redis.call('SMEMBERS', 'stockade:pools')
for _, id in ipairs(nodes) do
  local found = redis.call('HMGET', ARGV[4] .. id, 'name', 'parent')
  local name = found[1]
  for _, pool in ipairs(pools) do forget(pool, id, found[2] or '') end
  if name then redis.call('HDEL', KEYS[1], name) end
  for _, key in ipairs(redis.call('SMEMBERS', ARGV[6] .. id)) do redis.call('DEL', ARGV[7] .. key) end
  redis.call('DEL', ARGV[4] .. id, ARGV[5] .. id, ARGV[6] .. id, ARGV[8] .. id)
end
if about[2] ~= '' then redis.call('SREM', ARGV[8] .. about[2], ARGV[1]) end
return {}

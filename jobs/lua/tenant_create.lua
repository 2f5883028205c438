-- needs: clock
-- Make an organisation with its first project, or one project. All of it exists afterwards, or nothing.
-- KEYS 1 hash   stockade:tenant_names      name -> id
--      2 set    stockade:tenant_projects:ID       ids of the organisation's projects
--      3 hash   stockade:tenant:ID         of the organisation (fields: jobs/tenants.py)
--      4 hash   stockade:tenant:ID         of the project
-- ARGV 1 id of the organisation  2 its name, "" when it has to be there already
--      3 id of the project  4 its name  5 prefix of a tenant's key
-- Returns the time of creation in ms (server clock), -1 when the organisation is not there, -2 when a name is taken.
-- Ids are random: a name that leads to the same id was written by an earlier try, whose answer was lost.
local function taken(name, id)
  local held = redis.call('HGET', KEYS[1], name)
  return held and held ~= id and redis.call('EXISTS', ARGV[5] .. held) == 1
end
if ARGV[2] == '' and redis.call('EXISTS', KEYS[3]) == 0 then return -1 end
if ARGV[2] ~= '' and taken(ARGV[2], ARGV[1]) or taken(ARGV[4], ARGV[3]) then return -2 end
local created = redis.call('HGET', KEYS[4], 'created')
if created then return tonumber(created) end
local now = clock()
local function write(key, id, name, parent)
  redis.call('HSET', key, 'id', id, 'name', name, 'parent', parent, 'created', now, 'weight', 1, 'bounds', '{}')
  redis.call('HSET', KEYS[1], name, id)
end
if ARGV[2] ~= '' then write(KEYS[3], ARGV[1], ARGV[2], '') end
write(KEYS[4], ARGV[3], ARGV[4], ARGV[1])
redis.call('SADD', KEYS[2], ARGV[3])
return now

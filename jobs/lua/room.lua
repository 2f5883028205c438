-- needs: clock budget
-- What is left of a project's budget `artifact_bytes`, and of its organisation's: the less of the two.
-- ARGV 1 project
-- Returns bytes, 0 at the least, or false where neither has that budget.
local least = false
for _, id in ipairs(chain(ARGV[1])) do
  local limit = tenant(id).artifact_bytes
  if limit then
    local left = math.max(0, limit - load_of(id, 'artifact_bytes'))
    least = least and math.min(least, left) or left
  end
end
return least

-- needs: clock budget idempotency
-- Look what an idempotency key was used for before; nothing is changed.
-- KEYS 1 hash   stockade:idempotency:PROJECT:SHA-256 of the key
-- ARGV 1 project  2 SHA-256 of the body
-- Returns what create.lua returns for a key that was used, or false when it was not.
local found = earlier(KEYS[1], ARGV[2])
if not found then return false end
return with_rate(found, ARGV[1], clock())

-- What a caller's idempotency key was used for before.
--
-- Keys:
--   hash stockade:idempotency:PROJECT:SHA-256 of the key    job: the id of the job that came of it; body: SHA-256 of
--                                                           what it came with. It lives and is deleted with the job.

-- The answer that a key's earlier use gives, {'again' or 'mismatch', job}; nil when there was none.
local function earlier(record, body)
  local used = redis.call('HMGET', record, 'job', 'body')
  if not used[1] or redis.call('EXISTS', 'stockade:job:' .. used[1]) == 0 then return nil end
  return {used[2] == body and 'again' or 'mismatch', used[1]}
end

-- The server's clock, and numbers as text without loss.
local function clock()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end
local function whole(number) return string.format('%.0f', number) end
local function exact(number) return string.format('%.17g', number) end

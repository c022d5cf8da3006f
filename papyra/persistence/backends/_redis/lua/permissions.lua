-- What the server says of a call that does nothing, if that is not as expected: that this caller
-- may not do it, or nobody now. So it is known before anything is written.
local function refusal(expected, ...)
  local answer = redis.pcall(...)
  if type(answer) == 'table' and answer.err and not string.find(answer.err, expected, 1, true) then
    return answer
  end
end

local function may_not_set()
  return refusal('wrong number of arguments', 'HSET', KEYS[1], 'a', 'b', 'c')
end

local function may_not_add(key)
  return refusal('must be greater than 0-0', 'XADD', key, '0-0', 'a', 'b')
end

local function may_not_remove(key)
  return refusal('Invalid stream ID', 'XDEL', key, 'x')
end

local function may_not_clear()
  return refusal('nothing', 'HDEL', KEYS[1], '')
end

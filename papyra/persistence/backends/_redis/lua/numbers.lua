local GREATEST = 99999999999999
local MOST_BYTES = 2 ^ 29  -- of a record

-- A zero for each kind.
local function zeros()
  local numbers = {}
  for i = 1, #kinds do
    numbers[i] = 0
  end
  return numbers
end

-- A whole number as Papyra writes it; nil for anything else, and for what is not there.
local function whole(text)
  if text and #text < 15 and (text == '0' or string.find(text, '^[1-9]%d*$')) then
    return tonumber(text)
  end
end

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

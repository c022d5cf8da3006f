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

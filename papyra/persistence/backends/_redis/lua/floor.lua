local function last_generated(key)
  local info = redis.call('XINFO', 'STREAM', key)
  for j = 1, #info, 2 do
    if info[j] == 'last-generated-id' then
      return info[j + 1]
    end
  end
end

-- The same for those who only look: nothing without a stream, or without the right to ask.
local function last_generated_if_told(key)
  local is_told, last = pcall(last_generated, key)
  return is_told and last or ''
end

-- The least milliseconds that an entry with the seq `first` can have in a stream that is there, and
-- the last id in it: a later one than is known, if somebody else has put entries there.
local function floor_of(key, first)
  local last = last_generated(key)
  local ms, seq = string.match(last, '^(%d+)-(%d+)$')
  return tonumber(ms) + (tonumber(seq) >= first and 1 or 0), last
end

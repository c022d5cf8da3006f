-- The first entry whose value is above a limit. Values grow from entry to entry, so first the
-- milliseconds are halved between which it must be, then the rest of the id. What comes before the
-- id `from` does not count.
local function first_above(key, value, limit, from)
  local entry = at(key, from or '-')
  if not entry or value(entry) > limit then
    return entry
  end
  local low, high = entry, tail(key)
  if value(high) <= limit then
    return nil
  end
  for _, part in ipairs({'ms', 'seq'}) do
    local function place(of)
      local seq, _, _, _, ms = parse(of)
      return part == 'ms' and ms or seq
    end
    local _, _, _, _, ms = parse(low)
    local a, b = place(low), nil
    if part == 'ms' then
      b = place(high) + 1
    else
      local _, _, _, _, high_ms = parse(high)
      b = high_ms == ms and place(high) or number(call('HGET', meta, 'last')) + 1
    end
    -- At a the value is not above the limit; at b it is, or there is nothing.
    while b - a > 1 do
      local middle = math.floor((a + b) / 2)
      local probe = part == 'ms' and string.format('%.0f', middle)
        or string.format('%.0f-%.0f', ms, middle)
      local found = at(key, probe)
      if found and value(found) <= limit then
        low, a = found, math.max(middle, place(found))
      else
        high, b = found or high, middle
      end
    end
  end
  local low_seq, _, _, _, low_ms = parse(low)
  return at(key, string.format('%.0f-%.0f', low_ms, low_seq + 1))
end

local function seq_of(entry)
  return (parse(entry))
end

local call = redis.call
local meta = KEYS[1]

local function number(value)
  return whole(value) or 0
end

-- Seq, n, total, size and ms of an entry that Papyra wrote; nil for any other.
local function parse(entry)
  local fields = entry[2]
  if #fields ~= 8 or fields[1] ~= 'record' or fields[3] ~= 'n' or fields[5] ~= 'total'
      or fields[7] ~= 'crc' then
    return nil
  end
  local n, total, size = whole(fields[4]), whole(fields[6]), #fields[2]
  local ms, seq = string.match(entry[1], '^(%d+)-(%d+)$')
  ms, seq = whole(ms), whole(seq)
  if not (n and total and ms and seq) or n < 1 or n > seq or total < size then
    return nil
  end
  return seq, n, total, size, ms
end

-- The first entry of a range that Papyra wrote; nil if there is none.
local function first_own(command, key, from, to)
  local count = 1
  while true do
    local entries = call(command, key, from, to, 'COUNT', count)
    for _, entry in ipairs(entries) do
      if parse(entry) then
        return entry
      end
    end
    if #entries < count then
      return nil
    end
    from, count = '(' .. entries[#entries][1], 100
  end
end

local function tail(key)
  return first_own('XREVRANGE', key, '+', '-')
end

local function at(key, id)
  return first_own('XRANGE', key, id, '+')
end

local function is_range(range)
  if type(range) ~= 'table' then
    return false
  end
  for i = 1, 4 do
    local value = range[i]
    if type(value) ~= 'number' or not (value >= 0 and value <= GREATEST) or value % 1 ~= 0 then
      return false
    end
  end
  return range[1] <= range[2] and range[3] <= range[4]
end

-- What repairs have taken out, or found missing: lists of first n, last n, and the totals before
-- the first and after the last.
local function lost(kind)
  local is_json, ranges = pcall(cjson.decode, call('HGET', meta, kind .. ':lost') or '[]')
  local kept = {}
  if is_json and type(ranges) == 'table' then
    for _, range in ipairs(ranges) do
      if is_range(range) then
        kept[#kept + 1] = range
      end
    end
  end
  return kept
end

local function set_lost(kind, ranges)
  local parts = {}
  for i, range in ipairs(ranges) do
    -- Not cjson, which writes large numbers with an exponent.
    parts[i] = string.format('[%.0f,%.0f,%.0f,%.0f]', unpack(range))
  end
  if #parts > 0 then
    call('HSET', meta, kind .. ':lost', '[' .. table.concat(parts, ',') .. ']')
  else
    call('HDEL', meta, kind .. ':lost')
  end
end

-- Forget of what is lost all but those ranges.
local function keep_lost(kind, is_kept)
  local kept = {}
  for _, range in ipairs(lost(kind)) do
    if is_kept(range) then
      kept[#kept + 1] = range
    end
  end
  set_lost(kind, kept)
end

local function add_lost(kind, added)
  local ranges, merged = lost(kind), {}
  for _, range in ipairs(added) do
    if is_range(range) then
      ranges[#ranges + 1] = range
    end
  end
  table.sort(ranges, function(a, b) return a[1] < b[1] end)
  for _, range in ipairs(ranges) do
    local before = merged[#merged]
    if before and range[1] <= before[2] + 1 then
      before[2], before[4] = math.max(before[2], range[2]), math.max(before[4], range[4])
    else
      merged[#merged + 1] = range
    end
  end
  set_lost(kind, merged)
  return #merged
end

-- What changes when entries are taken back that somebody may have read.
local function mark()
  local state = call('HMGET', meta, 'epoch', 'settled')
  return (state[1] or '') .. '/' .. (state[2] or '')
end

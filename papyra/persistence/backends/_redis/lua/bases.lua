-- The bases of histories: a hash with the base by the id of the entry in place of which it is read,
-- as its checksum with 8 hex digits, a space, and its record.
local bases = KEYS[6]

-- How many bytes the record has that is read at an entry; nil for one that is none of Papyra's.
local function size_at(entry)
  local size = redis.call('HSTRLEN', bases, entry[1])
  if size > 0 then
    return size - 9
  end
  return entry[2][1] == 'record' and #entry[2][2] or nil
end

-- The bases in the places of some entries, false for those that have none; and nothing at all, if
-- none has one.
local function bases_at(entries)
  local ids, is_any = {}, false
  if #entries == 0 or redis.call('HLEN', bases) == 0 then
    return {}
  end
  for i, entry in ipairs(entries) do
    ids[i] = entry[1]
  end
  local found = {}
  for from = 1, #ids, 4000 do
    for _, base in ipairs(redis.call('HMGET', bases, unpack(ids, from, math.min(from + 3999, #ids)))) do
      found[#found + 1] = base
      is_any = is_any or base
    end
  end
  return is_any and found or {}
end

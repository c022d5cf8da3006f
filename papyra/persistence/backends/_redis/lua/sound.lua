-- Whether nobody but Papyra has changed how many there are.
local function is_sound()
  local size = redis.pcall('ZCARD', index)
  return type(size) == 'number' and size == noted_members()
end

-- Remove what the index may have of entries that are removed.
local function remove_members(members)
  local removed = #members > 0 and in_parts('ZREM', members) or 0
  if removed > 0 then
    redis.call('HSET', KEYS[1], 'index:entries', math.max((noted_members() or 0) - removed, 0))
  end
end

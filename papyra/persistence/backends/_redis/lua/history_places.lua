-- The entry of an actor's event at a seq, if it has that revision.
local function event_at(actor, seq, revision)
  local beginning = actor .. ' h'
  local start = beginning .. string.format('%014.0f', seq)
  for _, member in ipairs(call('ZRANGEBYLEX', index, '[' .. start, '(' .. start .. ':')) do
    local found, id = place_of(#beginning, member)
    local entry = found == revision and call('XRANGE', KEYS[2], id, id)[1]
    if entry and size_at(entry) then
      return entry
    end
  end
end

local function is_beyond(id, limit)
  local ms, seq = string.match(id, '^(%d+)-(%d+)$')
  local other_ms, other_seq = string.match(limit, '^(%d+)-(%d+)$')
  ms, other_ms = tonumber(ms), tonumber(other_ms)
  return ms > other_ms or (ms == other_ms and tonumber(seq) > tonumber(other_seq))
end

local function may_not_set_bases()
  return refusal('wrong number of arguments', 'HSET', bases, 'a', 'b', 'c')
    or refusal('nothing', 'HDEL', bases, '')
end

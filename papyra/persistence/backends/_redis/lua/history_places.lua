-- Places of events in the index, which is to be relied upon.

local function is_indexed()
  local n = whole(call('HGET', meta, 'event:n') or '0')
  local indexed = whole(call('HGET', meta, 'event:indexed') or '0')
  return n and indexed and indexed >= n and is_sound()
end

-- The revision and the entry of a member; no revision, if it is none.
local function place_of(beginning, member)
  local at = #beginning
  local seq, ms = string.sub(member, at + 1, at + 14), string.sub(member, at + 15, at + 28)
  local revision = tonumber(string.sub(member, at + 29))
  if not (revision and tonumber(seq) and tonumber(ms)) then
    return nil
  end
  local id = string.format('%.0f-%.0f', tonumber(ms), tonumber(seq))
  return revision, call('XRANGE', KEYS[2], id, id)[1]
end

-- The entry of an actor's event at a seq, if it has that revision.
local function event_at(actor, seq, revision)
  local beginning = actor .. ' h'
  local start = beginning .. string.format('%014.0f', seq)
  for _, member in ipairs(call('ZRANGEBYLEX', index, '[' .. start, '(' .. start .. ':')) do
    local found, entry = place_of(beginning, member)
    if found == revision and entry and size_at(entry) then
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

-- The members of entries of a batch. Of each of its records, `concerned` has how its member begins
-- and ends; nothing for one that concerns no actor.
local function members_of(concerned, first, ids)
  local members = {}
  for _, id in ipairs(ids) do
    local ms, seq = string.match(id, '^(%d+)-(%d+)$')
    local whom = concerned and concerned[tonumber(seq) - first + 1]
    if whom and whom[1] ~= '' then
      members[#members + 1] = member_of(whom[1], tonumber(seq), tonumber(ms), whom[2])
    end
  end
  return members
end

-- Add to the index what it has not, and remove it, as what was added comes back otherwise.
local function strike_out_members(members)
  local words, revised = {}, {}
  for _, member in ipairs(members) do
    if string.find(member, ' h%d+$') then
      revised[#revised + 1] = member
      words[#words + 1] = 0
      words[#words + 1] = member
    end
  end
  if #revised > 0 and in_parts('ZADD', words) and in_parts('ZREM', revised) then
    call('HSET', meta, 'index:entries', noted_members() or 0)
  end
end

-- What the server says if members with a revision can't be removed.
local function may_not_remove_members(concerned)
  for _, whom in ipairs(concerned or {}) do
    if whom[2] ~= '' then
      return refusal('WRONGTYPE', 'ZREM', index, '')
    end
  end
end

-- Nothing that is given from now on counts as indexed already.
local function lower_marks(kind, n, entry)
  local indexed = whole(call('HGET', meta, kind .. ':indexed') or '0')
  if indexed and indexed > n then
    call('HSET', meta, kind .. ':indexed', n)
  end
  local listed = string.match(call('HGET', meta, kind .. ':listed') or '', '^(%d+) %d+$')
  if listed and tonumber(listed) > n then
    local seq = entry and parse(entry) or 0
    call('HSET', meta, kind .. ':listed', string.format('%.0f %.0f', n, seq))
  end
end

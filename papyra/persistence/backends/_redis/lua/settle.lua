-- Find out what became of a batch in doubt after another writer has taken over, and settle it.
--
-- ARGV: the batch, as with ``CLAIM``; the checksums of its records, as with ``APPEND``; and 1 if
-- the batch is to stay if all of it is there, 0 if it is to go. Returns ``kept``, or ``gone`` and
-- how many entries were removed. It belongs to the one who writes now, so what is removed is noted
-- as lost. Nobody can add the batch any more: its epoch is over.

local _, first, _, which, times, concerned = unpack(cjson.decode(ARGV[1]))
local last, found, ranges, ids = first + #times - 1, {}, {}, {}
for i, kind in ipairs(kinds) do
  local key = KEYS[i + 1]
  local is_concerned = #which > 1 or tonumber(which) == i
  local entry = is_concerned and first_above(key, seq_of, first - 1)
  for _, each in ipairs(entry and call('XRANGE', key, entry[1], '+', 'COUNT', #times) or {}) do
    local seq, n, total, size = parse(each)
    local at = seq and seq >= first and seq <= last and seq - first
    if at and each[2][8] == string.sub(ARGV[2], at * 8 + 1, at * 8 + 8) then
      found[#found + 1] = {key, each[1]}
      ids[#ids + 1] = each[1]
      ranges[kind] = ranges[kind] or {}
      table.insert(ranges[kind], {n, n, total - size, total})
    end
  end
end
if #found == 0 then
  return {'gone', 0}
end
local refused = may_not_set()
if ARGV[3] == '1' and #found == #times then
  if refused then
    return refused
  end
  -- As WAIT waits for what its own connection has written.
  call('HSET', meta, 'synced', last)
  return {'kept', #found}
end
for _, each in ipairs(found) do
  refused = refused or may_not_remove(each[1])
end
refused = refused or may_not_clear() or may_not_remove_members(concerned)
if refused then
  return refused
end
for _, each in ipairs(found) do
  call('XDEL', each[1], each[2])
end
remove_members(members_of(concerned, first, ids))
for kind, gone in pairs(ranges) do
  add_lost(kind, gone)
end
call('HSET', meta, 'settled', number(call('HGET', meta, 'settled')) + 1)
return {'gone', #found}

-- Say how far one can rely on the index for the records of a kind, with a revision or without.
--
-- ARGV: the kind's number. Returns the seq of the last record up to which all are in the index, and
-- 1 if that is the last of all; or nothing, if the index is no use.

local i = tonumber(ARGV[1])
local key, kind = KEYS[i + 1], kinds[i]
local mark = call('HGET', meta, kind .. ':listed') or '0 0'
local listed, seq = string.match(mark, '^(%d+) (%d+)$')
listed, seq = whole(listed), whole(seq)
local n = whole(call('HGET', meta, kind .. ':n') or '0')
if not (listed and seq and n) or not is_sound() then
  return {}
end
local function n_of(entry)
  local _, found = parse(entry)
  return found
end
if listed >= n then
  -- An older program may have taken some back that were listed, and added others since.
  local last = tail(key)
  return last and seq_of(last) > seq and {} or {seq, 1}
end
local entry = listed > 0 and first_above(key, n_of, listed - 1)
if entry and n_of(entry) == listed and seq_of(entry) ~= seq then
  return {}
end
return {seq, 0}

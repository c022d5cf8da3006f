-- Find the first entry of a kind whose n is above a number.
--
-- ARGV: the kind's number; the number. Returns the entry's id, its n and its seq; or nothing.

local key = KEYS[1 + tonumber(ARGV[1])]
local entry = first_above(key, function(each) local _, n = parse(each) return n end,
  tonumber(ARGV[2]))
if not entry then
  return {}
end
local seq, n = parse(entry)
return {entry[1], n, seq}

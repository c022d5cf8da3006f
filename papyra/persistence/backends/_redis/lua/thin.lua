-- Remove some of the oldest records of a stream, and note of how many that stay there that they do.
--
-- ARGV: the kind's number; the mark, as with ``REMOVE``; up to which n this was done before, and up
-- to which n it is done now, with the total there and the id; how many more are kept, and their
-- bytes; how many entries go; their ids; and the members that the index may have of them. Returns 1;
-- or -1, and removes nothing, if others have come in between.

local key, kind = KEYS[1 + tonumber(ARGV[1])], kinds[tonumber(ARGV[1])]
if mark() ~= ARGV[2] or number(call('HGET', meta, kind .. ':trimmed_n')) ~= tonumber(ARGV[3]) then
  return -1
end
local refused = may_not_set() or may_not_clear() or may_not_remove(key)
if refused then
  return refused
end
local n, going, members = tonumber(ARGV[4]), tonumber(ARGV[9]), {}
for i = 10, 9 + going do
  call('XDEL', key, ARGV[i])
end
for i = 10 + going, #ARGV do
  members[#members + 1] = ARGV[i]
end
remove_members(members)
keep_lost(kind, function(range) return range[2] > n end)
local kept, size = kept_of(kind)
kept, size = kept + tonumber(ARGV[7]), size + tonumber(ARGV[8])
call('HSET', meta, kind .. ':trimmed_n', ARGV[4], kind .. ':trimmed_total', ARGV[5])
if kept > 0 then
  -- Older programs would take what is kept for duplicates.
  call('HSET', meta, 'format', call('HLEN', bases) > 0 and 3 or 2, kind .. ':kept',
    string.format('%.0f %.0f %s', kept, size, ARGV[6]))
end
return 1

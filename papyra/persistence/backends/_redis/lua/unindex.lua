-- Forget the index, for it to be made anew.
--
-- ARGV: the mark, as with ``REMOVE``; and 1 to do so whatever it is, 0 only if somebody else has
-- changed it. Returns 1 if it is forgotten, 0 if it is sound, and -1 for another mark.

if mark() ~= ARGV[1] then
  return -1
end
local size = redis.pcall('ZCARD', index)
if ARGV[2] ~= '1' then
  if type(size) == 'table' then
    return size
  elseif size == noted_members() then
    return 0
  end
end
local refused = may_not_set() or may_not_clear()
if refused then
  return refused
end
local unlinked = redis.pcall('UNLINK', index)
if type(unlinked) == 'table' then
  return unlinked
end
call('HDEL', meta, 'index:entries', 'event:indexed', 'event:listed', 'dead_letter:listed')
return 1

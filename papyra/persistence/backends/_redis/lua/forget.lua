-- Note that records are no more, so that nobody takes them for missing.
--
-- ARGV: the kind's number; the mark, as with ``REMOVE``; ranges as in ``lost``, as JSON.

if mark() ~= ARGV[2] then
  return -1
end
return add_lost(kinds[tonumber(ARGV[1])], cjson.decode(ARGV[3]))

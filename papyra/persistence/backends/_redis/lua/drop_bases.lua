-- Remove bases of histories, and keep copies of them if a seventh key says where.
--
-- ARGV: the mark, as with ``REMOVE``; and the ids. Returns how many there were; -1, and removes
-- nothing, if the mark is another. The events in place of which they were read are shown again.

if mark() ~= ARGV[1] then
  return -1
end
local removed = 0
for i = 2, #ARGV do
  local base = call('HGET', bases, ARGV[i])
  if base and KEYS[7] then
    call('XADD', KEYS[7], '*', 'id', ARGV[i], 'base', base)
  end
  removed = removed + call('HDEL', bases, ARGV[i])
end
return removed

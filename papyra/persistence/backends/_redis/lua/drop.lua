-- Drop what the store's own hash has wrong, if it still has it.
--
-- ARGV: the mark, as with ``REMOVE``; names and values, in turn.

if mark() ~= ARGV[1] then
  return -1
end
for i = 2, #ARGV, 2 do
  if call('HGET', meta, ARGV[i]) == ARGV[i + 1] then
    call('HDEL', meta, ARGV[i])
  end
end
return 0

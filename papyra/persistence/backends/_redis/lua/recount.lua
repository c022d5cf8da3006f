-- Note anew what compactions have left in the stream of events.
--
-- ARGV: the mark, as with ``REMOVE``; what is noted now, and what was found: nothing for none.
-- Returns 1; -1 if the mark or the note is another.

if mark() ~= ARGV[1] or (call('HGET', meta, 'event:kept') or '') ~= ARGV[2] then
  return -1
end
if ARGV[3] == '' then
  call('HDEL', meta, 'event:kept')
else
  call('HSET', meta, 'event:kept', ARGV[3])
end
return 1

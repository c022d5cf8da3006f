-- Set a position, or remove it, if it is as expected.
--
-- KEYS: ``meta``, and the hash of positions. ARGV: the epoch of the writer; how many changes it has
-- asked for in this epoch, with this one; the name; what is expected to be there and what is to be
-- there, each of them ``=`` and the data, or ``-`` for nothing. Returns ``ok``; or ``differs``; or
-- ``fenced`` and the writer, if it is another; or ``behind``, for a server that has lost what it had.
--
-- The field without a name has the epoch and the number of the last change: so one that comes again
-- is known, and one that comes too late changes nothing.

local unable = not_the_writer(ARGV[1])
if unable then
  return unable
end
local positions, name, wanted = KEYS[2], ARGV[3], ARGV[5]
local epoch, number = string.match(redis.call('HGET', positions, '') or '', '^(%d+):(%d+)$')
if epoch == ARGV[1] and tonumber(number) >= tonumber(ARGV[2]) then
  return {number == ARGV[2] and 'ok' or 'differs'}
end
local found = redis.call('HGET', positions, name)
if (found and '=' .. found or '-') ~= ARGV[4] then
  return {'differs'}
end
local mark = ARGV[1] .. ':' .. ARGV[2]
if wanted == '-' then
  redis.call('HDEL', positions, name)
  redis.call('HSET', positions, '', mark)
else
  redis.call('HSET', positions, '', mark, name, string.sub(wanted, 2))
end
return {'ok'}

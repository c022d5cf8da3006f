-- Save a snapshot, or remove one.
--
-- KEYS: ``meta``, the hash of snapshots, and the sorted set of their places; and the hash to which a
-- removed one is moved, if it is not to be lost. ARGV: the epoch of the writer; the place; and what
-- to save there, nothing to remove it. Returns ``ok``; or ``fenced`` and the writer, if it is
-- another; or ``behind``, for a server that has lost what it had.

local unable = not_the_writer(ARGV[1])
if unable then
  return unable
end
local place, data = ARGV[2], ARGV[3]
-- What is of another type is known to be so before anything is written.
redis.call('HEXISTS', KEYS[2], place)
if data == nil then
  local removed = redis.call('HGET', KEYS[2], place)
  if KEYS[4] and removed then
    redis.call('HSET', KEYS[4], place, removed)
  end
  redis.call('ZREM', KEYS[3], place)
  redis.call('HDEL', KEYS[2], place)
  return {'ok'}
end
local is_new = redis.call('ZADD', KEYS[3], 0, place) == 1
local saved = redis.pcall('HSET', KEYS[2], place, data)
if type(saved) == 'table' then
  if is_new then
    redis.call('ZREM', KEYS[3], place)
  end
  return saved
end
return {'ok'}

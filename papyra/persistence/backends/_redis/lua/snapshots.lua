-- List places of snapshots in their order.
--
-- KEYS: the hash of snapshots, and the sorted set of their places. ARGV: the least place and the
-- greatest one, as ZRANGEBYLEX takes them; how many there may be. Returns each of them, and how many
-- bytes the snapshot has; -1 if there is none.

local places = redis.call('ZRANGEBYLEX', KEYS[2], ARGV[1], ARGV[2], 'LIMIT', 0, ARGV[3])
local reply = {}
for i, place in ipairs(places) do
  local size = redis.call('HSTRLEN', KEYS[1], place)
  if size == 0 and redis.call('HEXISTS', KEYS[1], place) == 0 then
    size = -1
  end
  reply[2 * i - 1], reply[2 * i] = place, size
end
return reply

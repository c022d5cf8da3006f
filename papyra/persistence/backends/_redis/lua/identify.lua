-- Say which id the store has, and give it one if it has none.
--
-- KEYS: ``meta``. ARGV: the id that it gets; and the prefix of the store's name, if that could be
-- another's, or nothing. Returns ``ok`` and the id; or ``other``, and the prefix that the store has.

local meta = KEYS[1]
local owner = redis.call('HGET', meta, 'prefix')
if owner and ARGV[2] ~= '' and owner ~= ARGV[2] then
  return {'other', owner}
end
local id = redis.call('HGET', meta, 'id')
if not (id and #id == 32 and string.find(id, '^[0-9a-f]+$')) then
  id = ARGV[1]
  redis.call('HSET', meta, 'id', id)
  if ARGV[2] ~= '' then
    redis.call('HSET', meta, 'prefix', ARGV[2])
  end
end
return {'ok', id}

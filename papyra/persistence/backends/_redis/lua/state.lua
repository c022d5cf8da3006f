-- Say what the store holds. Returns the fields of ``meta``; of each stream its length, the ids of
-- its first and its last entry, and the last id that it gave; then for how many milliseconds each of
-- these keys is kept, -1 for good; and how many members the index has, -1 if that can't be told.

local reply = {call('HGETALL', meta)}
for i = 1, #kinds do
  local key = KEYS[i + 1]
  local first = call('XRANGE', key, '-', '+', 'COUNT', 1)
  local last = call('XREVRANGE', key, '+', '-', 'COUNT', 1)
  reply[#reply + 1] = call('XLEN', key)
  reply[#reply + 1] = first[1] and first[1][1] or ''
  reply[#reply + 1] = last[1] and last[1][1] or ''
  reply[#reply + 1] = last_generated_if_told(key)
end
for i = 1, 1 + #kinds do
  local left = redis.pcall('PTTL', KEYS[i])
  reply[#reply + 1] = type(left) == 'number' and left or -1
end
local size = redis.pcall('ZCARD', KEYS[5])
reply[#reply + 1] = type(size) == 'number' and size or -1
return reply

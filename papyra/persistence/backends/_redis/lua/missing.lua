-- Look which members the index has.
--
-- ARGV: the number of the kind of records; then members, and the ids of their entries, in turn.
-- Returns for each 1 if it is there, 0 if it is missing, and -1 if the entry is gone as well.

local key, reply = KEYS[1 + tonumber(ARGV[1])], {}
for i = 2, #ARGV, 2 do
  local answer = redis.pcall('ZSCORE', index, ARGV[i])
  local is_there = type(answer) == 'string'
  if not is_there and #call('XRANGE', key, ARGV[i + 1], ARGV[i + 1]) == 0 then
    reply[#reply + 1] = -1
  else
    reply[#reply + 1] = is_there and 1 or 0
  end
end
return reply

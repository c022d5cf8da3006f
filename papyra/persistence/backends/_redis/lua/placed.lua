-- Fetch entries to which members of the index lead.
--
-- ARGV: the kind's number, a member and an id, again and again. Returns for each 0 if the member is
-- no more, 1 if there is no such entry, and else the entry.

local reply = {}
for i = 1, #ARGV, 3 do
  if not call('ZSCORE', index, ARGV[i + 1]) then
    reply[#reply + 1] = 0
  else
    local id = ARGV[i + 2]
    reply[#reply + 1] = call('XRANGE', KEYS[1 + tonumber(ARGV[i])], id, id)[1] or 1
  end
end
return reply

-- Say where events of one actor's history are, by the index.
--
-- ARGV: the actor's key; a revision after which to begin; a seq after which to begin, 0 for none; and
-- how many there may be.
-- Returns 1 if there are no more, 1 if there are bases among them, and their members. Nothing, if the
-- index can't be relied upon.

local actor, revision, after = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local wanted = tonumber(ARGV[4])
if not is_indexed() then
  return {}
end
if revision > 0 and after == 0 then
  after = last_through(actor, revision)
end
local beginning = actor .. ' h'
local low = after > 0 and '(' .. beginning .. string.format('%014.0f:', after) or '[' .. beginning
local members = call('ZRANGEBYLEX', index, low, '(' .. beginning .. ':', 'LIMIT', 0, wanted)
local has_bases = 0
for i = 1, call('HLEN', bases) > 0 and #members or 0 do
  local _, id = place_of(#beginning, members[i])
  has_bases = id and call('HEXISTS', bases, id) == 1 and 1 or has_bases
end
return {#members < wanted and 1 or 0, has_bases, members}

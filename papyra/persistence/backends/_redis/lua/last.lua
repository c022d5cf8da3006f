-- Say which revision is the last one of some actors.
--
-- ARGV: the actors' keys. Returns a revision each, 0 for none; or nothing, if the index can't be
-- relied upon.

if not is_indexed() then
  return {}
end
-- Whether the entry is there does not matter: a revision that was given is not given again.
local reply = {}
for i, actor in ipairs(ARGV) do
  local beginning = actor .. ' h'
  local member = call('ZREVRANGEBYLEX', index, '(' .. beginning .. ':', '[' .. beginning,
    'LIMIT', 0, 1)[1]
  reply[i] = member and tonumber(string.sub(member, #beginning + 29)) or 0
end
return reply

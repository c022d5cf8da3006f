-- Remove entries, and keep copies of them if a seventh key says where.
--
-- ARGV: the kind's number, the mark that they were found with, then ids. Returns how many there
-- were; -1, and removes nothing, if the mark is another: then they have to be looked for once more.

local key, removed = KEYS[1 + tonumber(ARGV[1])], 0
if mark() ~= ARGV[2] then
  return -1
end
local refused = may_not_remove(key)
if refused then
  return refused
end
for i = 3, #ARGV do
  local entry = call('XRANGE', key, ARGV[i], ARGV[i])[1]
  if entry then
    if KEYS[7] then
      local fields = entry[2]
      -- More of them can't be passed on one by one.
      fields = #fields > 7000 and {'packed', cmsgpack.pack(fields)} or fields
      call('XADD', KEYS[7], '*', 'id', entry[1], unpack(fields))
    end
    removed = removed + call('XDEL', key, ARGV[i])
  end
end
return removed

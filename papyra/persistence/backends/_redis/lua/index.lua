-- Add to the index what older programs have left out, and note how far it goes.
--
-- ARGV: the mark, as with ``REMOVE``; the field of ``meta`` that says how far it goes, what that
-- was, nothing for not at all, and what it is now; the field that says which records are no more,
-- and what that was; then the members. Returns how many are new; -1, and adds nothing, if the mark or
-- one of the fields is another.

if mark() ~= ARGV[1] or (call('HGET', meta, ARGV[2]) or '') ~= ARGV[3]
    or (call('HGET', meta, ARGV[5]) or '') ~= ARGV[6] then
  return -1
end
local refused = may_not_set()
if refused then
  return refused
end
local words = {}
for i = 7, #ARGV do
  words[#words + 1] = 0
  words[#words + 1] = ARGV[i]
end
local before = #words > 0 and redis.pcall('ZCARD', index) or 0
if type(before) == 'table' then
  return before
end
local added, refusal = in_parts('ZADD', words)
if refusal then
  return refusal
end
call('HSET', meta, 'index:entries', (noted_members() or 0) + added, ARGV[2], ARGV[4])
return added

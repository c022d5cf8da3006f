-- Write bases of histories. What they stand for is not removed by that.
--
-- ARGV: the epoch of the writer; and for each base the key of its actor, its seq, its revision, and
-- what the hash is to have: its checksum, a space, and its record. Each event is one that compactions
-- have kept. Returns ``ok`` and the ids of the entries; ``unindexed``, if the index can't be relied
-- upon; ``beyond``, and the id of an event up to which no compaction has looked; ``missing``, and the
-- seq of one that is not there; or who is the writer, as with ``SNAPSHOT``.

local unable = not_the_writer(ARGV[1])
if unable then
  return unable
elseif not is_indexed() then
  return {'unindexed'}
end
local kept, size, kept_to = kept_of('event')
local reply = {'ok'}
for i = 2, #ARGV, 4 do
  local entry = event_at(ARGV[i], tonumber(ARGV[i + 1]), tonumber(ARGV[i + 2]))
  if not entry then
    return {'missing', ARGV[i + 1]}
  elseif is_beyond(entry[1], kept_to) then
    return {'beyond', entry[1]}
  end
  size = size + #ARGV[i + 3] - 9 - size_at(entry)
  reply[#reply + 1] = entry[1]
end
local refused = may_not_set() or may_not_set_bases()
if refused then
  return refused
end
for i = 2, #reply do
  call('HSET', bases, reply[i], ARGV[4 * i - 3])
end
-- Older programs would not look for bases.
call('HSET', meta, 'format', 3, 'event:kept', string.format('%.0f %.0f %s', kept, size, kept_to))
return reply

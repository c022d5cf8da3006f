-- Remove events that bases stand for, the newest of each actor first, so that a history has no hole
-- before its base wherever this is interrupted.
--
-- ARGV: the epoch of the writer, or nothing to remove none, and say what would be removed; how many
-- events to look at; the id of the first event that is shown, nothing for none; the seq before which
-- to go on, nothing for the first time; and for each base the key of its actor, its seq, and its
-- revision.
-- Returns ``ok``; with which base to go on, 0 if this was all; before which seq; how many events are
-- removed, and of how many bytes; how many of them are not shown; and the bytes of the events at whose
-- places are the bases which it has come to. Or ``missing`` and the seq of a base that is not there;
-- or what ``REBASE`` returns.

local is_real, room, first, cursor = ARGV[1] ~= '', tonumber(ARGV[2]), ARGV[3], ARGV[4]
local unable = is_real and not_the_writer(ARGV[1])
if unable then
  return unable
elseif not is_indexed() then
  return {'unindexed'}
end
local refused = is_real and (may_not_set() or may_not_clear() or may_not_remove(KEYS[2])
  or may_not_set_bases() or refusal('WRONGTYPE', 'ZREM', index, ''))
if refused then
  return refused
end
local kept, size, kept_to = kept_of('event')
local ids, members, ranges = {}, {}, {}
local removed, hidden, replaced, next_base = 0, 0, 0, 0

local function take(entry, member)
  local seq, n, total, in_stream = parse(entry)
  local bytes = seq and size_at(entry)
  if not bytes then
    return -- of what is damaged, a scan tells
  end
  ids[#ids + 1], members[#members + 1] = entry[1], member
  removed = removed + bytes
  if first == '' or is_beyond(first, entry[1]) then
    hidden = hidden + 1
  end
  if is_beyond(entry[1], kept_to) then
    ranges[#ranges + 1] = {n, n, total - in_stream, total}
  else
    kept, size = kept - 1, size - bytes
  end
end

local position = 5
while position <= #ARGV and room > 0 do
  local actor, seq, limit = ARGV[position], tonumber(ARGV[position + 1]), tonumber(ARGV[position + 2])
  local beginning = actor .. ' h'
  local entry = event_at(actor, seq, limit)
  if not entry or is_real and call('HEXISTS', bases, entry[1]) == 0 then
    return {'missing', ARGV[position + 1]}
  end
  if cursor == '' then
    replaced = replaced + size_at(entry)
  end
  local high = '(' .. beginning .. (cursor == '' and ':' or cursor)
  local found = call('ZREVRANGEBYLEX', index, high, '[' .. beginning, 'LIMIT', 0, room)
  for _, member in ipairs(found) do
    local revision, id = place_of(#beginning, member)
    local each = revision and revision < limit and call('XRANGE', KEYS[2], id, id)[1]
    if each then
      take(each, member)
    end
  end
  if #found == room then
    next_base, cursor = (position - 2) / 3, string.sub(found[room], #beginning + 1, #beginning + 14)
    room = 0
  else
    position, cursor = position + 3, ''
    room = room - #found - 1
  end
end
if next_base == 0 and position <= #ARGV then
  next_base = (position - 2) / 3
end
if is_real and #ids > 0 then
  for from = 1, #ids, 4000 do
    call('XDEL', KEYS[2], unpack(ids, from, math.min(from + 3999, #ids)))
    call('HDEL', bases, unpack(ids, from, math.min(from + 3999, #ids)))
  end
  remove_members(members)
  if #ranges > 0 then
    add_lost('event', ranges)
  end
  call('HSET', meta, 'event:kept', string.format('%.0f %.0f %s', kept, math.max(size, 0), kept_to))
end
return {'ok', next_base, cursor, #ids, removed, hidden, replaced}

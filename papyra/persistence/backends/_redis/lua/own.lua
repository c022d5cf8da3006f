-- Fetch entries of one actor by the index.
--
-- ARGV: the number of the kind of records; the actor's key; the letters of the members that are
-- looked for; a seq, after which to begin; another one, before which to end, or nothing; 1 to begin
-- with the newest; how many entries, and bytes of records, there may be; and, instead of the first
-- seq, a revision after which to begin, or nothing.
-- Returns 1 if there are no more, the seq to go on with, the entries, and bases as with ``PAGE``; for
-- a revision, nothing if the index can't be relied upon.

local key, actor, letters = KEYS[1 + tonumber(ARGV[1])], ARGV[2], ARGV[3]
local after, before = tonumber(ARGV[4]), tonumber(ARGV[5])
local is_reverse, wanted, room = ARGV[6] == '1', tonumber(ARGV[7]), tonumber(ARGV[8])
local revision = tonumber(ARGV[9])

if revision then
  if not is_indexed() then
    return {}
  end
  if revision > 0 then
    after = math.max(after, last_through(actor, revision))
  end
end

-- Up to so many seqs and milliseconds, in their order, of members with one letter.
local function some_of(letter, count)
  local beginning = actor .. ' ' .. letter
  local low, high = '[' .. beginning, '(' .. beginning .. ':'
  if after > 0 then
    low = '(' .. beginning .. string.format('%014.0f:', after)
  end
  if before then
    high = '(' .. beginning .. string.format('%014.0f', before)
  end
  local members
  if is_reverse then
    members = call('ZREVRANGEBYLEX', index, high, low, 'LIMIT', 0, count)
  else
    members = call('ZRANGEBYLEX', index, low, high, 'LIMIT', 0, count)
  end
  local at, found = #beginning, {}
  for i, member in ipairs(members) do
    found[i] = {tonumber(string.sub(member, at + 1, at + 14)) or 0,
      tonumber(string.sub(member, at + 15, at + 28)) or 0}
  end
  return found
end

local entries, looked, size, has_bases = {}, 0, 0, call('HLEN', bases) > 0
while true do
  local count = math.min(wanted - #entries, 1000)
  local places = {}
  for letter in string.gmatch(letters, '.') do
    for _, place in ipairs(some_of(letter, count)) do
      places[#places + 1] = place
    end
  end
  table.sort(places, function(a, b)
    if is_reverse then
      return a[1] > b[1]
    end
    return a[1] < b[1]
  end)
  local edge
  for i = 1, math.min(#places, count) do
    edge = places[i][1]
    local id = string.format('%.0f-%.0f', places[i][2], edge)
    local entry = call('XRANGE', key, id, id)[1]
    if entry then
      entries[#entries + 1] = entry
      size = size + (has_bases and size_at(entry) or #(entry[2][2] or ''))
    end
    if size >= room then
      break
    end
  end
  looked = looked + #places
  if edge and is_reverse then
    before = edge
  elseif edge then
    after = edge
  end
  local is_end = #places < count
  if is_end and size < room or #entries >= wanted or size >= room or looked >= 5000 then
    return {is_end and size < room and 1 or 0, is_reverse and before or after, entries,
      bases_at(entries)}
  end
end

-- Find where the part of a stream begins that a read may show.
--
-- ARGV: the kind's number, from 1; a seq, after which to begin; how many records, and how many
-- bytes of them, are visible, counted from the newest. Each of the three may be nothing.
-- Returns the id of the first entry, ``-`` for the first there is, or nothing if there is none.
-- Where some of what compactions have left is visible: how many of it at most, how many bytes, the id
-- up to which it goes, and that of the first entry, if it is one of them; in one text, with spaces.

local key, kind = KEYS[1 + tonumber(ARGV[1])], kinds[tonumber(ARGV[1])]

local starts, empty = {}, false
local function begin_after(value, limit, from)
  local entry = first_above(key, value, limit, from)
  if entry then
    starts[#starts + 1] = entry
  else
    empty = true
  end
end

if ARGV[2] ~= '' then
  begin_after(seq_of, tonumber(ARGV[2]))
end
local ranges = lost(kind)
local kept, kept_size, kept_to = kept_of(kind)
local behind = kept > 0 and '(' .. kept_to or '-'
local trimmed = {number(call('HGET', meta, kind .. ':trimmed_n')),
  number(call('HGET', meta, kind .. ':trimmed_total'))}
local visible, visible_size = kept, kept_size
if ARGV[3] ~= '' then
  local wanted, upper = tonumber(ARGV[3]), number(call('HGET', meta, kind .. ':n'))
  for i = #ranges, 1, -1 do
    if upper - ranges[i][2] >= wanted then break end
    wanted, upper = wanted - (upper - ranges[i][2]), ranges[i][1] - 1
  end
  if kept > 0 and upper - wanted < trimmed[1] then
    visible = math.min(visible, trimmed[1] - upper + wanted)
  else
    visible = 0
    begin_after(function(entry) local _, n = parse(entry) return n end, upper - wanted, behind)
  end
end
if ARGV[4] ~= '' then
  local wanted, upper = tonumber(ARGV[4]), number(call('HGET', meta, kind .. ':total'))
  for i = #ranges, 1, -1 do
    if upper - ranges[i][4] >= wanted then break end
    wanted, upper = wanted - (upper - ranges[i][4]), ranges[i][3]
  end
  if kept > 0 and upper - wanted < trimmed[2] then
    visible_size = math.min(visible_size, trimmed[2] - upper + wanted)
  else
    visible = 0
    begin_after(function(entry)
      local _, _, total, size = parse(entry)
      return total - size
    end, upper - wanted - 1, behind)
  end
end
if empty then
  return ''
end
local best, best_seq = '-', -1
for _, entry in ipairs(starts) do
  local seq = parse(entry)
  if seq > best_seq then
    best, best_seq = entry[1], seq
  end
end
if visible > 0 and (visible < kept or visible_size < kept_size) then
  return string.format('%.0f %.0f %s %s', visible, visible_size, kept_to, best)
end
return best

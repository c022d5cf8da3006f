-- Find where the part of a stream begins that a read may show.
--
-- ARGV: the kind's number, from 1; a seq, after which to begin; how many records, and how many
-- bytes of them, are visible, counted from the newest. Each of the three may be nothing.
-- Returns the id of the first entry, ``-`` for the first there is, or nothing if there is none.

local key, kind = KEYS[1 + tonumber(ARGV[1])], kinds[tonumber(ARGV[1])]

local starts, empty = {}, false
local function begin_after(value, limit)
  local entry = first_above(key, value, limit)
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
if ARGV[3] ~= '' then
  local wanted, upper = tonumber(ARGV[3]), number(call('HGET', meta, kind .. ':n'))
  for i = #ranges, 1, -1 do
    if upper - ranges[i][2] >= wanted then break end
    wanted, upper = wanted - (upper - ranges[i][2]), ranges[i][1] - 1
  end
  begin_after(function(entry) local _, n = parse(entry) return n end, upper - wanted)
end
if ARGV[4] ~= '' then
  local wanted, upper = tonumber(ARGV[4]), number(call('HGET', meta, kind .. ':total'))
  for i = #ranges, 1, -1 do
    if upper - ranges[i][4] >= wanted then break end
    wanted, upper = wanted - (upper - ranges[i][4]), ranges[i][3]
  end
  begin_after(function(entry)
    local _, _, total, size = parse(entry)
    return total - size
  end, upper - wanted - 1)
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
return best

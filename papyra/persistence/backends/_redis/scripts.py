"""What runs inside the server: each script is atomic, and one round trip.

All of them get the store's keys in the same order: the hash ``meta``, then the streams of events,
audits and dead letters. They are deterministic, as Redis before version 7 wants scripts that write.
"""

from __future__ import annotations

import hashlib

__all__ = (
    "APPEND",
    "BEGIN",
    "CLAIM",
    "COUNT",
    "DROP",
    "FIND",
    "FORGET",
    "REMOVE",
    "RENUMBER",
    "SETTLE",
    "STATE",
    "TRIM",
    "Script",
)

# Numbers in Lua are doubles, and written with 14 digits: enough for milliseconds until the year
# 5138, for 99 trillion records, and for as many bytes. What others may have put in their place
# (exponents, infinities, more digits) is no number here.


class Script:
    """A script, and the name under which a server keeps it."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.sha = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()


_NUMBERS = """
local GREATEST = 99999999999999
local MOST_BYTES = 2 ^ 29  -- of a record

-- A whole number as Papyra writes it; nil for anything else, and for what is not there.
local function whole(text)
  if text and #text < 15 and (text == '0' or string.find(text, '^[1-9]%d*$')) then
    return tonumber(text)
  end
end

-- What the server says of a call that does nothing, if that is not as expected: that this caller
-- may not do it, or nobody now. So it is known before anything is written.
local function refusal(expected, ...)
  local answer = redis.pcall(...)
  if type(answer) == 'table' and answer.err and not string.find(answer.err, expected, 1, true) then
    return answer
  end
end

local function may_not_set()
  return refusal('wrong number of arguments', 'HSET', KEYS[1], 'a', 'b', 'c')
end

local function may_not_add(key)
  return refusal('must be greater than 0-0', 'XADD', key, '0-0', 'a', 'b')
end
"""

_FLOOR = """
local function last_generated(key)
  local info = redis.call('XINFO', 'STREAM', key)
  for j = 1, #info, 2 do
    if info[j] == 'last-generated-id' then
      return info[j + 1]
    end
  end
end

-- The same for those who only look: nothing without a stream, or without the right to ask.
local function last_generated_if_told(key)
  local is_told, last = pcall(last_generated, key)
  return is_told and last or ''
end

-- The least milliseconds that an entry with the seq `first` can have in a stream that is there, and
-- the last id in it: a later one than is known, if somebody else has put entries there.
local function floor_of(key, first)
  local last = last_generated(key)
  local ms, seq = string.match(last, '^(%d+)-(%d+)$')
  return tonumber(ms) + (tonumber(seq) >= first and 1 or 0), last
end
"""

_COMMON = (
    _NUMBERS
    + """
local call = redis.call
local kinds = {'event', 'audit', 'dead_letter'}
local meta = KEYS[1]

local function number(value)
  return whole(value) or 0
end

-- Seq, n, total, size and ms of an entry that Papyra wrote; nil for any other.
local function parse(entry)
  local fields = entry[2]
  if #fields ~= 8 or fields[1] ~= 'record' or fields[3] ~= 'n' or fields[5] ~= 'total'
      or fields[7] ~= 'crc' then
    return nil
  end
  local n, total, size = whole(fields[4]), whole(fields[6]), #fields[2]
  local ms, seq = string.match(entry[1], '^(%d+)-(%d+)$')
  ms, seq = whole(ms), whole(seq)
  if not (n and total and ms and seq) or n < 1 or n > seq or total < size then
    return nil
  end
  return seq, n, total, size, ms
end

-- The first entry of a range that Papyra wrote; nil if there is none.
local function first_own(command, key, from, to)
  local count = 1
  while true do
    local entries = call(command, key, from, to, 'COUNT', count)
    for _, entry in ipairs(entries) do
      if parse(entry) then
        return entry
      end
    end
    if #entries < count then
      return nil
    end
    from, count = '(' .. entries[#entries][1], 100
  end
end

local function tail(key)
  return first_own('XREVRANGE', key, '+', '-')
end

local function at(key, id)
  return first_own('XRANGE', key, id, '+')
end

local function is_range(range)
  if type(range) ~= 'table' then
    return false
  end
  for i = 1, 4 do
    local value = range[i]
    if type(value) ~= 'number' or not (value >= 0 and value <= GREATEST) or value % 1 ~= 0 then
      return false
    end
  end
  return range[1] <= range[2] and range[3] <= range[4]
end

-- What repairs have taken out, or found missing: lists of first n, last n, and the totals before
-- the first and after the last.
local function lost(kind)
  local is_json, ranges = pcall(cjson.decode, call('HGET', meta, kind .. ':lost') or '[]')
  local kept = {}
  if is_json and type(ranges) == 'table' then
    for _, range in ipairs(ranges) do
      if is_range(range) then
        kept[#kept + 1] = range
      end
    end
  end
  return kept
end

local function set_lost(kind, ranges)
  local parts = {}
  for i, range in ipairs(ranges) do
    -- Not cjson, which writes large numbers with an exponent.
    parts[i] = string.format('[%.0f,%.0f,%.0f,%.0f]', unpack(range))
  end
  if #parts > 0 then
    call('HSET', meta, kind .. ':lost', '[' .. table.concat(parts, ',') .. ']')
  else
    call('HDEL', meta, kind .. ':lost')
  end
end

-- Forget of what is lost what comes after the n-th.
local function keep_lost(kind, n)
  local kept = {}
  for _, range in ipairs(lost(kind)) do
    if range[2] <= n then
      kept[#kept + 1] = range
    end
  end
  set_lost(kind, kept)
end

local function add_lost(kind, added)
  local ranges, merged = lost(kind), {}
  for _, range in ipairs(added) do
    if is_range(range) then
      ranges[#ranges + 1] = range
    end
  end
  table.sort(ranges, function(a, b) return a[1] < b[1] end)
  for _, range in ipairs(ranges) do
    local before = merged[#merged]
    if before and range[1] <= before[2] + 1 then
      before[2], before[4] = math.max(before[2], range[2]), math.max(before[4], range[4])
    else
      merged[#merged + 1] = range
    end
  end
  set_lost(kind, merged)
  return #merged
end

-- What changes when entries are taken back that somebody may have read.
local function mark()
  local state = call('HMGET', meta, 'epoch', 'settled')
  return (state[1] or '') .. '/' .. (state[2] or '')
end
"""
)

_SEARCH = """
-- The first entry whose value is above a limit. Values grow from entry to entry, so first the
-- milliseconds are halved between which it must be, then the rest of the id.
local function first_above(key, value, limit)
  local entry = at(key, '-')
  if not entry or value(entry) > limit then
    return entry
  end
  local low, high = entry, tail(key)
  if value(high) <= limit then
    return nil
  end
  for _, part in ipairs({'ms', 'seq'}) do
    local function place(of)
      local seq, _, _, _, ms = parse(of)
      return part == 'ms' and ms or seq
    end
    local _, _, _, _, ms = parse(low)
    local a, b = place(low), nil
    if part == 'ms' then
      b = place(high) + 1
    else
      local _, _, _, _, high_ms = parse(high)
      b = high_ms == ms and place(high) or number(call('HGET', meta, 'last')) + 1
    end
    -- At a the value is not above the limit; at b it is, or there is nothing.
    while b - a > 1 do
      local middle = math.floor((a + b) / 2)
      local probe = part == 'ms' and string.format('%.0f', middle)
        or string.format('%.0f-%.0f', ms, middle)
      local found = at(key, probe)
      if found and value(found) <= limit then
        low, a = found, math.max(middle, place(found))
      else
        high, b = found or high, middle
      end
    end
  end
  local low_seq, _, _, _, low_ms = parse(low)
  return at(key, string.format('%.0f-%.0f', low_ms, low_seq + 1))
end

local function seq_of(entry)
  return (parse(entry))
end
"""

#: Make the caller the writer, with a new epoch, and say where the store ends.
#:
#: ARGV: the writer's name; the epoch that it builds on; a batch that is in doubt, which is taken
#: back, or nothing; then what the caller knows was given: the last seq, n of each kind, and total
#: of each kind; 1 to make anew what is not known about the streams, 0 to refuse that; and the
#: prefix of the store's name, if that could be another's, or nothing. The batch is a JSON array:
#: the last seq before it, its first, whether its positions may be given again, the kinds as with
#: ``APPEND``, and the milliseconds of each record.
#: Returns ``ok``, the epoch, the last seq, ms, late, how many were taken back, n of each kind and
#: total of each kind; or, if the epoch is another, ``fenced`` and the name of the writer; or
#: ``other``, and the prefix that the store has; or ``damaged``, and what is. Called once more,
#: whether since the answer was lost or the call was late, it changes nothing. Whatever the server
#: may refuse, it does before anything is written.
CLAIM = Script(
    _COMMON
    + _FLOOR
    + """
-- The ids of what there is of a batch, how many, and their bytes.
local function remains(key, first, last)
  local ids, bytes, upper, done = {}, 0, '+', false
  while not done do
    local entries = call('XREVRANGE', key, upper, '-', 'COUNT', 500)
    done = #entries < 500
    for _, entry in ipairs(entries) do
      local seq, _, _, size = parse(entry)
      if seq and seq < first then
        done = true
        break
      elseif seq and seq <= last then
        ids[#ids + 1], bytes = entry[1], bytes + size
      end
    end
    if #entries > 0 then
      upper = '(' .. entries[#entries][1]
    end
  end
  return ids, bytes
end

-- Add what is in doubt without its records, and remove it. A server that was killed while it wrote
-- a batch to its append-only file may have kept the commands it came to, to run them when it starts
-- the next time: then these run after them. The ids are those that APPEND gives. Returns the
-- greatest milliseconds.
local function strike_out(first, given_again, which, times)
  local floor, ms = {0, 0, 0}, 0
  for i = 1, 3 do
    if call('EXISTS', KEYS[i + 1]) == 1 then
      floor[i] = floor_of(KEYS[i + 1], first)
    end
  end
  for position = 1, #times do
    local i = string.byte(which, #which > 1 and position or 1) - 48
    local time = math.max(times[position], floor[i])
    -- Behind the latest id of all, nobody could have these positions again.
    if time < GREATEST + (given_again and 0 or 1) then
      local id = string.format('%.0f-%.0f', time, first + position - 1)
      if type(redis.pcall('XADD', KEYS[i + 1], id, 'taken', 'back')) == 'string' then
        call('XDEL', KEYS[i + 1], id)
        ms = math.max(ms, time)
      end
    end
  end
  return ms
end

-- A number that is no greater than it can be; nil for anything else.
local function within(text, most)
  local value = whole(text)
  return value and value <= most and value or nil
end

local names = {'epoch', 'last', 'ms', 'late', 'format'}
local state, writer = call('HMGET', meta, unpack(names)), call('HGET', meta, 'writer')
if state[5] and string.find(state[5], '^%d+$') and tonumber(state[5]) > 1 then
  return {'format', state[5]}
end
local may_make_anew, is_known = ARGV[11] == '1', false
for i = 1, #names do
  is_known = is_known or state[i] ~= false
end
for i, name in ipairs(names) do
  -- Behind the greatest epoch there is none.
  if is_known and not within(state[i], GREATEST - (i == 1 and 1 or 0)) and not may_make_anew then
    return {'damaged', name .. ' is ' .. string.format('%q', state[i] or '')}
  end
end
local owner = call('HGET', meta, 'prefix')
if owner and ARGV[12] ~= '' and owner ~= ARGV[12] then
  return {'other', owner}
end
local epoch, expected = within(state[1], GREATEST - 1) or 0, tonumber(ARGV[2])
local is_repeated = epoch == expected + 1 and writer == ARGV[1]
if epoch > expected and not is_repeated then
  return {'fenced', writer or ''}
end
local in_doubt = ARGV[3] ~= '' and epoch == expected
local before, first, given_again, which, times
if in_doubt then
  before, first, given_again, which, times = unpack(cjson.decode(ARGV[3]))
end
epoch = expected + 1
local last, ms, late = tonumber(ARGV[4]), number(state[3]), number(state[4])
last = math.max(given_again and before or number(state[2]), last)
local taken_back, counts, found = 0, {}, {}
local most = whole(state[2]) or GREATEST
for i, kind in ipairs(kinds) do
  local key, given = KEYS[i + 1], call('HMGET', meta, kind .. ':n', kind .. ':total')
  local entry, n = tail(key), within(given[1], most)
  local total = within(given[2], (n or most) * MOST_BYTES)
  if entry and not (n and total) and not may_make_anew then
    return {'damaged', string.format('%s:n is %q, %s:total is %q', kind, given[1] or '', kind,
      given[2] or '')}
  end
  n, total = n or 0, total or 0
  if in_doubt then
    local ids, bytes = remains(key, first, first + #times - 1)
    found[i], taken_back = ids, taken_back + #ids
    n, total = math.max(n - #ids, 0), math.max(total - bytes, 0)
    if #ids > 0 then
      -- The one before those that will be gone.
      entry = first_own('XREVRANGE', key, '(' .. ids[#ids], '-')
    end
  end
  if entry then
    local end_seq, end_n, end_total, _, end_ms = parse(entry)
    last, ms = math.max(last, end_seq), math.max(ms, end_ms)
    n, total = math.max(n, end_n), math.max(total, end_total)
  end
  n, total = math.max(n, tonumber(ARGV[4 + i])), math.max(total, tonumber(ARGV[7 + i]))
  counts[i], counts[i + 3] = n, total
end
-- Each of them has had a position.
last = math.min(math.max(last, counts[1] + counts[2] + counts[3]), GREATEST)

local refused = may_not_set()
for i = 1, 3 do
  if in_doubt and not refused then
    refused = refusal('Invalid stream ID', 'XDEL', KEYS[i + 1], 'x') or may_not_add(KEYS[i + 1])
      or refusal('nothing', 'HDEL', meta, '')
  end
end
if refused then
  return refused
end
for i, kind in ipairs(kinds) do
  for _, id in ipairs(found[i] or {}) do
    call('XDEL', KEYS[i + 1], id)
  end
  if found[i] and #found[i] > 0 then
    keep_lost(kind, counts[i])
  end
  call('HSET', meta, kind .. ':n', counts[i], kind .. ':total', counts[i + 3])
end
if in_doubt and taken_back == 0 then
  ms = math.max(ms, strike_out(first, given_again, which, times))
end
if in_doubt and not given_again then
  last = math.max(last, first + #times - 1)
end
call('HSET', meta, 'format', 1, 'epoch', epoch, 'writer', ARGV[1], 'last', last, 'ms', ms,
  'late', late)
if ARGV[12] ~= '' then
  call('HSET', meta, 'prefix', ARGV[12])
end
return {'ok', epoch, last, ms, late, taken_back, unpack(counts)}
"""
)

#: Find out what became of a batch in doubt after another writer has taken over, and settle it.
#:
#: ARGV: the batch, as with ``CLAIM``; the checksums of its records, as with ``APPEND``; and 1 if
#: the batch is to stay if all of it is there, 0 if it is to go. Returns ``kept``, or ``gone`` and
#: how many entries were removed. It belongs to the one who writes now, so what is removed is noted
#: as lost. Nobody can add the batch any more: its epoch is over.
SETTLE = Script(
    _COMMON
    + _SEARCH
    + """
local _, first, _, which, times = unpack(cjson.decode(ARGV[1]))
local last, found, ranges = first + #times - 1, {}, {}
for i, kind in ipairs(kinds) do
  local key = KEYS[i + 1]
  local is_concerned = #which > 1 or tonumber(which) == i
  local entry = is_concerned and first_above(key, seq_of, first - 1)
  for _, each in ipairs(entry and call('XRANGE', key, entry[1], '+', 'COUNT', #times) or {}) do
    local seq, n, total, size = parse(each)
    local at = seq and seq >= first and seq <= last and seq - first
    if at and each[2][8] == string.sub(ARGV[2], at * 8 + 1, at * 8 + 8) then
      found[#found + 1] = {key, each[1]}
      ranges[kind] = ranges[kind] or {}
      table.insert(ranges[kind], {n, n, total - size, total})
    end
  end
end
if #found == 0 then
  return {'gone', 0}
end
local refused = may_not_set()
if ARGV[3] == '1' and #found == #times then
  if refused then
    return refused
  end
  -- As WAIT waits for what its own connection has written.
  call('HSET', meta, 'synced', last)
  return {'kept', #found}
end
for _, each in ipairs(found) do
  refused = refused or refusal('Invalid stream ID', 'XDEL', each[1], 'x')
end
refused = refused or refusal('nothing', 'HDEL', meta, '')
if refused then
  return refused
end
for _, each in ipairs(found) do
  call('XDEL', each[1], each[2])
end
for kind, gone in pairs(ranges) do
  add_lost(kind, gone)
end
call('HSET', meta, 'settled', number(call('HGET', meta, 'settled')) + 1)
return {'gone', #found}
"""
)

#: Store a batch.
#:
#: ARGV: the records, each followed by a newline; their checksums in hex, 8 digits each; their
#: kinds, a digit each, or one digit for all; and as one JSON array, since each argument costs a
#: client more than what is in it: the epoch, the last seq before the batch, the seq of the first
#: record (a greater one than the next where some are left out), how many there are, how much later
#: than a record's own time its milliseconds are at most, n of each kind so far, total of each kind,
#: and the milliseconds of each record.
#: Returns ``ok``, ms and late; or what keeps the batch from being stored: ``fenced`` and the
#: writer; ``behind``, for a server that has lost what it had; ``damaged``, and what is;
#: ``blocked``, the key and the id of an entry behind which nothing more can be stored; or ``half``
#: and an error, if the server refuses something in the middle, and also to take back the rest.
APPEND = Script(
    _NUMBERS
    + _FLOOR
    + """
local call = redis.call
local meta = KEYS[1]
local lines, sums, which = ARGV[1], ARGV[2], ARGV[3]
local epoch, before, first, count, latest, n, total, times = unpack(cjson.decode(ARGV[4]))
local state = call('HMGET', meta, 'epoch', 'last')
local its_epoch, last = whole(state[1] or '0'), whole(state[2] or '0')
if not (its_epoch and last) then
  return {'damaged', string.format('epoch is %q, last is %q', state[1] or '', state[2] or '')}
end
if its_epoch > epoch then
  return {'fenced', call('HGET', meta, 'writer') or ''}
end
if its_epoch == epoch and last == first + count - 1 then
  -- Stored already: the answer was lost. It is written once more that this is so, as WAIT waits
  -- for what its own connection has written.
  call('HSET', meta, 'last', last)
  local kept = call('HMGET', meta, 'ms', 'late')
  return {'ok', kept[1], kept[2]}
end
if its_epoch < epoch or last ~= before then
  return {'behind', last}
end

local late, floor = latest, {0, 0, 0}
local kinds = {'event', 'audit', 'dead_letter'}

local function look(i)
  local last_id
  floor[i], last_id = floor_of(KEYS[i + 1], first)
  if floor[i] > GREATEST then
    return {'blocked', KEYS[i + 1], last_id}
  end
end

if #which > 1 then
  -- What can be known to go wrong has to do so before anything is written.
  for i = 1, 3 do
    if string.find(which, tostring(i), 1, true) and call('EXISTS', KEYS[i + 1]) == 1 then
      local blocked = look(i)
      if blocked then
        return blocked
      end
    end
  end
end

local find, sub, byte = string.find, string.sub, string.byte
local i, from, seq, ms = byte(which) - 48, 1, first - 1, 0

-- A right may be missing for what comes later: then the entries before that go. (Asking for it
-- before would cost as much as adding some: answers that are errors are dear.)
local function undo(done, refusal)
  local is_half = false
  for position = 1, done do
    local k = #which > 1 and byte(which, position) - 48 or i
    local id = math.max(times[position], floor[k]) .. '-' .. first + position - 1
    is_half = type(redis.pcall('XDEL', KEYS[k + 1], id)) == 'table' or is_half
  end
  return is_half and {'half', refusal.err} or refusal
end

for position = 1, count do
  local to = find(lines, '\\n', from, true)
  if #which > 1 then
    i = byte(which, position) - 48
  end
  seq = seq + 1
  n[i], total[i] = n[i] + 1, total[i] + to - from
  local time = times[position]
  if time < floor[i] then
    late = math.max(late, floor[i] - time + latest)
    time = floor[i]
  end
  local key, record = KEYS[i + 1], sub(lines, from, to - 1)
  local sum = sub(sums, position * 8 - 7, position * 8)
  local added = redis.pcall('XADD', key, time .. '-' .. seq, 'record', record, 'n', n[i],
    'total', total[i], 'crc', sum)
  if type(added) == 'table' and position == 1 and find(added.err, 'smaller', 1, true) then
    local blocked = look(i)
    if blocked then
      return blocked
    end
    late = math.max(late, floor[i] - time + latest)
    time = floor[i]
    added = redis.pcall('XADD', key, time .. '-' .. seq, 'record', record, 'n', n[i],
      'total', total[i], 'crc', sum)
  end
  if type(added) == 'table' then
    return undo(position - 1, added)
  end
  if time > ms then
    ms = time
  end
  from = to + 1
end

local function set(...)
  local answer = redis.pcall('HSET', meta, ...)
  return type(answer) == 'table' and answer
end
local refused
if #which > 1 then
  for other = 1, 3 do
    refused = refused or set(kinds[other] .. ':n', n[other], kinds[other] .. ':total', total[other])
  end
  refused = refused or set('last', seq, 'ms', ms, 'late', late)
else
  refused = set('last', seq, 'ms', ms, 'late', late, kinds[i] .. ':n', n[i],
    kinds[i] .. ':total', total[i])
end
if refused then
  return undo(count, refused)
end
return {'ok', ms, late}
"""
)

#: Find where the part of a stream begins that a read may show.
#:
#: ARGV: the kind's number, from 1; a seq, after which to begin; how many records, and how many
#: bytes of them, are visible, counted from the newest. Each of the three may be nothing.
#: Returns the id of the first entry, ``-`` for the first there is, or nothing if there is none.
FIND = Script(
    _COMMON
    + _SEARCH
    + """
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
"""
)

#: Find where those begin who follow a stream: in one look, so that nothing is added in between.
#:
#: ARGV: the kind's number; a seq, or nothing for the end. Returns the id of the first entry after
#: that seq and 1; or, if there is none, that of the last one, ``0-0`` for none at all, and 0; and
#: the last id that was ever given, nothing if that is not known.
BEGIN = Script(
    _COMMON
    + _FLOOR
    + _SEARCH
    + """
local key = KEYS[1 + tonumber(ARGV[1])]
local entry = ARGV[2] ~= '' and first_above(key, seq_of, tonumber(ARGV[2]))
local generated = last_generated_if_told(key)
if entry then
  return {entry[1], 1, generated}
end
local last = call('XREVRANGE', key, '+', '-', 'COUNT', 1)[1]
if redis.pcall('EXISTS', key) == 0 then
  generated = '0-0'
end
return {last and last[1] or '0-0', 0, generated}
"""
)

#: Say what the store holds. Returns the fields of ``meta``; of each stream its length, the ids of
#: its first and its last entry, and the last id that it gave; then for how many milliseconds each
#: key is kept, -1 for good.
STATE = Script(
    _COMMON
    + _FLOOR
    + """
local reply = {call('HGETALL', meta)}
for i = 1, 3 do
  local key = KEYS[i + 1]
  local first = call('XRANGE', key, '-', '+', 'COUNT', 1)
  local last = call('XREVRANGE', key, '+', '-', 'COUNT', 1)
  reply[#reply + 1] = call('XLEN', key)
  reply[#reply + 1] = first[1] and first[1][1] or ''
  reply[#reply + 1] = last[1] and last[1][1] or ''
  reply[#reply + 1] = last_generated_if_told(key)
end
for i = 1, 4 do
  local left = redis.pcall('PTTL', KEYS[i])
  reply[#reply + 1] = type(left) == 'number' and left or -1
end
return reply
"""
)

#: Count what comes before some times.
#:
#: ARGV: milliseconds, rising. Returns for each stream and each of them which of its kind the first
#: record is from then on, and 0 where there is none.
COUNT = Script(
    _COMMON
    + """
local reply = {}
for i = 1, 3 do
  for _, ms in ipairs(ARGV) do
    local entry = at(KEYS[i + 1], ms)
    local n = 0
    if entry then
      _, n = parse(entry)
    end
    reply[#reply + 1] = n
  end
end
return reply
"""
)

#: Trim a stream.
#:
#: ARGV: the kind's number; the id that becomes the first, if there is one; ``=`` or ``~``.
TRIM = Script(
    _COMMON
    + """
local key, kind = KEYS[1 + tonumber(ARGV[1])], kinds[tonumber(ARGV[1])]
local refused = may_not_set() or refusal('nothing', 'HDEL', meta, '')
if refused then
  return refused
end
call('XTRIM', key, 'MINID', ARGV[3], ARGV[2])
local n, total = call('HGET', meta, kind .. ':n'), call('HGET', meta, kind .. ':total')
n, total = number(n), number(total)
local entry = at(key, '-')
if entry then
  local _, first_n, first_total, size = parse(entry)
  n, total = first_n - 1, first_total - size
end
local kept = {}
for _, range in ipairs(lost(kind)) do
  if range[2] > n then
    kept[#kept + 1] = range
  end
end
set_lost(kind, kept)
call('HSET', meta, kind .. ':trimmed_n', n, kind .. ':trimmed_total', total)
return call('XLEN', key)
"""
)

#: Remove entries, and keep copies of them if a fifth key says where.
#:
#: ARGV: the kind's number, the mark that they were found with, then ids. Returns how many there
#: were; -1, and removes nothing, if the mark is another: then they have to be looked for once more.
REMOVE = Script(
    """
-- For Redis before version 7: the ids in the quarantine are the server's own.
redis.replicate_commands()
"""
    + _COMMON
    + """
local key, removed = KEYS[1 + tonumber(ARGV[1])], 0
if mark() ~= ARGV[2] then
  return -1
end
local refused = refusal('Invalid stream ID', 'XDEL', key, 'x')
if refused then
  return refused
end
for i = 3, #ARGV do
  local entry = call('XRANGE', key, ARGV[i], ARGV[i])[1]
  if entry then
    if KEYS[5] then
      local fields = entry[2]
      -- More of them can't be passed on one by one.
      fields = #fields > 7000 and {'packed', cmsgpack.pack(fields)} or fields
      call('XADD', KEYS[5], '*', 'id', entry[1], unpack(fields))
    end
    removed = removed + call('XDEL', key, ARGV[i])
  end
end
return removed
"""
)

#: Note that records are no more, so that nobody takes them for missing.
#:
#: ARGV: the kind's number; the mark, as with ``REMOVE``; ranges as in ``lost``, as JSON.
FORGET = Script(
    _COMMON
    + """
if mark() ~= ARGV[2] then
  return -1
end
return add_lost(kinds[tonumber(ARGV[1])], cjson.decode(ARGV[3]))
"""
)

#: Drop what the store's own hash has wrong, if it still has it.
#:
#: ARGV: the mark, as with ``REMOVE``; names and values, in turn.
DROP = Script(
    _COMMON
    + """
if mark() ~= ARGV[1] then
  return -1
end
for i = 2, #ARGV, 2 do
  if call('HGET', meta, ARGV[i]) == ARGV[i + 1] then
    call('HDEL', meta, ARGV[i])
  end
end
return 0
"""
)

#: Count a stream's entries anew, from one of them on: each is written again, with the same id.
#:
#: ARGV: the kind's number; the caller's epoch, so that nobody else appends meanwhile; an id from
#: which on, or ``+`` for none; n and total before that; and 1 to let go of ids that are later than
#: those of the entries. Returns how many entries were counted, -1 for another epoch.
RENUMBER = Script(
    _COMMON
    + _FLOOR
    + """
local key, kind = KEYS[1 + tonumber(ARGV[1])], kinds[tonumber(ARGV[1])]
if call('HGET', meta, 'epoch') ~= ARGV[2] then
  return -1
elseif call('EXISTS', key) == 0 then
  return 0
end
local refused = may_not_set() or may_not_add(key) or refusal('Invalid stream ID', 'XDEL', key, 'x')
  or refusal('Invalid stream ID', 'XSETID', key, 'x') or refusal('nothing', 'HDEL', meta, '')
if refused then
  return refused
end

-- Let ids go on behind one that is lower than the last that was given.
local function rewind(id)
  local answer = redis.pcall('XSETID', key, id)
  if answer.err and string.find(answer.err, 'max_deleted_entry_id', 1, true) then
    local info, added = call('XINFO', 'STREAM', key), 0
    for j = 1, #info, 2 do
      if info[j] == 'entries-added' then
        added = info[j + 1]
      end
    end
    redis.pcall('XSETID', key, last_generated(key), 'ENTRIESADDED', added, 'MAXDELETEDID', '0-1')
    answer = redis.pcall('XSETID', key, id)
  end
  return not answer.err
end

local entries = ARGV[3] == '+' and {} or call('XRANGE', key, ARGV[3], '+')
local first = call('XRANGE', key, '-', '+', 'COUNT', 1)[1]
local generated, groups = last_generated(key), call('XINFO', 'GROUPS', key)
local is_beyond = ARGV[6] == '1'
for _, entry in ipairs(entries) do
  if #entry[2] > 7000 then
    return redis.error_reply('ERR ' .. entry[1] .. ' has too many fields to be written again')
  end
end
for _, entry in ipairs(entries) do
  call('XDEL', key, entry[1])
end
local before = call('XREVRANGE', key, '+', '-', 'COUNT', 1)[1]
local top, is_anew = before and before[1] or '0-1', false
if #entries > 0 or is_beyond then
  -- Behind 0-1 there is no such id again.
  if (entries[1] and entries[1][1] == top) or not rewind(top) then
    local kept = call('XRANGE', key, '-', '+')
    call('DEL', key)
    is_anew = true
    for _, entry in ipairs(kept) do
      call('XADD', key, entry[1], unpack(entry[2]))
    end
  end
end
local n, total = tonumber(ARGV[4]), tonumber(ARGV[5])
for _, entry in ipairs(entries) do
  local fields = entry[2]
  if #fields == 8 and fields[1] == 'record' and fields[3] == 'n' then
    n, total = n + 1, total + #fields[2]
    fields[4], fields[6] = string.format('%.0f', n), string.format('%.0f', total)
  end
  call('XADD', key, entry[1], unpack(fields))
  top = entry[1]
end
if not is_beyond and call('EXISTS', key) == 1 then
  call('XSETID', key, generated)
end
local function is_after(one, other)
  local ms, seq = string.match(one, '^(%d+)-(%d+)$')
  local other_ms, other_seq = string.match(other, '^(%d+)-(%d+)$')
  ms, other_ms = tonumber(ms), tonumber(other_ms)
  return ms > other_ms or (ms == other_ms and tonumber(seq) > tonumber(other_seq))
end
for _, group in ipairs(groups) do
  -- One that was told of a later id would wait for what comes after that.
  local is_later = is_beyond and is_after(group[8], top)
  local id = is_later and top or group[8]
  if is_anew then
    call('XGROUP', 'CREATE', key, group[2], id, 'MKSTREAM')
  elseif is_later then
    call('XGROUP', 'SETID', key, group[2], id)
  end
end
if ARGV[3] ~= '+' then
  keep_lost(kind, tonumber(ARGV[4]))
  call('HSET', meta, kind .. ':n', n, kind .. ':total', total)
  if first and first[1] == ARGV[3] then
    call('HSET', meta, kind .. ':trimmed_n', ARGV[4], kind .. ':trimmed_total', ARGV[5])
  end
end
return #entries
"""
)

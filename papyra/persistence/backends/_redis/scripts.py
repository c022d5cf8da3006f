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
    "FIND",
    "FORGET",
    "REMOVE",
    "STATE",
    "TRIM",
    "Script",
)

# Numbers in Lua are doubles, and written with 14 digits: enough for milliseconds until the year
# 5138, for 99 trillion records, and for as many bytes.


class Script:
    """A script, and the name under which a server keeps it."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.sha = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()


_FLOOR = """
-- The least milliseconds that an entry with the seq `first` can have in a stream that is there, and
-- the last id in it: a later one than is known, if somebody else has put entries there.
local function floor_of(key, first)
  local info = redis.call('XINFO', 'STREAM', key)
  for j = 1, #info, 2 do
    if info[j] == 'last-generated-id' then
      local ms, seq = string.match(info[j + 1], '^(%d+)-(%d+)$')
      return tonumber(ms) + (tonumber(seq) >= first and 1 or 0), info[j + 1]
    end
  end
end
"""

_COMMON = """
local call = redis.call
local kinds = {'event', 'audit', 'dead_letter'}
local meta = KEYS[1]

local function number(value)
  return tonumber(value or '') or 0
end

-- Seq, n, total, size and ms of an entry that Papyra wrote; nil for any other.
local function parse(entry)
  local fields = entry[2]
  if #fields ~= 8 or fields[1] ~= 'record' or fields[3] ~= 'n' or fields[5] ~= 'total'
      or fields[7] ~= 'crc' then
    return nil
  end
  local n, total = tonumber(fields[4]), tonumber(fields[6])
  if not n or not total then
    return nil
  end
  local ms, seq = string.match(entry[1], '^(%d+)-(%d+)$')
  return tonumber(seq), n, total, #fields[2], tonumber(ms)
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

-- What repairs have taken out, or found missing: lists of first n, last n, and the totals before
-- the first and after the last.
local function lost(kind)
  local text = call('HGET', meta, kind .. ':lost')
  return text and cjson.decode(text) or {}
end
"""

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
#: of each kind. The batch is a JSON array: the last seq before it, its first, whether its positions
#: may be given again, the kinds as with ``APPEND``, and the milliseconds of each record.
#: Returns ``ok``, the epoch, the last seq, ms, late, how many were taken back, n of each kind and
#: total of each kind; or, if the epoch is another, ``fenced`` and the name of the writer. Called
#: once more, whether since the answer was lost or the call was late, it changes nothing.
CLAIM = Script(
    _COMMON
    + _FLOOR
    + """
local function take_back(key, first, last)
  local n, bytes, upper, done = 0, 0, '+', false
  while not done do
    local entries = call('XREVRANGE', key, upper, '-', 'COUNT', 500)
    done = #entries < 500
    for _, entry in ipairs(entries) do
      local seq, _, _, size = parse(entry)
      if seq and seq < first then
        done = true
        break
      elseif seq and seq <= last then
        call('XDEL', key, entry[1])
        n, bytes = n + 1, bytes + size
      end
    end
    if #entries > 0 then
      upper = '(' .. entries[#entries][1]
    end
  end
  return n, bytes
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
    if time < 99999999999999 + (given_again and 0 or 1) then
      local id = time .. '-' .. first + position - 1
      if type(redis.pcall('XADD', KEYS[i + 1], id, 'taken', 'back')) == 'string' then
        call('XDEL', KEYS[i + 1], id)
        ms = math.max(ms, time)
      end
    end
  end
  return ms
end

local state = call('HMGET', meta, 'epoch', 'writer', 'last', 'ms', 'late', 'format')
if number(state[6]) > 1 then
  return {'format', state[6]}
end
local epoch, expected = number(state[1]), tonumber(ARGV[2])
local is_repeated = epoch == expected + 1 and state[2] == ARGV[1]
if epoch > expected and not is_repeated then
  return {'fenced', state[2] or ''}
end
local in_doubt = ARGV[3] ~= '' and epoch == expected
local before, first, given_again, which, times
if in_doubt then
  before, first, given_again, which, times = unpack(cjson.decode(ARGV[3]))
end
epoch = expected + 1
local last, ms, late = tonumber(ARGV[4]), number(state[4]), number(state[5])
last = math.max(given_again and before or number(state[3]), last)
local taken_back = 0
local counts = {}
for i, kind in ipairs(kinds) do
  local key = KEYS[i + 1]
  local n = number(call('HGET', meta, kind .. ':n'))
  local total = number(call('HGET', meta, kind .. ':total'))
  if in_doubt then
    local removed, bytes = take_back(key, first, first + #times - 1)
    taken_back, n, total = taken_back + removed, n - removed, total - bytes
  end
  local entry = tail(key)
  if entry then
    local end_seq, end_n, end_total, _, end_ms = parse(entry)
    last, ms = math.max(last, end_seq), math.max(ms, end_ms)
    n, total = math.max(n, end_n), math.max(total, end_total)
  end
  n, total = math.max(n, tonumber(ARGV[4 + i])), math.max(total, tonumber(ARGV[7 + i]))
  call('HSET', meta, kind .. ':n', n, kind .. ':total', total)
  counts[i], counts[i + 3] = n, total
end
if in_doubt and taken_back == 0 then
  ms = math.max(ms, strike_out(first, given_again, which, times))
end
if in_doubt and not given_again then
  last = math.max(last, first + #times - 1)
end
call('HSET', meta, 'format', 1, 'epoch', epoch, 'writer', ARGV[1], 'last', last, 'ms', ms,
  'late', late)
return {'ok', epoch, last, ms, late, taken_back, unpack(counts)}
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
#: writer; ``behind``, for a server that has lost what it had; ``blocked``, the key and the id of an
#: entry behind which nothing more can be stored.
APPEND = Script(
    _FLOOR
    + """
local call = redis.call
local meta = KEYS[1]
local lines, sums, which = ARGV[1], ARGV[2], ARGV[3]
local epoch, before, first, count, latest, n, total, times = unpack(cjson.decode(ARGV[4]))
local state = call('HMGET', meta, 'epoch', 'last')
local its_epoch, last = tonumber(state[1] or '') or 0, tonumber(state[2] or '') or 0
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
  if floor[i] > 99999999999999 then
    return {'blocked', KEYS[i + 1], last_id}
  end
end

if #which > 1 then
  -- All that could go wrong has to do so before anything is written.
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
  if position > 1 then
    call('XADD', key, time .. '-' .. seq, 'record', record, 'n', n[i], 'total', total[i],
      'crc', sum)
  else
    local added = redis.pcall('XADD', key, time .. '-' .. seq, 'record', record, 'n', n[i],
      'total', total[i], 'crc', sum)
    if type(added) == 'table' and added.err then
      if not find(added.err, 'smaller', 1, true) then
        return added
      end
      local blocked = look(i)
      if blocked then
        return blocked
      end
      late = math.max(late, floor[i] - time + latest)
      time = floor[i]
      call('XADD', key, time .. '-' .. seq, 'record', record, 'n', n[i], 'total', total[i],
        'crc', sum)
    end
  end
  if time > ms then
    ms = time
  end
  from = to + 1
end

if #which > 1 then
  for other = 1, 3 do
    call('HSET', meta, kinds[other] .. ':n', n[other], kinds[other] .. ':total', total[other])
  end
  call('HSET', meta, 'last', seq, 'ms', ms, 'late', late)
else
  call('HSET', meta, 'last', seq, 'ms', ms, 'late', late, kinds[i] .. ':n', n[i],
    kinds[i] .. ':total', total[i])
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
#: that seq and 1; or, if there is none, that of the last one, ``0-0`` for none at all, and 0.
BEGIN = Script(
    _COMMON
    + _SEARCH
    + """
local key = KEYS[1 + tonumber(ARGV[1])]
local entry = ARGV[2] ~= '' and first_above(key, seq_of, tonumber(ARGV[2]))
if entry then
  return {entry[1], 1}
end
local last = call('XREVRANGE', key, '+', '-', 'COUNT', 1)[1]
return {last and last[1] or '0-0', 0}
"""
)

#: Say what the store holds. Returns the fields of ``meta``, then of each stream its length, and
#: the ids of its first and its last entry.
STATE = Script(
    _COMMON
    + """
local reply = {call('HGETALL', meta)}
for i = 1, 3 do
  local key = KEYS[i + 1]
  local first = call('XRANGE', key, '-', '+', 'COUNT', 1)
  local last = call('XREVRANGE', key, '+', '-', 'COUNT', 1)
  reply[#reply + 1] = call('XLEN', key)
  reply[#reply + 1] = first[1] and first[1][1] or ''
  reply[#reply + 1] = last[1] and last[1][1] or ''
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
#: ARGV: the kind's number; the id that becomes the first, or nothing to keep none; ``=`` or ``~``.
TRIM = Script(
    _COMMON
    + """
local key, kind = KEYS[1 + tonumber(ARGV[1])], kinds[tonumber(ARGV[1])]
if ARGV[2] == '' then
  call('XTRIM', key, 'MAXLEN', ARGV[3], 0)
else
  call('XTRIM', key, 'MINID', ARGV[3], ARGV[2])
end
local n, total = call('HGET', meta, kind .. ':n'), call('HGET', meta, kind .. ':total')
local entry = at(key, '-')
if entry then
  local _, first_n, first_total, size = parse(entry)
  n, total = first_n - 1, first_total - size
end
local kept = {}
for _, range in ipairs(lost(kind)) do
  if range[2] > number(n) then
    kept[#kept + 1] = range
  end
end
if #kept > 0 then
  call('HSET', meta, kind .. ':lost', cjson.encode(kept))
else
  call('HDEL', meta, kind .. ':lost')
end
call('HSET', meta, kind .. ':trimmed_n', number(n), kind .. ':trimmed_total', number(total))
return call('XLEN', key)
"""
)

#: Remove entries, and keep copies of them if a fifth key says where.
#:
#: ARGV: the kind's number, then ids. Returns how many there were.
REMOVE = Script(
    """
-- For Redis before version 7: the ids in the quarantine are the server's own.
redis.replicate_commands()
local key, removed = KEYS[1 + tonumber(ARGV[1])], 0
for i = 2, #ARGV do
  local entry = redis.call('XRANGE', key, ARGV[i], ARGV[i])[1]
  if entry then
    if KEYS[5] then
      redis.call('XADD', KEYS[5], '*', 'id', entry[1], unpack(entry[2]))
    end
    removed = removed + redis.call('XDEL', key, ARGV[i])
  end
end
return removed
"""
)

#: Note that records are no more, so that nobody takes them for missing.
#:
#: ARGV: the kind's number; ranges as in ``lost``, as JSON.
FORGET = Script(
    _COMMON
    + """
local kind = kinds[tonumber(ARGV[1])]
local ranges = lost(kind)
for _, range in ipairs(cjson.decode(ARGV[2])) do
  ranges[#ranges + 1] = range
end
table.sort(ranges, function(a, b) return a[1] < b[1] end)
local merged = {}
for _, range in ipairs(ranges) do
  local before = merged[#merged]
  if before and range[1] <= before[2] + 1 then
    before[2], before[4] = math.max(before[2], range[2]), math.max(before[4], range[4])
  else
    merged[#merged + 1] = range
  end
end
if #merged > 0 then
  call('HSET', meta, kind .. ':lost', cjson.encode(merged))
end
return #merged
"""
)

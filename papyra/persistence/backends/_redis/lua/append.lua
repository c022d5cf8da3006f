-- Store a batch.
--
-- ARGV: the records, each followed by a newline; their checksums in hex, 8 digits each; their
-- kinds, a digit each, or one digit for all; and as one JSON array, since each argument costs a
-- client more than what is in it: the epoch, the last seq before the batch, the seq of the first
-- record (a greater one than the next where some are left out), how many there are, how much later
-- than a record's own time its milliseconds are at most, n of each kind so far, total of each kind,
-- the milliseconds of each record; and for each event with a revision which record that is, from 1,
-- the key of its actor, and the revision, as text.
-- Returns ``ok``, ms and late; or what keeps the batch from being stored: ``fenced`` and the
-- writer; ``behind``, for a server that has lost what it had; ``damaged``, and what is;
-- ``blocked``, the key and the id of an entry behind which nothing more can be stored; or ``half``
-- and an error, if the server refuses something in the middle, and also to take back the rest.

local call = redis.call
local meta = KEYS[1]
local lines, sums, which = ARGV[1], ARGV[2], ARGV[3]
local epoch, before, first, count, latest, n, total, times, steps =
  unpack(cjson.decode(ARGV[4]))
local state = call('HMGET', meta, 'epoch', 'last', 'event:indexed')
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

local late, floor = latest, zeros()
-- Whether the index lacks nothing yet, as it does where an older program has written.
local is_indexed = whole(state[3] or '0') == n[1]

local function look(i)
  local last_id
  floor[i], last_id = floor_of(KEYS[i + 1], first)
  if floor[i] > GREATEST then
    return {'blocked', KEYS[i + 1], last_id}
  end
end

if #which > 1 then
  -- What can be known to go wrong has to do so before anything is written.
  for i = 1, #kinds do
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
local members, noted = {}, 0
local function undo(done, refusal)
  local is_half = noted > 0 and not in_parts('ZREM', members)
  for position = 1, done do
    local k = #which > 1 and byte(which, position) - 48 or i
    local id = math.max(times[position], floor[k]) .. '-' .. first + position - 1
    is_half = type(redis.pcall('XDEL', KEYS[k + 1], id)) == 'table' or is_half
  end
  return is_half and {'half', refusal.err} or refusal
end

for position = 1, count do
  local to = find(lines, '\n', from, true)
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

if #steps > 0 then
  local words = {}
  for at, step in ipairs(steps) do
    local time = math.max(times[step[1]], floor[1])
    members[at] = member_of(step[2] .. ' h', first + step[1] - 1, time, step[3])
    words[2 * at - 1], words[2 * at] = 0, members[at]
  end
  local added, refusal = in_parts('ZADD', words)
  noted = #steps
  if not added then
    noted = #steps > 2000 and noted or 0  -- of many, a part may be there
    return undo(count, refusal)
  end
  noted = added
end

local function set(...)
  local answer = redis.pcall('HSET', meta, ...)
  return type(answer) == 'table' and answer
end
local refused
if noted > 0 then
  refused = set('index:entries', (noted_members() or 0) + noted)
end
if #which > 1 then
  for other = 1, #kinds do
    refused = refused or set(kinds[other] .. ':n', n[other], kinds[other] .. ':total', total[other])
  end
  refused = refused or set('last', seq, 'ms', ms, 'late', late,
    is_indexed and 'event:indexed' or 'event:n', n[1])
elseif is_indexed and i == 1 then
  refused = refused or set('last', seq, 'ms', ms, 'late', late, 'event:n', n[1],
    'event:total', total[1], 'event:indexed', n[1])
else
  refused = refused or set('last', seq, 'ms', ms, 'late', late, kinds[i] .. ':n', n[i],
    kinds[i] .. ':total', total[i])
end
if refused then
  return undo(count, refused)
end
return {'ok', ms, late}

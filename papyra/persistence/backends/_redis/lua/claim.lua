-- Make the caller the writer, with a new epoch, and say where the store ends.
--
-- ARGV: the writer's name; the epoch that it builds on; a batch that is in doubt, which is taken
-- back, or nothing; then what the caller knows was given: the last seq, n of each kind, and total
-- of each kind; 1 to make anew what is not known about the streams, 0 to refuse that; and the
-- prefix of the store's name, if that could be another's, or nothing. The batch is a JSON array:
-- the last seq before it, its first, whether its positions may be given again, the kinds as with
-- ``APPEND``, the milliseconds of each record, and how the member of each in the index begins and
-- ends.
-- Returns ``ok``, the epoch, the last seq, ms, late, how many were taken back, n of each kind and
-- total of each kind; or, if the epoch is another, ``fenced`` and the name of the writer; or
-- ``other``, and the prefix that the store has; or ``damaged``, and what is. Called once more,
-- whether since the answer was lost or the call was late, it changes nothing. Whatever the server
-- may refuse, it does before anything is written.

-- The ids of the orphaned entries of a batch, and their bytes.
local function orphaned_entries(key, first, last)
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
local function strike_out(first, given_again, which, times, concerned)
  local floor, ms, ids = zeros(), 0, {}
  for i = 1, #kinds do
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
      ids[#ids + 1] = id
    end
  end
  strike_out_members(members_of(concerned, first, ids))
  return ms
end

-- A number that is no greater than it can be; nil for anything else.
local function within(text, most)
  local value = whole(text)
  return value and value <= most and value or nil
end

local names = {'epoch', 'last', 'ms', 'late', 'format'}
local state, writer = call('HMGET', meta, unpack(names)), call('HGET', meta, 'writer')
if state[5] and string.find(state[5], '^%d+$') and tonumber(state[5]) > 3 then
  return {'format', state[5]}
end
local anew, prefix = unpack(ARGV, 5 + 2 * #kinds)
local may_make_anew, is_known = anew == '1', false
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
if owner and prefix ~= '' and owner ~= prefix then
  return {'other', owner}
end
local epoch, expected = within(state[1], GREATEST - 1) or 0, tonumber(ARGV[2])
local is_repeated = epoch == expected + 1 and writer == ARGV[1]
if epoch > expected and not is_repeated then
  return {'fenced', writer or ''}
end
local in_doubt = ARGV[3] ~= '' and epoch == expected
local before, first, given_again, which, times, concerned
if in_doubt then
  before, first, given_again, which, times, concerned = unpack(cjson.decode(ARGV[3]))
end
epoch = expected + 1
local last, ms, late = tonumber(ARGV[4]), number(state[3]), number(state[4])
last = math.max(given_again and before or number(state[2]), last)
local taken_back, counts, found, ends = 0, {}, {}, {}
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
    local ids, bytes = orphaned_entries(key, first, first + #times - 1)
    found[i], taken_back = ids, taken_back + #ids
    n, total = math.max(n - #ids, 0), math.max(total - bytes, 0)
    if #ids > 0 then
      -- The one before those that will be gone.
      entry = first_own('XREVRANGE', key, '(' .. ids[#ids], '-')
    end
  end
  ends[i] = entry
  if entry then
    local end_seq, end_n, end_total, _, end_ms = parse(entry)
    last, ms = math.max(last, end_seq), math.max(ms, end_ms)
    n, total = math.max(n, end_n), math.max(total, end_total)
  end
  n, total = math.max(n, tonumber(ARGV[4 + i])), math.max(total, tonumber(ARGV[4 + #kinds + i]))
  counts[i], counts[i + #kinds] = n, total
end
-- Each of them has had a position.
local positions = 0
for i = 1, #kinds do
  positions = positions + counts[i]
end
last = math.min(math.max(last, positions), GREATEST)

local refused = may_not_set() or may_not_remove_members(concerned)
for i = 1, #kinds do
  if in_doubt and not refused then
    refused = may_not_remove(KEYS[i + 1]) or may_not_add(KEYS[i + 1])
      or may_not_clear()
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
    remove_members(members_of(concerned, first, found[i]))
    keep_lost(kind, function(range) return range[2] <= counts[i] end)
  end
  lower_marks(kind, counts[i], ends[i])
  call('HSET', meta, kind .. ':n', counts[i], kind .. ':total', counts[i + #kinds])
end
if in_doubt and taken_back == 0 then
  ms = math.max(ms, strike_out(first, given_again, which, times, concerned))
end
if in_doubt and not given_again then
  last = math.max(last, first + #times - 1)
end
-- Versions before the second one do not know of what compactions have kept, nor those before the
-- third one of bases.
local format = call('HLEN', KEYS[6]) > 0 and 3 or call('HGET', meta, 'event:kept') and 2 or 1
call('HSET', meta, 'format', format, 'epoch', epoch, 'writer', ARGV[1], 'last', last, 'ms', ms,
  'late', late)
if prefix ~= '' then
  call('HSET', meta, 'prefix', prefix)
end
return {'ok', epoch, last, ms, late, taken_back, unpack(counts)}

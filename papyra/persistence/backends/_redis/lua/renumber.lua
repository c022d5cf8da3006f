-- Count a stream's entries anew, from one of them on: each is written again, with the same id.
--
-- ARGV: the kind's number; the caller's epoch, so that nobody else appends meanwhile; an id from
-- which on, or ``+`` for none; n and total before that; and 1 to let go of ids that are later than
-- those of the entries. Returns how many entries were counted, -1 for another epoch.

local i = tonumber(ARGV[1])
local key, kind = KEYS[1 + i], kinds[i]
if call('HGET', meta, 'epoch') ~= ARGV[2] then
  return -1
elseif call('EXISTS', key) == 0 then
  return 0
end
local refused = may_not_set() or may_not_add(key) or may_not_remove(key)
  or refusal('Invalid stream ID', 'XSETID', key, 'x') or may_not_clear()
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
local kept, _, kept_to = kept_of(kind)
local first = call('XRANGE', key, kept > 0 and '(' .. kept_to or '-', '+', 'COUNT', 1)[1]
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
  local base = i == 1 and call('HGET', bases, entry[1])
  if base then
    -- Now that the entry is written again, the base is written in it.
    fields = {'record', string.sub(base, 10), 'n', '', 'total', '', 'crc', string.sub(base, 1, 8)}
    call('HDEL', bases, entry[1])
  end
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
  keep_lost(kind, function(range) return range[2] <= tonumber(ARGV[4]) end)
  call('HSET', meta, kind .. ':n', n, kind .. ':total', total)
  if first and first[1] == ARGV[3] then
    call('HSET', meta, kind .. ':trimmed_n', ARGV[4], kind .. ':trimmed_total', ARGV[5])
  end
end
return #entries

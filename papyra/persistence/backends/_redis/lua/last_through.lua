-- Whether the index has all events with a revision.
local function is_indexed()
  local n = whole(call('HGET', meta, 'event:n') or '0')
  local indexed = whole(call('HGET', meta, 'event:indexed') or '0')
  return n and indexed and indexed >= n and is_sound()
end

-- The revision, and the id of the entry, of a member that has these after so many bytes; nil for none.
local function place_of(at, member)
  local seq, ms = string.sub(member, at + 1, at + 14), string.sub(member, at + 15, at + 28)
  local revision = tonumber(string.sub(member, at + 29))
  seq, ms = tonumber(seq), tonumber(ms)
  if revision and seq and ms then
    return revision, string.format('%.0f-%.0f', ms, seq)
  end
end

-- The seq of the last member whose revision is not above a limit: revisions grow with seqs.
local function last_through(actor, limit)
  local beginning = actor .. ' h'
  local low = call('ZLEXCOUNT', index, '-', '(' .. beginning)
  local high = low + call('ZLEXCOUNT', index, '[' .. beginning, '(' .. beginning .. ':')
  local seq, at = 0, #beginning
  while low < high do
    local middle = math.floor((low + high) / 2)
    local member = call('ZRANGE', index, middle, middle)[1]
    if (tonumber(string.sub(member, at + 29)) or 0) <= limit then
      seq, low = tonumber(string.sub(member, at + 1, at + 14)) or seq, middle + 1
    else
      high = middle
    end
  end
  return seq
end

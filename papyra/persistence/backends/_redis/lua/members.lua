-- The index by actor: a sorted set whose members have the score 0, so that they are in the order of
-- their bytes: the actor's key, a space, ``h`` for an event with a revision, ``e`` for another one
-- or ``d`` for a dead letter, the entry's seq and its milliseconds with 14 digits each, and the
-- revision.
local index = KEYS[5]

local function member_of(beginning, seq, ms, revision)
  return string.format('%s%014.0f%014.0f%s', beginning, seq, ms, revision)
end

-- What a command answers in all for many words; or nil and its refusal.
local function in_parts(command, words)
  local answered = 0
  for from = 1, #words, 4000 do
    local to = math.min(from + 3999, #words)
    local answer = redis.pcall(command, index, unpack(words, from, to))
    if type(answer) == 'table' then
      return nil, answer
    end
    answered = answered + answer
  end
  return answered
end

-- How many members there are, by what is noted; nil if that is no number.
local function noted_members()
  return whole(redis.call('HGET', KEYS[1], 'index:entries') or '0')
end

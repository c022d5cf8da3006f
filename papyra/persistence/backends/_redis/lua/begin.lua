-- Find where those begin who follow a stream: in one look, so that nothing is added in between.
--
-- ARGV: the kind's number; a seq, or nothing for the end. Returns the id of the first entry after
-- that seq and 1; or, if there is none, that of the last one, ``0-0`` for none at all, and 0; and
-- the last id that was ever given, nothing if that is not known.

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

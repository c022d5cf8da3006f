-- Fetch events, and the bases that are read in place of some, as they are at one time.
--
-- ARGV: ``XRANGE`` or ``XREVRANGE``, from which id to which one, and how many; or ``ids``, and some.
-- Returns the entries, for ids without those that are gone; and a base for each, or nothing at all.

local key, entries = KEYS[2], {}
if ARGV[1] == 'ids' then
  for i = 2, #ARGV do
    entries[#entries + 1] = redis.call('XRANGE', key, ARGV[i], ARGV[i])[1]
  end
else
  entries = redis.call(ARGV[1], key, ARGV[2], ARGV[3], 'COUNT', ARGV[4])
end
return {entries, bases_at(entries)}

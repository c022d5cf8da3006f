-- Count what comes before some times.
--
-- ARGV: milliseconds, rising. Returns for each stream and each of them which of its kind the first
-- record is from then on, and 0 where there is none.

local reply = {}
for i = 1, #kinds do
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

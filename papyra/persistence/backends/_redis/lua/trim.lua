-- Trim a stream.
--
-- ARGV: the kind's number; the id that becomes the first, if there is one; ``=`` or ``~``.

local key, kind = KEYS[1 + tonumber(ARGV[1])], kinds[tonumber(ARGV[1])]
local refused = may_not_set() or may_not_clear()
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
keep_lost(kind, function(range) return range[2] > n end)
call('HSET', meta, kind .. ':trimmed_n', n, kind .. ':trimmed_total', total)
return call('XLEN', key)

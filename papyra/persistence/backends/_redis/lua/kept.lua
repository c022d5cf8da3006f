-- What compactions have left among what they removed: how many entries, of how many bytes, and the
-- id up to which they looked; 0, 0 and ``0-0`` for none.
local function kept_of(kind)
  local kept, size, id = string.match(call('HGET', meta, kind .. ':kept') or '',
    '^(%d+) (%d+) (%d+%-%d+)$')
  kept, size = whole(kept), whole(size)
  if not (kept and size) then
    return 0, 0, '0-0'
  end
  return kept, size, id
end

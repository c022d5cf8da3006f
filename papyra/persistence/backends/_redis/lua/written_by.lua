-- What keeps the caller of an epoch from writing beside the records; nil if nothing does.
local function not_the_writer(its)
  local epoch = whole(redis.call('HGET', KEYS[1], 'epoch') or '0')
  if not epoch then
    return {'damaged', 'epoch'}
  elseif epoch > tonumber(its) then
    return {'fenced', redis.call('HGET', KEYS[1], 'writer') or ''}
  elseif epoch < tonumber(its) then
    return {'behind', epoch}
  end
end

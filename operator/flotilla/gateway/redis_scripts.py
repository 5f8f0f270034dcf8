"""What the server runs, each script in one step. Argument 1 is the time in ms, or -1 for the server's own.

A rate is a hash of counts by second, `q` for requests and `t` for tokens. A budget's window is a hash with `spent`,
`held` and each reservation's amount by its id, in billionths of a dollar, and a sorted set of ids by when they expire.
"""

from typing import Final

from flotilla.gateway.redis_calls import Script

_NOW: Final = """
local now = tonumber(ARGV[1])
if now < 0 then
  local time = redis.call('TIME')
  now = time[1] * 1000 + math.floor(time[2] / 1000)
end
"""
_KEPT_MS: Final = 3_600_000
"""So long a settled reservation is known, and a window after its end."""

ADMIT: Final = Script(
    _NOW
    + """
-- Returns {0, second} or {number of the rate without room, seconds to wait}.
local second, tokens = math.floor(now / 1000), tonumber(ARGV[2])
local function wait(counts, more, limit)
  if limit == 0 then return 0 end
  table.sort(counts, function(a, b) return a[1] < b[1] end)
  local room = limit
  for _, count in ipairs(counts) do room = room - count[2] end
  if more <= room then return 0 end
  for _, count in ipairs(counts) do
    room = room + count[2]
    if more <= room or room >= limit then return count[1] + 61 - second end
  end
  return 0
end
for number, key in ipairs(KEYS) do
  local all, gone = redis.call('HGETALL', key), {}
  local counts = {q = {}, t = {}}
  for i = 1, #all, 2 do
    local kind, at, count = string.sub(all[i], 1, 1), tonumber(string.sub(all[i], 2)), tonumber(all[i + 1])
    if at < second - 60 then
      gone[#gone + 1] = all[i]
    elseif count > 0 then
      table.insert(counts[kind], {at, count})
    end
  end
  if #gone > 0 then redis.call('HDEL', key, unpack(gone)) end
  local waiting = math.max(
    wait(counts.q, 1, tonumber(ARGV[1 + 2 * number])), wait(counts.t, tokens, tonumber(ARGV[2 + 2 * number])))
  if waiting > 0 then return {number, waiting} end
end
for _, key in ipairs(KEYS) do
  redis.call('HINCRBY', key, 'q' .. second, 1)
  redis.call('HINCRBY', key, 't' .. second, tokens)
  redis.call('EXPIRE', key, 62)
end
return {0, second}
"""
)

CORRECT: Final = Script(
    _NOW
    + """
local second, at, more = math.floor(now / 1000), ARGV[2], tonumber(ARGV[3])
for _, key in ipairs(KEYS) do
  if more > 0 then
    redis.call('HINCRBY', key, 't' .. second, more)
    redis.call('EXPIRE', key, 62)
  elseif redis.call('HEXISTS', key, 't' .. at) == 1 then
    redis.call('HINCRBY', key, 't' .. at, more)
  end
end
return 0
"""
)

RESERVE: Final = Script(
    _NOW
    + f"local kept = {_KEPT_MS}"
    + """
-- Returns 0, or the number of the budget without room.
local name, amount, ttl = string.match(KEYS[1], '[^:]+$'), tonumber(ARGV[2]), tonumber(ARGV[3])
-- A call that came late, after its caller had given it up and released it.
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
local budgets = (#KEYS - 1) / 2
for number = 1, budgets do
  local window, untils = KEYS[2 * number], KEYS[2 * number + 1]
  local gone = redis.call('ZRANGEBYSCORE', untils, '-inf', now, 'LIMIT', 0, 1000)
  for _, old in ipairs(gone) do
    local given_back = redis.call('HGET', window, old)
    if given_back then
      redis.call('HINCRBY', window, 'held', '-' .. given_back)
      redis.call('HDEL', window, old)
    end
    redis.call('ZREM', untils, old)
  end
  if redis.call('HEXISTS', window, name) == 0 then
    local counted = redis.call('HMGET', window, 'spent', 'held')
    local room = tonumber(ARGV[2 + 2 * number]) - (tonumber(counted[1]) or 0) - (tonumber(counted[2]) or 0)
    if amount > room then return number end
  end
end
for number = 1, budgets do
  local window, untils = KEYS[2 * number], KEYS[2 * number + 1]
  if redis.call('HSETNX', window, name, ARGV[2]) == 1 then
    redis.call('HINCRBY', window, 'held', ARGV[2])
    redis.call('ZADD', untils, now + ttl, name)
    local left = tonumber(ARGV[3 + 2 * number]) + ttl + kept
    redis.call('PEXPIRE', window, left)
    redis.call('PEXPIRE', untils, left)
  end
end
return 0
"""
)

SETTLE: Final = Script(
    _NOW
    + f"local kept = {_KEPT_MS}"
    + """
-- Returns 1 the first time, and 0 after.
local name = string.match(KEYS[1], '[^:]+$')
if not redis.call('SET', KEYS[1], '1', 'NX', 'PX', kept) then return 0 end
for number = 1, (#KEYS - 1) / 2 do
  local window, untils = KEYS[2 * number], KEYS[2 * number + 1]
  local held = redis.call('HGET', window, name)
  if held then
    redis.call('HINCRBY', window, 'held', '-' .. held)
    redis.call('HDEL', window, name)
    redis.call('ZREM', untils, name)
  end
  redis.call('HINCRBY', window, 'spent', ARGV[2])
  if redis.call('PTTL', window) < 0 then redis.call('PEXPIRE', window, kept) end
end
return 1
"""
)

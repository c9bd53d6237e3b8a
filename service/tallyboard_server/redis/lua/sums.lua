-- A running sum that carries what rounding loses, as two doubles (Knuth's TwoSum). It is put before
-- files that use it. Scores are scaled, so that the sum of finite ones stays finite.

local function added(high, low, score)
  local b = score * 2 ^ -32
  local sum = high + b
  local t = sum - high
  return sum, low + ((high - (sum - t)) + (b - t))
end

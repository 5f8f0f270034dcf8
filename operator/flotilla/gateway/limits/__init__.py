"""Rate limits and budgets.

- `accounts`: counts a request, reserves its maximum cost, and settles the actual cost
- `store`: the values that are counted, and the interface LimitStore (pure)
- `local`: a LimitStore in this process
- `redis`: a LimitStore in Redis or Valkey, which all replicas share
"""

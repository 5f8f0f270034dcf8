"""Rate limits and budgets.

- `accounts`: what a request does: be counted, reserve its highest cost, settle its cost
- `store`: the values that are counted, and the interface LimitStore (pure)
- `local`: a LimitStore in this process
- `redis`: a LimitStore in Redis or Valkey, which all replicas share
"""

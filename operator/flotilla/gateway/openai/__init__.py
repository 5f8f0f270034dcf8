"""OpenAI's format, which the gateway uses internally for clients and targets of every API. Pure.

- `requests`: parse and check a body, and rewrite it for a target
- `responses`: the form of error bodies and events, and the relay of a stream; their texts are in `routing.decide`
"""

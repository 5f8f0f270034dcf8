"""The format of OpenAI's API, in which the gateway works inside, whatever clients and targets speak. Pure.

- `requests`: parse and check a body, and rewrite it for a target
- `responses`: error bodies and events, and the relay of a stream
"""

"""OpenAI's format, which the gateway uses internally for clients and targets of every API. Pure.

- `requests`: parse and check a body, and rewrite it for a target
- `responses`: the form of error bodies and events, and the relay of a stream; their texts are in `routing.decide`
- `response_requests`, `response_events`: the Responses API; its requests become chats, and answers of chats its answers
- `field_checks`, `translated_response`: shared with the translation of Anthropic's API
"""

"""Translation between Anthropic's Messages API and OpenAI's chat completions, both ways. Pure.

Inbound is the side of clients that call /v1/messages, outbound the side of targets that speak this API (2026-10-21).

- `inbound_requests`: a client's message request becomes a chat
- `inbound_responses`: chat completions, streams and errors become messages for the client
- `outbound_requests`: a chat becomes a request of a target
- `outbound_responses`: a target's messages, streams and errors become chat completions

A field without a counterpart in the other API is refused if the answer would lack something that the client asked for.
A field that only tunes generation is dropped, and its name is in the response header x-flotilla-dropped.
"""

"""The gateway: the data plane of RoutingPolicies, one process for a namespace (`flotilla gateway`).

A chat request passes through these modules, in this order:

1. `http.server` reads it from its connection (`http.message` has Request and Response) and calls `api`, which finds the
   handler of its path and makes its `record`.
2. `admission` parses the body (`openai.requests`, or `anthropic.inbound_requests` for /v1/messages), identifies the
   client (`config`), counts its limits (`limits.accounts`), asks the classifier, and decides (`flotilla.routing`).
3. `exchange` carries the decision out: it makes attempts, falls back, escalates, and replies. Only what must wait has a
   task; otherwise the connection to the target calls back.
4. `dispatch` makes one attempt: it chooses the endpoint (`endpoints`) or waits for one (`pending`), writes the request
   in the target's API (`dialect`), sends it (`http.client`), and counts the outcome for breakers.
5. `attempt` receives the answer and judges it; a stream goes through `openai.responses` to the client. Targets that
   speak Anthropic's API are translated by `anthropic.outbound_requests` and `outbound_responses`.
6. `api` settles the limits, and `record` writes metrics (`metrics`), a line of the access log, and a span (`tracing`).
   `capture` keeps the requests of a policy's sample as training examples.

`app` makes these parts (`state` holds those that all requests share), follows the EndpointSlices, and serves probes
and metrics by `admin`, which also reports requests that wait (`pending`). `config` reloads the routing document and the
API keys when they change. `credentials` shows hosted providers who asks, with access tokens of `token_loop`; `refusals`
recognises why a target refused a request.

Pure, and held to it by a contract of import-linter: `dialect`, `endpoints`, `metrics`,
`anthropic`, `openai` and `limits.store`. All other modules do I/O or read a clock.
"""

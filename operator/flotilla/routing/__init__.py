"""The decision for one request, as pure functions that the gateway, the CLI and the operator share.

In the order of a request: `request` reduces the body to what rules look at; `classify` reads a classifier's answer;
`decide` finds the rule and orders those of its targets that the data class allows, and holds every refusal that a
client can get (unknown model, wrong key, no allowed target, a spent budget); `budgets` reserves dollars and rates;
`escalation` judges an answer by signals (a new one: `Signal` and `DeterministicSignal` in api.routing_policy, a row
of `_CHECKS` here, then `make generate`). `document` is what the operator gives to the gateway, made from the policies
of a namespace by `check`, which also says what is wrong with them."""

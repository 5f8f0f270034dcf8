"""The decision for one request, as pure functions that the gateway, the CLI and the operator share.

In the order of a request: `request` reduces the body to what rules look at; `classify` reads a classifier's answer;
`decide` finds the rule and orders its targets inside the sovereignty set; `budgets` reserves dollars and rates;
`escalation` judges an answer. `document` is what the operator gives to the gateway, made from the policies of a
namespace by `check`, which also says what is wrong with them.
"""

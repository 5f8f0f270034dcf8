"""Access to the apiserver: client, watches, cache, Lease, Events.

| module | what it does | I/O |
|---|---|---|
| `kinds` | the resources that Flotilla uses, their URL paths, and the keys by which they are reconciled | no |
| `client` | one method per verb, errors of Flotilla's own tree; the only module that imports `kubernetes` | yes |
| `kubeconfig` | finds and merges kubeconfig files as kubectl does | files |
| `informer` | LIST and WATCH of one kind into a cache, for as long as it runs | through `client` |
| `watch` | the same for Flotilla's own kinds by kopf, in a thread; the only module that imports `kopf` | yes |
| `store` | the cluster as this process last saw it, and which resource an object belongs to; reports each change | no |
| `observed` | what a Deployment and its pods report, as typed values | no |
| `lease` | leader election, and the check that a write is still allowed | through `client` |
| `events` | Kubernetes Events, one per transition | through `client` |

Data flows one way. `watch` (own kinds) and informers (what the operator made) put objects into the `Store`, and so do
reconcilers with the answers to their own writes. The store drops what is not newer than what it has, and reports every
change once; the controller then queues the keys that depend on the object. Writes go through a `KubeClient` that checks
the Lease right before each of them.

Errors: `failure` in `client` maps an HTTP answer to the tree in `flotilla.errors`. Informers and watches never raise;
they log, back off and go on.
"""

"""The node agent: simulated GPU nodes, and a kubelet that runs each pod's container as a local process.

A test tool. llama.cpp on CPUs runs for real where its weights are on this machine, and so do our own images; other
engines are simulated. The IDs of containers say which (`process://`, `simulated://`). Probes, environment, logs, exit
codes, back-off, preStop and grace period behave as Kubernetes documents them; ConfigMaps and Secrets are mounted as
files, and `kubectl logs` shows what the processes write. There are no namespaces, other volumes or limits, and exec
probes and hooks count as successful.

`__main__` starts it; `stack.NodeAgent` is the process as others see it. Data flows downwards:

- `agent`: registers the nodes, renews their Leases, watches pods and gives each to a worker
- `pod`: the life of one pod: environment, credentials, status, removal
- `container`: one container: its program, its probes, its restarts
- `volumes`: ConfigMaps and Secrets as files, and mount paths
- `kubelet_api`: logs, and the HTTPS API that serves them
- `serviceproxy`: ClusterIPs on this machine; the small informer `follow`
- `nodes`: configuration and Node objects (pure)
"""

"""A Kubernetes cluster made of processes of one user: control plane, node agent, engines, operator.

A tool for development and tests, a distribution of its own that nothing of the operator imports. From the ground up:

- `process`, `launcher`: child processes that die with their parent; waiting for a condition
- `network`: loopback addresses for pods and Services, free ports, the apiserver's way to pods
- `kubeconfig`, `pki`: credentials
- `apiserver`: a small blocking client, CustomResourceDefinitions, the audit log
- `programs`: etcd, Kubernetes' programs, helm, Go, Prometheus and others: found, built or fetched
- `components`: command lines of the control plane's programs (pure)
- `controlplane`: a running control plane
- `nodeagent`: simulated GPU nodes that run pods as local processes
- `engine`: simulated vLLM, SGLang, TGI and llama.cpp servers
- `llama_server`: llama.cpp itself, for models on CPUs whose weights are on this machine
- `stack`: control plane, node agent and operator together, as the tests use them
- `named_cluster`, `cli`: `flotilla devcluster`
- `traffic`, `demo`: `make demo`
"""

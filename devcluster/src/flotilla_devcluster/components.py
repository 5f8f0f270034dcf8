"""Command lines of the control plane's programs. Pure.

Flags: `--help` of etcd 3.6 and of the Kubernetes 1.36 programs.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SERVICE_CIDR = "10.96.0.0/16"
SERVICE_IP = "10.96.0.1"
"""Address of the `kubernetes` Service: the first of the range."""
ISSUER = "https://kubernetes.default.svc.cluster.local"

AUDIT_POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived", "ResponseStarted"],
    "rules": [
        # The control plane's own reads are nine tenths of all requests, and no test asks about them.
        {
            "level": "None",
            "nonResourceURLs": ["/healthz*", "/livez*", "/readyz*", "/openapi*", "/api*", "/version"],
        },
        {
            "level": "None",
            "verbs": ["get", "list", "watch"],
            "users": ["system:apiserver", "system:kube-controller-manager", "system:kube-scheduler"],
        },
        {
            "level": "None",
            "verbs": ["get", "list", "watch"],
            "userGroups": ["system:serviceaccounts:kube-system"],
        },
        {"level": "Metadata"},
    ],
}


@dataclass(frozen=True, slots=True)
class Ports:
    """TCP ports on 127.0.0.1."""

    etcd: int
    etcd_peer: int
    apiserver: int
    controller_manager: int
    scheduler: int


@dataclass(frozen=True, slots=True)
class Tuning:
    """What tests change about the control plane; all in seconds."""

    node_monitor_grace_period_s: int = 40
    """A node whose lease is older is NotReady."""
    pod_eviction_s: int = 300
    """How long pods stay bound to a node that is NotReady or unreachable."""


def etcd(program: Path, *, data: Path, ports: Ports) -> list[str]:
    """etcd without fsync: the data of a test need not survive a power cut."""
    client, peer = f"http://127.0.0.1:{ports.etcd}", f"http://127.0.0.1:{ports.etcd_peer}"
    return [
        str(program),
        f"--data-dir={data}",
        "--unsafe-no-fsync",
        "--log-level=warn",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=default={peer}",
    ]


def apiserver(
    program: Path,
    *,
    pki: Path,
    ports: Ports,
    audit_policy: Path,
    audit_log: Path,
    egress: Path,
    tuning: Tuning,
    controllers: bool,
) -> list[str]:
    """kube-apiserver with RBAC, audit log, aggregation and kubelet credentials."""
    argv = [
        str(program),
        f"--etcd-servers=http://127.0.0.1:{ports.etcd}",
        "--bind-address=127.0.0.1",
        f"--secure-port={ports.apiserver}",
        f"--service-cluster-ip-range={SERVICE_CIDR}",
        # The only address of this server is 127.0.0.1, which is no legal endpoint of a Service.
        "--endpoint-reconciler-type=none",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--allow-privileged=true",
        "--profiling=false",
        f"--default-not-ready-toleration-seconds={tuning.pod_eviction_s}",
        f"--default-unreachable-toleration-seconds={tuning.pod_eviction_s}",
        f"--service-account-issuer={ISSUER}",
        f"--service-account-key-file={pki / 'sa.pub'}",
        f"--service-account-signing-key-file={pki / 'sa.key'}",
        f"--client-ca-file={pki / 'ca.crt'}",
        f"--tls-cert-file={pki / 'apiserver.crt'}",
        f"--tls-private-key-file={pki / 'apiserver.key'}",
        f"--requestheader-client-ca-file={pki / 'front-proxy-ca.crt'}",
        "--requestheader-allowed-names=front-proxy-client",
        "--requestheader-username-headers=X-Remote-User",
        "--requestheader-group-headers=X-Remote-Group",
        "--requestheader-extra-headers-prefix=X-Remote-Extra-",
        f"--proxy-client-cert-file={pki / 'front-proxy-client.crt'}",
        f"--proxy-client-key-file={pki / 'front-proxy-client.key'}",
        f"--kubelet-client-certificate={pki / 'kubelet-client.crt'}",
        f"--kubelet-client-key={pki / 'kubelet-client.key'}",
        "--kubelet-preferred-address-types=ExternalIP,InternalIP",
        f"--egress-selector-config-file={egress}",
        f"--audit-policy-file={audit_policy}",
        f"--audit-log-path={audit_log}",
        # Rotation would hide events from a test that reads the file; a session writes some tens of megabytes.
        "--audit-log-maxsize=4096",
    ]
    if not controllers:
        # No controller creates the default ServiceAccounts, without which this plugin refuses every pod.
        argv.append("--disable-admission-plugins=ServiceAccount")
    return argv


def controller_manager(program: Path, *, pki: Path, port: int, kubeconfig: Path, tuning: Tuning) -> list[str]:
    """kube-controller-manager, with more than its 20 requests per second and an HPA pass more often than each 15 s."""
    return [
        str(program),
        *_controller(pki=pki, port=port, kubeconfig=kubeconfig),
        "--use-service-account-credentials=true",
        f"--service-account-private-key-file={pki / 'sa.key'}",
        f"--root-ca-file={pki / 'ca.crt'}",
        f"--cluster-signing-cert-file={pki / 'ca.crt'}",
        f"--cluster-signing-key-file={pki / 'ca.key'}",
        "--node-monitor-period=1s",
        "--horizontal-pod-autoscaler-sync-period=2s",
        f"--node-monitor-grace-period={tuning.node_monitor_grace_period_s}s",
    ]


def scheduler(program: Path, *, pki: Path, port: int, kubeconfig: Path) -> list[str]:
    return [str(program), *_controller(pki=pki, port=port, kubeconfig=kubeconfig)]


def audit_policy_text() -> str:
    """The audit policy file; JSON is YAML."""
    return json.dumps(AUDIT_POLICY, indent=2)


def egress_text(socket: str) -> str:
    """The file that sends the apiserver's connections to pods through the proxy on that Unix socket."""
    connection = {"proxyProtocol": "HTTPConnect", "transport": {"uds": {"udsName": socket}}}
    kind = {"apiVersion": "apiserver.k8s.io/v1beta1", "kind": "EgressSelectorConfiguration"}
    return json.dumps({**kind, "egressSelections": [{"name": "cluster", "connection": connection}]}, indent=2)


def _controller(*, pki: Path, port: int, kubeconfig: Path) -> Sequence[str]:
    return [
        f"--kubeconfig={kubeconfig}",
        f"--authentication-kubeconfig={kubeconfig}",
        f"--authorization-kubeconfig={kubeconfig}",
        "--bind-address=127.0.0.1",
        f"--secure-port={port}",
        f"--tls-cert-file={pki / 'controllers.crt'}",
        f"--tls-private-key-file={pki / 'controllers.key'}",
        "--leader-elect=false",
        "--profiling=false",
        "--kube-api-qps=500",
        "--kube-api-burst=1000",
    ]

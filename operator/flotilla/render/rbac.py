"""The one table of what the operator may do; the manifests, the check at start and the tests all read it."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from flotilla.constants import GATEWAY, GROUP, LABEL_NAME, LABEL_PART_OF, MANAGER


@dataclass(frozen=True, slots=True)
class Rule:
    """One row of a Role. `own_namespace` rules are granted only where the operator itself lives."""

    group: str
    resources: tuple[str, ...]
    verbs: tuple[str, ...]
    why: str
    own_namespace: bool = False
    names: tuple[str, ...] = ()
    """The only objects that it is for; creating counts, because server-side apply names what it makes."""
    cluster_scoped: bool = False
    """Not granted to an operator of a few namespaces."""


USER_RESOURCES = ("modeldeployments", "routingpolicies", "evaluations")
"""Plural names of the resources that users write."""

RULES: tuple[Rule, ...] = (
    Rule(GROUP, USER_RESOURCES, ("list", "watch"), "the resources that users write"),
    Rule(GROUP, tuple(f"{name}/status" for name in USER_RESOURCES), ("patch",), "conditions"),
    Rule(
        GROUP,
        ("modeldeployments/finalizers", "evaluations/finalizers"),
        ("update",),
        "blockOwnerDeletion on children, where OwnerReferencesPermissionEnforcement is on",
    ),
    Rule("apps", ("deployments",), ("list", "watch", "create", "patch", "delete"), "engine pods"),
    Rule("batch", ("jobs",), ("get", "list", "watch", "create", "patch", "delete"), "runs of evaluations"),
    Rule("", ("services",), ("get", "list", "watch", "create", "patch", "delete"), "an address per model"),
    Rule(
        "policy",
        ("poddisruptionbudgets",),
        ("get", "list", "watch", "create", "patch", "delete"),
        "drains take one replica at a time",
    ),
    Rule("", ("pods",), ("list", "watch"), "scheduling, start-up and queue depth"),
    Rule("", ("pods",), ("patch",), "the deletion cost that lets idle replicas go first"),
    Rule("", ("pods/status",), ("patch",), "the readiness gate of pods whose LoRA adapters are loaded while they run"),
    Rule("", ("configmaps",), ("get", "list", "watch", "create", "patch"), "the gateway's document", names=(GATEWAY,)),
    Rule("", ("nodes",), ("list",), "accelerators that are free for a rollout, and their prices", cluster_scoped=True),
    Rule(
        "",
        ("serviceaccounts",),
        ("get", "list", "watch", "create", "patch"),
        "the gateway's account",
        names=(GATEWAY,),
    ),
    Rule(
        "rbac.authorization.k8s.io",
        ("roles", "rolebindings"),
        ("get", "list", "watch", "create", "patch"),
        "what the gateway may read",
        names=(GATEWAY,),
    ),
    Rule(
        "networking.k8s.io",
        ("networkpolicies",),
        ("get", "list", "watch", "create", "patch"),
        "who may connect to the gateway",
        names=(GATEWAY,),
    ),
    Rule(
        "discovery.k8s.io",
        ("endpointslices",),
        ("get", "list", "watch"),
        "gateways read them, and a right can be granted only by its holder",
    ),
    Rule("events.k8s.io", ("events",), ("create",), "one event per transition"),
    Rule(
        "",
        ("configmaps",),
        ("get", "list", "create", "patch", "delete"),
        "what deployments have cost, kept through restarts",
        own_namespace=True,
    ),
    Rule("coordination.k8s.io", ("leases",), ("get", "create", "update"), "leader election", own_namespace=True),
)


def permissions() -> Iterator[tuple[Rule, str, str]]:
    """Yield (rule, resource, verb), a row per question that the operator asks the apiserver at start."""
    for rule in RULES:
        for resource in rule.resources:
            for verb in rule.verbs:
                yield rule, resource, verb


def needed(*, namespaces: Sequence[str], own_namespace: str) -> Iterator[tuple[Rule, str, str, str]]:
    """Rule, resource, verb and namespace (empty: all) of each right that an operator of these namespaces needs."""
    for rule, resource, verb in permissions():
        if not (rule.cluster_scoped and namespaces):
            for namespace in (own_namespace,) if rule.own_namespace else tuple(namespaces) or ("",):
                yield rule, resource, verb, namespace


def attributes(rule: Rule, resource: str, verb: str, namespace: str) -> dict[str, str]:
    """`resourceAttributes` of an access review."""
    name, _, subresource = resource.partition("/")
    asked = {"group": rule.group, "resource": name, "verb": verb, "namespace": namespace}
    if subresource:
        asked["subresource"] = subresource
    if rule.names:
        asked["name"] = rule.names[0]
    return asked


@dataclass(frozen=True, slots=True)
class UserRole:
    """What people may do with Flotilla's resources, through the cluster's own roles that it is added to."""

    name: str
    aggregate_to: tuple[str, ...]
    verbs: tuple[str, ...]
    scale_verbs: tuple[str, ...]


USER_ROLES: tuple[UserRole, ...] = (
    UserRole("view", ("view", "edit", "admin"), ("get", "list", "watch"), ("get",)),
    UserRole(
        "edit", ("edit", "admin"), ("create", "update", "patch", "delete", "deletecollection"), ("update", "patch")
    ),
)


def rules(*, own_namespace: bool = False, cluster_wide: bool = True) -> list[dict[str, Any]]:
    """`rules` of a role: the operator's own namespace, or the namespaces whose models it runs, all of them or some."""
    return [
        _rule(rule.group, rule.resources, rule.verbs, rule.names)
        for rule in RULES
        if rule.own_namespace is own_namespace and (cluster_wide or not rule.cluster_scoped)
    ]


def user_rules(role: UserRole) -> list[dict[str, Any]]:
    """`rules` of the role."""
    return [
        _rule(GROUP, USER_RESOURCES, role.verbs),
        _rule(GROUP, ("modeldeployments/scale",), role.scale_verbs),
    ]


def _rule(
    group: str, resources: tuple[str, ...], verbs: tuple[str, ...], names: tuple[str, ...] = ()
) -> dict[str, Any]:
    only = {"resourceNames": list(names)} if names else {}
    return {"apiGroups": [group], "resources": list(resources), **only, "verbs": list(verbs)}


def _meta(name: str, namespace: str | None = None) -> dict[str, Any]:
    labels = {LABEL_NAME: "flotilla-operator", LABEL_PART_OF: MANAGER}
    return {"name": name, **({"namespace": namespace} if namespace else {}), "labels": labels}


def manifests(*, name: str = "flotilla-operator", namespace: str = "flotilla-system") -> list[dict[str, Any]]:
    """ServiceAccount, roles and bindings for an operator that watches the whole cluster, and the roles of its users."""
    rbac, subject = (
        "rbac.authorization.k8s.io",
        {"kind": "ServiceAccount", "name": name, "namespace": namespace},
    )

    def binding(kind: str, role_kind: str, meta: dict[str, Any]) -> dict[str, Any]:
        role = {"apiGroup": rbac, "kind": role_kind, "name": name}
        return {
            "apiVersion": f"{rbac}/v1",
            "kind": kind,
            "metadata": meta,
            "roleRef": role,
            "subjects": [subject],
        }

    return [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": _meta(name, namespace)},
        {"apiVersion": f"{rbac}/v1", "kind": "ClusterRole", "metadata": _meta(name), "rules": rules()},
        binding("ClusterRoleBinding", "ClusterRole", _meta(name)),
        {
            "apiVersion": f"{rbac}/v1",
            "kind": "Role",
            "metadata": _meta(name, namespace),
            "rules": rules(own_namespace=True),
        },
        binding("RoleBinding", "Role", _meta(name, namespace)),
        *(_user_role(role) for role in USER_ROLES),
    ]


def _user_role(role: UserRole) -> dict[str, Any]:
    meta = _meta(f"{MANAGER}-{role.name}")
    meta["labels"] |= {f"rbac.authorization.k8s.io/aggregate-to-{name}": "true" for name in role.aggregate_to}
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRole",
        "metadata": meta,
        "rules": user_rules(role),
    }

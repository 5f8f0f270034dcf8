"""Ask the apiserver at start whether the operator may do what it will have to do, and name what is missing."""

import asyncio
from collections.abc import Sequence

from flotilla.kube.client import KubeClient
from flotilla.kube.kinds import SELF_SUBJECT_ACCESS_REVIEW
from flotilla.render.rbac import Rule, permissions


async def missing_permissions(
    client: KubeClient, *, namespaces: Sequence[str], own_namespace: str, leader_election: bool
) -> list[str]:
    """Return one line per verb that the ServiceAccount lacks; empty when all is well.

    Without this a missing verb looks like a hang: the watch layer retries 403 for almost a minute.
    """

    async def ask(rule: Rule, resource: str, verb: str, namespace: str) -> str | None:
        name, _, subresource = resource.partition("/")
        attributes = {"group": rule.group, "resource": name, "verb": verb, "namespace": namespace}
        if subresource:
            attributes["subresource"] = subresource
        if rule.names:
            attributes["name"] = rule.names[0]
        review = {
            "apiVersion": SELF_SUBJECT_ACCESS_REVIEW.api_version,
            "kind": SELF_SUBJECT_ACCESS_REVIEW.kind,
            "metadata": {},
            "spec": {"resourceAttributes": attributes},
        }
        answer = await client.create(SELF_SUBJECT_ACCESS_REVIEW, review)
        if answer["status"].get("allowed"):
            return None
        where = f"in namespace {namespace}" if namespace else "in all namespaces"
        group = f" of {rule.group}" if rule.group else ""
        return f"cannot {verb} {resource}{group} {where} (needed for: {rule.why})"

    questions = [
        ask(rule, resource, verb, namespace)
        for rule, resource, verb in permissions()
        if (leader_election or not rule.own_namespace) and not (rule.cluster_scoped and namespaces)
        for namespace in ((own_namespace,) if rule.own_namespace else tuple(namespaces) or ("",))
    ]
    return [line for line in await asyncio.gather(*questions) if line]

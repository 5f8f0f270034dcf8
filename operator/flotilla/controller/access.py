"""Ask the apiserver at start whether the operator may do what it will have to do, and name what is missing."""

import asyncio
from collections.abc import Iterator, Sequence

from flotilla.kube.client import KubeClient
from flotilla.kube.kinds import SELF_SUBJECT_ACCESS_REVIEW
from flotilla.render.rbac import Rule, permissions


async def missing_permissions(
    client: KubeClient, *, namespaces: Sequence[str], own_namespace: str, leader_election: bool
) -> list[str]:
    """Return one line per verb that the ServiceAccount lacks; empty when all is well.

    Without this a missing verb looks like a hang: lists and watches retry HTTP 403 for as long as it takes.
    """

    async def ask(rule: Rule, resource: str, verb: str, namespace: str) -> str | None:
        review = {
            "apiVersion": SELF_SUBJECT_ACCESS_REVIEW.api_version,
            "kind": SELF_SUBJECT_ACCESS_REVIEW.kind,
            "metadata": {},
            "spec": {"resourceAttributes": attributes(rule, resource, verb, namespace)},
        }
        answer = await client.create(SELF_SUBJECT_ACCESS_REVIEW, review)
        if answer["status"].get("allowed"):
            return None
        where = f"in namespace {namespace}" if namespace else "in all namespaces"
        group = f" of {rule.group}" if rule.group else ""
        return f"cannot {verb} {resource}{group} {where} (needed for: {rule.why})"

    questions = [
        ask(*question)
        for question in needed(namespaces=namespaces, own_namespace=own_namespace)
        if leader_election or question[1] != "leases"
    ]
    return [line for line in await asyncio.gather(*questions) if line]


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

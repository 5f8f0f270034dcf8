"""The task of a request that does not name it, by a small model that is itself a target."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flotilla.api.routing_policy import Classifier
from flotilla.domain.routing.decide import Permit, data_class
from flotilla.domain.routing.document import Policy
from flotilla.domain.routing.request import Features, Operation, features_of

ANSWER_TOKENS = 16
_INSTRUCTION = """Which task is the request of the user? Answer with one of these names and nothing else.
{tasks}
other: none of these"""


@dataclass(frozen=True, slots=True)
class Question:
    """One call of the classifier. It takes none of the request's attempts; its tokens count as those of any target."""

    permit: Permit
    body: dict[str, Any]
    """Of a chat completion, whole and not streamed; its model name is the target's own."""
    features: Features
    """What it may cost is reserved by these."""
    timeout_s: int


def question(policy: Policy, features: Features, body: Mapping[str, Any]) -> Question | None:
    """What to ask, None where there is nothing to ask: no classifier, no rule that looks at the task, a task that is
    known, or data that may not go to the classifier's target."""
    classifier = policy.classifier
    if classifier is None or features.task is not None or not policy.matches_tasks:
        return None
    _, allowed = data_class(policy, features)
    text = _last_user_text(body) if features.operation is Operation.CHAT else ""
    if classifier.target not in allowed or not text:
        return None
    target = policy.target[classifier.target]
    asked = _body(classifier, target.served_model, text)
    return Question(Permit(target, allowed), asked, features_of(asked, {}, policy), classifier.timeout_seconds)


def task_of(answer: Mapping[str, Any], policy: Policy) -> str | None:
    """The task that an answer names, None where it names none of the policy's. Never the model's own words."""
    classifier = policy.classifier
    if classifier is None:
        return None
    try:
        content = answer["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError):
        return None
    if not isinstance(content, str):
        return None
    named = content.strip().strip("\"'`.*").casefold()
    return next((task.name for task in classifier.tasks if task.name == named), None)


def _body(classifier: Classifier, model: str, text: str) -> dict[str, Any]:
    tasks = "\n".join(f"{task.name}: {task.description}" for task in classifier.tasks)
    excerpt = text.encode(errors="replace")[: classifier.max_prompt_bytes].decode(errors="ignore")
    return {
        "model": model,
        "messages": [
            {"role": "system", "content": _INSTRUCTION.format(tasks=tasks)},
            {"role": "user", "content": excerpt},
        ],
        "temperature": 0,
        "max_tokens": ANSWER_TOKENS,
    }


def _last_user_text(body: Mapping[str, Any]) -> str:
    messages = body.get("messages")
    for message in reversed(messages) if isinstance(messages, list) else ():
        if not isinstance(message, Mapping) or message.get("role") != "user":
            continue
        content = message.get("content")
        if isinstance(content, str):
            return content
        parts = content if isinstance(content, list) else ()
        texts = (part.get("text") for part in parts if isinstance(part, Mapping))
        return "\n".join(text for text in texts if isinstance(text, str))
    return ""

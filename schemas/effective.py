"""Which accuracy floors are compared with: the declared one, or what feedback says, as the endpoint's `accuracy_policy` has it."""

from __future__ import annotations

import msgspec

from schemas.catalog import Catalog, TaskSpec, VariantSpec, variant_key
from schemas.learned import DECLARED, LEARNED, LOWER_BOUND, AccuracyPolicy, Learned, LearnedVariant


def model_of(variant: VariantSpec) -> str:
    """What a learned accuracy belongs to: another file, or function, is another model."""
    return variant.sha256 or variant.call


def known(key: str, variant: VariantSpec, learned: Learned) -> LearnedVariant | None:
    """What feedback says of this variant, if it says enough."""
    found = learned.variants.get(key)
    return found if found is not None and found.model == model_of(variant) else None


def effective_accuracy(key: str, variant: VariantSpec, learned: Learned, policy: AccuracyPolicy) -> float:
    """In [0, 1]. Declared, as long as feedback does not say enough: else nobody would ever be offered a new variant, and nothing be learned of it."""
    found = None if policy == DECLARED else known(key, variant, learned)
    if found is None:
        return variant.accuracy
    return found.accuracy if policy == LEARNED else min(found.low, variant.accuracy)


def effective_task(task: TaskSpec, learned: Learned, policy: AccuracyPolicy) -> TaskSpec:
    """The task with these accuracies."""
    variants = tuple(
        msgspec.structs.replace(variant, accuracy=effective_accuracy(variant_key(task.name, variant.name), variant, learned, policy))
        for variant in task.variants
    )
    return msgspec.structs.replace(task, variants=variants)


def ladder_name(task: str, policy: AccuracyPolicy) -> str:
    """What classes of requests call a task under a policy; `~` is in no task's name."""
    return task if policy == DECLARED else f"{task}~{policy}"


def learned_tasks(catalog: Catalog) -> dict[str, TaskSpec]:
    """The tasks of endpoints that do not go by declared accuracies, under both such policies, by the names of their ladders.

    Both, because a request under way keeps its ladder when the endpoint's policy changes.
    """
    endpoints = [endpoint for endpoint in catalog.endpoints.values() if endpoint.accuracy_policy != DECLARED]
    tasks = sorted({endpoint.task for endpoint in endpoints if endpoint.task in catalog.tasks})
    return {
        ladder_name(task, policy): effective_task(catalog.tasks[task], catalog.learned, policy) for task in tasks for policy in (LEARNED, LOWER_BOUND)
    }


def planned_accuracy(key: str, catalog: Catalog, variant: VariantSpec) -> float:
    """The least that any endpoint of the variant's task goes by: what is planned for meets every floor."""
    task = key.partition("/")[0]
    policies: set[AccuracyPolicy] = {endpoint.accuracy_policy for endpoint in catalog.endpoints.values() if endpoint.task == task}
    return min(effective_accuracy(key, variant, catalog.learned, policy) for policy in policies or {DECLARED})

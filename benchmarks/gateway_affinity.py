"""Compares ways to choose the replica of a request, in a simulation with shared prompt prefixes and bounded caches.

    uv run python -m benchmarks.gateway_affinity [--replicas 4] [--load 0.7]

The gateway's own EndpointPool chooses. A replica computes the part of a prompt that its cache does not hold, one prompt
after another, and then generates with all others that it generates for; its cache keeps the blocks that were used last.
Tenants have system prompts of 2,000 tokens, and conversations grow by their turns. Times are simulated; no engine runs.
"""

import argparse
import heapq
import random
import statistics
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.support.gateway import endpoint_slice

from flotilla.gateway.endpoints import Endpoint, EndpointPool, EndpointRegistry, prefix_blocks

PREFILL_TOKENS_PER_S = 8000.0
"""About an L4 with a 7B model."""
GENERATE_S = 2.0
CHARS_PER_TOKEN = 4
CACHE_BLOCKS = 1500
"""Blocks of 256 characters: about 100,000 tokens of KV cache."""
TENANTS, SYSTEM_CHARS, TURN_CHARS, TURNS = 120, 8000, 800, 6
REQUESTS = 6000
Pick = Callable[[EndpointPool, Sequence[int], random.Random], Endpoint]


@dataclass
class Replica:
    """The time at which the replica is free to compute the next prompt, and the blocks in its cache."""

    free_s: float = 0.0
    cache: "OrderedDict[int, None]" = field(default_factory=OrderedDict)

    def serve(self, now_s: float, blocks: Sequence[int], chars: int) -> tuple[float, float]:
        """The time of the first token, and the share of the prompt that was in the cache."""
        hits = 0
        for block in blocks:
            if block not in self.cache:
                break
            hits += 1
        for block in blocks:
            self.cache.pop(block, None)
            self.cache[block] = None
        while len(self.cache) > CACHE_BLOCKS:
            self.cache.popitem(last=False)
        share = hits / len(blocks)
        seconds = chars * (1 - share) / CHARS_PER_TOKEN / PREFILL_TOKENS_PER_S
        self.free_s = max(self.free_s, now_s) + seconds
        return self.free_s, share


def round_robin(pool: EndpointPool, blocks: Sequence[int], chance: random.Random) -> Endpoint:
    """One after the other."""
    pool._turn += 1
    return pool.endpoints[pool._turn % len(pool.endpoints)]


def least_busy(pool: EndpointPool, blocks: Sequence[int], chance: random.Random) -> Endpoint:
    """The one with the fewest requests of this gateway."""
    found = pool.pick(0)
    assert found is not None
    return found


def two_choices(pool: EndpointPool, blocks: Sequence[int], chance: random.Random) -> Endpoint:
    """The less busy one of two that are drawn."""
    return min(chance.sample(pool.endpoints, 2), key=lambda endpoint: endpoint.outstanding)


def longest_prefix(pool: EndpointPool, blocks: Sequence[int], chance: random.Random) -> Endpoint:
    """What the gateway does: the one that knows the longest part of the prompt, within the bound on load."""
    found = pool.pick(0, affinity=blocks)
    assert found is not None
    return found


PICKERS: dict[str, Pick] = {
    "round robin": round_robin,
    "least busy": least_busy,
    "two choices": two_choices,
    "longest known prefix (Flotilla)": longest_prefix,
}


def prompts(chance: random.Random) -> list[dict[str, Any]]:
    """Conversations of the tenants, turn by turn, in a random order that keeps each conversation's own order."""
    systems = [f"tenant {tenant}: " + chance.choice("abcdef") * SYSTEM_CHARS for tenant in range(TENANTS)]
    open_conversations: list[list[dict[str, str]]] = []
    found = list[dict[str, Any]]()
    while len(found) < REQUESTS:
        if len(open_conversations) < 40 or chance.random() < 1 / TURNS:
            # Few tenants bring most of the traffic.
            tenant = min(int(chance.expovariate(0.03)), TENANTS - 1)
            open_conversations.append([{"role": "system", "content": systems[tenant]}])
        place = chance.randrange(len(open_conversations))
        conversation = open_conversations[place]
        conversation.append({"role": "user", "content": f"{chance.random()} " + "x" * TURN_CHARS})
        found.append({"messages": list(conversation)})
        conversation.append({"role": "assistant", "content": f"{chance.random()} " + "y" * TURN_CHARS})
        if len(conversation) > 2 * TURNS:
            del open_conversations[place]
    return found


def simulate(pick: Pick, replicas: int, load: float, seed: int) -> tuple[float, float, float, float]:
    """Share of prompt tokens from the cache, first token p50 and p99 in seconds, and the busiest replica's share."""
    chance = random.Random(seed)
    registry = EndpointRegistry()
    for port in range(1, replicas + 1):
        registry.put(endpoint_slice("m", [port]))
    pool = registry.pool("m")
    machines = {id(endpoint): Replica() for endpoint in pool.endpoints}
    counts = dict.fromkeys(machines, 0)
    bodies = prompts(random.Random(seed))
    mean_chars = statistics.mean(sum(len(m["content"]) for m in body["messages"]) for body in bodies)
    rate = load * replicas * PREFILL_TOKENS_PER_S * CHARS_PER_TOKEN / mean_chars
    now_s, shares, waits = 0.0, list[float](), list[float]()
    running: list[tuple[float, int, Endpoint]] = []
    for number, body in enumerate(bodies):
        now_s += chance.expovariate(rate)
        while running and running[0][0] <= now_s:
            heapq.heappop(running)[2].outstanding -= 1
        blocks = prefix_blocks(body, "m", None)
        endpoint = pick(pool, blocks, chance)
        chars = sum(len(message["content"]) for message in body["messages"])
        first_s, share = machines[id(endpoint)].serve(now_s, blocks, chars)
        counts[id(endpoint)] += 1
        endpoint.outstanding += 1
        heapq.heappush(running, (first_s + GENERATE_S, number, endpoint))
        shares.append(share)
        waits.append(first_s - now_s)
    ordered = sorted(waits)
    return (
        statistics.mean(shares),
        ordered[len(ordered) // 2],
        ordered[int(len(ordered) * 0.99)],
        max(counts.values()) / len(bodies),
    )


def main(args: argparse.Namespace) -> None:
    """Print a Markdown table."""
    print("| picker | prompt from the cache | first token p50 ms | p99 ms | busiest replica |")
    print("|---|---|---|---|---|")
    for name, pick in PICKERS.items():
        runs = [simulate(pick, args.replicas, args.load, seed) for seed in range(args.seeds)]
        hit, p50, p99, most = (statistics.median(column) for column in zip(*runs, strict=True))
        print(f"| {name} | {hit:.0%} | {p50 * 1000:.0f} | {p99 * 1000:.0f} | {most:.0%} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicas", type=int, default=4)
    parser.add_argument("--load", type=float, default=0.7, help="of the prompts that all replicas can compute uncached")
    parser.add_argument("--seeds", type=int, default=3)
    main(parser.parse_args())

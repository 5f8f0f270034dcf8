"""Blocks of the KV cache, counted and not stored."""

from __future__ import annotations


class BlockPool:
    """A fixed number of blocks of `block_size` tokens.

    Sequences that decode take one block each time their length passes a multiple of the block size. As all of
    them advance by one token a step, when a sequence does so depends on the step number alone: its phase. The
    pool keeps a count per phase, so that a step costs nothing per sequence.
    """

    def __init__(self, *, blocks: int, block_size: int) -> None:
        self.total = blocks
        self.free = blocks
        self.block_size = block_size
        self._growing = [0] * block_size
        self._growers = 0

    @property
    def used(self) -> int:
        return self.total - self.free

    def blocks_for(self, tokens: int) -> int:
        return -(-tokens // self.block_size)

    def take(self, blocks: int) -> None:
        self.free -= blocks

    def give(self, blocks: int) -> None:
        self.free += blocks

    def phase(self, offset: int) -> int:
        """Of a sequence whose length at step s is `s + offset` tokens."""
        return -offset % self.block_size

    def add_grower(self, offset: int) -> None:
        self._growing[self.phase(offset)] += 1
        self._growers += 1

    def remove_grower(self, offset: int) -> None:
        self._growing[self.phase(offset)] -= 1
        self._growers -= 1

    def growth_at(self, step: int) -> int:
        """Blocks that the growing sequences need before `step` can run."""
        return self._growing[step % self.block_size]

    def grow_through(self, first: int, last: int) -> None:
        """Take the growth of the steps `first` to `last`, both included."""
        cycles, rest = divmod(max(0, last - first + 1), self.block_size)
        self.free -= cycles * self._growers
        self.free -= sum(self.growth_at(first + step) for step in range(rest))

    def steps_covered(self, step: int) -> int | None:
        """How many steps after `step` the free blocks last; None: for ever."""
        if not self._growers:
            return None
        cycles, left = divmod(self.free, self._growers)
        steps = cycles * self.block_size
        for ahead in range(1, self.block_size):
            left -= self.growth_at(step + ahead)
            if left < 0:
                break
            steps += 1
        return steps

"""Largest numbers that settings may hold: what the machine or a format can still do something with.

Every numeric setting has a lower and an upper bound (`tests/architecture/test_number_bounds.py`): 1e308 seconds, or
10**30 workers, are refused when the config is read and not by an overflow somewhere in a run.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

MAX_SECONDS = 2_000_000.0
"""Longest wait, 23 days: the kernel's `poll` counts milliseconds in 31 bits."""
MAX_WHOLE = 2**63 - 1
"""Largest whole number of Parquet, SQLite and torch: 64 bits with a sign. For seeds and values of no unit."""
MAX_SCORE = 1e15
"""Largest score, weight or coefficient: up to here a double tells whole numbers apart."""
MAX_COEFFICIENT = 1e6
"""Largest factor inside a loss: it still leaves room in float32 (3e38) for its products with log-probs."""
MAX_COUNT = 1_000_000_000
"""Most things of one kind (prompts, samples, pairs, rows): counts of a batch are 32-bit whole numbers in Arrow."""
MAX_GENERATED = 100_000
"""Most prompts that a generator makes: they are held in memory, about 2 kB each, in every process that loads them."""
MAX_TOKENS = 100_000_000
"""Longest sequence in tokens: ten times the longest context that any model states, and a 32-bit position."""
MAX_CHARACTERS = 1_000_000_000
"""Longest text in characters: a column of Arrow holds 2^31 bytes."""
MAX_CPUS = 8192
"""Most cores, threads or GPUs: what Linux is built for at most (NR_CPUS)."""
MAX_WORKERS = 8192
"""Most processes of one kind."""
MAX_ROUNDS = 100_000
"""Most rounds of a run; also how many rounds anything can look back."""
MAX_MEGABYTES = 16_777_216
"""Most memory or scratch space in MiB: 16 TiB, half of what a process can address on x86-64 with room to spare."""

Score = Annotated[float, Field(ge=-MAX_SCORE, le=MAX_SCORE)]
"""A number that a user's own code or a judge counts in."""
Whole = Annotated[int, Field(ge=-MAX_WHOLE, le=MAX_WHOLE)]
"""A whole number of no unit."""

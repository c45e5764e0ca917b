"""Our alignment terms against the peers' own code: forward and backward, interleaved in one run, eager and compiled.

As `losses.py`, which has the clock. Run with ``make bench-align``, which needs the extra called oracles.
"""

from __future__ import annotations

from _align_pairs import PAIRS
from losses import main

if __name__ == "__main__":
    main(PAIRS, __doc__ or "")

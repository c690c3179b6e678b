"""The napkin: a ledger of operations, and from it time, memory and money.

A multiply-add is 2 FLOPs everywhere. Sizes are bytes, times seconds, rates per second; powers of
ten. Every formula takes numbers or NumPy arrays, so that a whole axis of cases is one evaluation.

`worthit.cost(case)` returns the record that `worthit cost --json` prints.
"""

from worthit._callable import make_callable

make_callable(__name__, "worthit.cost.record:cost")

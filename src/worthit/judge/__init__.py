"""Bottlenecks to verdicts: is each technique worth it for this case, and when would that change?

`worthit.judge(case)` returns the record that `worthit judge --json` prints.
"""

from worthit._callable import make_callable

make_callable(__name__, "worthit.judge.judge:judge")

"""Speculative decoding: guess what follows, verify the guess in one pass, say what the target says.

`drafter` is the one interface, `accept` the rule that keeps the target's distribution, `loop` the
generation of one sequence; the engine does the same for many. See docs/speculative.md.
"""

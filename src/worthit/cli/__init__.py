"""The command line: one verb a file, found by name, so that a verb imports only what it needs.

Holds no formula: it builds a case from flags, calls what the Python interface calls, and prints the
record (`--json`) or draws it. Results go to stdout; warnings, progress and hints to stderr.
"""

"""What promptside costs, against its peers and against the cheapest code that could do the same.

Each benchmark is a module run as `python -m benchmarks.NAME [--quick] [--json]`; `make bench` runs them all. They
assert nothing. `benchmarks.report` runs the subjects, each in a process of its own, and prints what came out.
"""

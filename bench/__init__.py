"""`python -m bench`: one table of figures, ours beside others, from one run on one machine.

Every contender takes its turn in each of several rounds, so that a noisy neighbour costs all of
them alike. A round is timed as a whole (runs per second, CPU) and run by run (p50, p99).
Absolute figures belong to the machine; ratios are what to compare.
"""

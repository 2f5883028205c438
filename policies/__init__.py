"""What is allowed: policies, limits, units, admission and syscall profiles. Pure but for reading files."""

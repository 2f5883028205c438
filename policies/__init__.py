"""What is allowed: policies, limits, units, admission and syscall profiles. Pure: no effects but reading files."""

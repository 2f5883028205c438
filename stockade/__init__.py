"""The ``stockade`` command: one machine's stack, a single run, tenants and keys."""

"""Seccomp profiles, data only: `default.json`, and `strict.json` and `debug.json`, which extend it.

The format and how rules are read: `worker.sandbox.seccomp`.
"""

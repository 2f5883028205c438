"""HTTP: what a caller sees of Stockade. One route module per noun; nothing here runs a job.

Every answer that is not a success is a problem detail (RFC 9457) from `api.problems`. The OpenAPI
description names every code that a route can answer, with its schema; `tests/api/test_openapi.py`
checks that against the running service.
"""

"""Writes one file after another until the disk is full."""

import itertools

for number in itertools.count():
    with open(f"/tmp/filler-{number}", "wb") as file:
        file.write(bytes(1 << 20))

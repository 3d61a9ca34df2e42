"""The project's benchmarks: `python -m benchmarks NAME` in a checkout. Not part of the wheel.

case: one operator at one size. part: forward or backward. peer: another package's operator or mixer. bound: the time
that the bytes moved, or the exponentials computed, take at the device's peak. result: a row of a JSON file in results/.
"""

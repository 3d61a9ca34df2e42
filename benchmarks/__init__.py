"""The project's benchmarks: `python -m benchmarks NAME`. Not part of the wheel."""

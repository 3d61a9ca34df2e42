"""Benchmarks: operators."""

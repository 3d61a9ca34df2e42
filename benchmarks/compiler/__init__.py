"""Benchmarks: compiler."""

"""Benchmarks: the service beside a bare gRPC server and beside the naive way, in one run.

`python -m tests.benchmarks` from the top of the repository; docs/benchmarks.md says what is
measured and how.
"""

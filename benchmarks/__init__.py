"""Benchmarks: each figure beside the limit that was measured in the same interleaved run. See docs/benchmarks.md."""

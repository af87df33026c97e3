"""Other libraries that do the same work, a file for each, timed beside ours: ``python -m benchmarks.peers``."""

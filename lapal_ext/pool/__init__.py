"""The rows that may be picked: in memory, in a file, or distributed over several processes."""

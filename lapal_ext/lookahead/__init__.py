"""Trying labels before anyone gives them: whole batches, or every label of every row."""

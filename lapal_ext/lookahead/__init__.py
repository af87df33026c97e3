"""The loss after hypothetical labels: of whole batches, or every possible label of every row."""

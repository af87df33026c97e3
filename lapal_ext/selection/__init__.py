"""Building a batch one pick at a time, with assumed labels or with those of an annotator."""

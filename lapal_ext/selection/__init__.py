"""Building a batch one pick at a time, with labels that are assumed or given by a person."""

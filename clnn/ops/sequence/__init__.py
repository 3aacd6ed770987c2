"""The wing of the ops for sequences: attention and recurrence."""

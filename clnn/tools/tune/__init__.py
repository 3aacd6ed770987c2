"""`clnn tune`: `search.py` measures what is fastest here and keeps it, `conv.py` knows the convolutions to measure."""

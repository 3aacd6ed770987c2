"""`clnn bench`: how fast training, inference and matrix products are here, and beside other libraries.

Every side (clnn, and each peer with each number of threads) works in a process of its own, so that thread pools do not
disturb each other and a library that is missing or crashes costs its own row. Each side's losses are checked against
float64 NumPy before it is timed; then rounds are interleaved, one side working while all others wait for their turn.
"""

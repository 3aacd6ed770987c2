"""The tools: what the command line does besides training, and the command line itself; the library needs none of it."""

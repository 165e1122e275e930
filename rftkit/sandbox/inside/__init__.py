"""What runs in the sandbox's own processes: the standard library only, nothing of rftkit.

The child finds this folder as the top-level package `inside`, so it imports itself relatively.
"""

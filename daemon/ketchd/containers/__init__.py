"""The run supervisor: what a container is, what it may do next, and who watches it."""

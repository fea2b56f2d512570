"""The child processes that do the dangerous part, what is said to them, and their walls."""

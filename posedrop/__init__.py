"""What the handlers and the workers of posedrop share."""

__version__ = "0.1.0"

"""What arrives and what is sent: bucket events, and messages through the broker."""

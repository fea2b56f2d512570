"""What makes convolutions fast on a CPU: fused operations and Winograd's algorithm."""

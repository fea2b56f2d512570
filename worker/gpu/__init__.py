"""What keeps an NVIDIA card at work: pinned memory, streams, CUDA graphs."""

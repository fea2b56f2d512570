"""The engine: a network on a video's frames, as DeepLabCut's analyze_videos finds them."""

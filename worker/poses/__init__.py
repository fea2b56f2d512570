"""From what a network found to DeepLabCut's tables: animals followed, tables written."""

"""Models: DeepLabCut projects and the zoo's, packed, pushed, found and fetched."""

"""How a network is computed fast without moving a keypoint: fewer bits, timed and watched."""

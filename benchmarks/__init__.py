"""Figures of posedrop, printed as ratios against what a user would run instead."""

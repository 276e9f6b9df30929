"""Synthetic radiographs, and the program that draws them."""

"""Reads images from any source: listings, labels, decoding, preprocessing."""

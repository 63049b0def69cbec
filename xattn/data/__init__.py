"""Images from any source: listings, labels, decoding, preprocessing."""

"""Images from wherever they lie: listings, labels, decoding, preprocessing."""

"""From Lance tables to batches: reading, order, selection, decoding, augmentation."""

"""From files at a hospital to batches of views: reading, preprocessing, cache, labels, splits, augmentation."""

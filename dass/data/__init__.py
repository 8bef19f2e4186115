"""Images: sources, packs, splits into tasks, augmentation, and batches on the device."""

"""The commands that need no Trainer: one file each, found by its name."""

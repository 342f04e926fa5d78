"""What a run will need, worked out from its config before any weight is loaded."""

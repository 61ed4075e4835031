"""Words for sub-keys and experts."""

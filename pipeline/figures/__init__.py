"""The pictures on lineage cards."""

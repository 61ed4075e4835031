"""PEER: the product-key router, its gates, the index of cells, and experts whose tables are parameters."""

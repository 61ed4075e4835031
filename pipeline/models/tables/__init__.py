"""Expert tables that no autograd leaf holds, one precision a file, and the experts that read them."""

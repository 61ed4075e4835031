"""Models of others in, models of this house out: the public Monet release, lucidrains' PEER, the Hugging Face Hub."""

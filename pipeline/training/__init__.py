"""The training loop, what it saves and resumes from, objectives, and updates of expert tables."""

"""What surrounds a run: Prefect's server, runs that are alive, progress on the terminal."""

"""What stages are made of. Importing anything of it first chooses how threads wait: torch must not be loaded before."""

from pipeline.threads import choose_waiting

choose_waiting()

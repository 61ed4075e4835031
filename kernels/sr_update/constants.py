"""The numbers of the two-nibble rule; docs/methods/int4.md has where they are from."""

MOMENT_DECAY = 0.98
CLIP = 8.0
GROWTH = 2**0.25
LOWEST, HIGHEST = -120, 119

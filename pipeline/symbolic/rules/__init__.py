"""Firing as logic over tokens: bit sets, gates, circuits, the search for them, and which learner wins."""

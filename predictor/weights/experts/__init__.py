"""Experts that are read one by one: which of them stay in memory.

- `slot_policy`: decides which experts of a layer keep their slots.
"""

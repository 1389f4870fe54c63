"""Placement: what a model needs, where each part of it goes, and the table that says so."""

"""Weights: from files to devices. Acts on a placement; decides nothing."""

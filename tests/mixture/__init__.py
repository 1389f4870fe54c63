"""Tests of predictor.mixture."""

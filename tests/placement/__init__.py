"""Tests of predictor.placement."""

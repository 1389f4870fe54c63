"""Streaming: offloaded blocks are read ahead of use, to main memory or to a GPU."""

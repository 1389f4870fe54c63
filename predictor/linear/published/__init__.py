"""The quantisation configs of published checkpoints: a module for each way to write one."""

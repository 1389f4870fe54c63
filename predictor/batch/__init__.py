"""Bulk work: files with a request in each line, in OpenAI's batch format.

A line goes through the endpoint of its URL as if it had come over HTTP (`endpoints`). What is done
is what the output has, so that a run that was killed at any moment goes on where it stopped.
"""

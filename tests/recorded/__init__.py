"""Recorded requests over every protocol, with the server's answers.

`test_recorded.py` sends the requests again and compares. Where answers are meant to change,
`python -m tests.recorded tests/recorded/answers.json` records them anew, and the diff of that file
shows what changed.
"""

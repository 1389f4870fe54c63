"""Checks of what usually goes wrong in a pod or on a node, for the command ``doctor``.

Each check measures one thing and says what to do about it. The offload folder is made if it is not
there; nothing else stays.
"""

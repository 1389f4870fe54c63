"""Linear layers: how their weights are packed, how each is computed, and which way is the fastest.

Packed weights are the parameters of a layer. So the plan, the store and the streams know nothing of
quantisation: they move parameters, whatever their dtype.
"""

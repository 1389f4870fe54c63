"""Mixtures of experts: the experts of a model, which are placed and read one by one.

A block of a mixture is a dense part (attention, norms, router, shared experts) and an experts
module, whose parameters hold one expert for each index of their first dimension. `placement`
decides how many experts stay in memory; `weights` reads the others.
"""

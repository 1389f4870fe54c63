"""Experts that are read one by one: which of them stay in memory, and how the others get there.

- `cache`: the slots of all layers, the source of the experts that a forward pass uses.
- `device_cache`: the same on an accelerator, in front of the slots in main memory.
- `slots`: the memory of slots, and the tensors of an expert in each.
- `layer_slots`: which slots the experts of a layer have, whatever the memory is.
- `slot_policy`: decides which experts of a layer keep their slots.
- `ways`: chooses how each forward pass gets its experts.
- `reader`: several threads that read experts into slots.
- `chunks`: how an expert is cut into reads.
- `extents`: where each expert is on disk, and how it lies in a slot.
"""

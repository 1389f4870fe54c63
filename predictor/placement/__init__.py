"""Placement: the memory that a model needs, the device of each unit, and the report.

`planner.plan` is the entry. `decision.decide` decides how the model is offloaded, `assignment`
which units stay resident, and `expert_slots` how many experts of each layer do. `tiers` counts the
bytes that an assignment takes on each tier, from the sizes in `units`, the load in `demand` and the
buffers in `buffers`. `device_map` reads an explicit map, `refusal` explains a model that does not
fit, and `report` prints a placement. All of it is arithmetic: nothing here reads a file or imports
torch.
"""

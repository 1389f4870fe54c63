"""Streaming: offloaded blocks are fetched ahead of use, to main memory or to an accelerator.

- `parts`: streams all offloaded parts of a model, those of blocks and the others.
- `hooks`: gives each block its parameters for its forward pass, and takes them away afterwards.
- `host_loader`: reads blocks from disk into main memory, where they compute.
- `device_loader`: brings blocks from main memory or disk to an accelerator.
- `prefetch_ring`: decides which block is fetched next, and into which slot.
- `bounce_buffer`: reads files in small parts that stay in the processor's cache.
- `cast_reader`: reads weights of another dtype, and casts them on the way.
- `copy_stream`: orders copies to an accelerator with its computation, and page-locks memory.

Which blocks are streamed, and from which source, is decided before, in `loader` and `block_source`.
"""

"""What the Triton compiler makes of the kernels, counted without a GPU.

SASS: the instructions that a GPU executes. Hot loop: a kernel's largest innermost loop, here over tokens. Stack: bytes
that a thread spills from registers to memory. Resident warps: warps that a streaming multiprocessor (SM) has room for.
Issue model: cycles in which a quarter of an SM issues the hot loop's instructions, computed from their control codes.
"""

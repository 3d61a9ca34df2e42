"""What every operator shares: registration with torch, launching of kernels, what is asked of Triton.

Signature: everything of a call that decides which compiled kernels it launches. Dispatcher: torch's, which a call goes
through where a compiler, a mode or a transform may look on. Switches, environment variables read once, at import:
PACKMAMBA_LAUNCH_CACHE=0 asks Triton for the compiled kernel at every launch; PACKMAMBA_DISPATCHER=always takes every
call through the dispatcher. What either gains: kernels/README.md, "Host time".
"""

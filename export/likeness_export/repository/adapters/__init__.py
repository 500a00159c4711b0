"""What the export copies into the model repository: the adapters between Triton's python backend and pure functions.

These files run inside the server and import nothing of this package.
"""

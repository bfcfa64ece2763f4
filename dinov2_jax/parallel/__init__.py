"""Devices and processes: the mesh, the placement of arrays, and messages between processes."""

"""Devices and processes: the mesh, where arrays lie, and what the processes tell each other."""

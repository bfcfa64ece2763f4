"""Pictures of what a model sees and has learned, and the report of a run."""

"""What any long task needs: checkpoints, metrics, progress, files and interruption."""

"""Features of any number of pictures: the function `extract` and the task "embed"."""

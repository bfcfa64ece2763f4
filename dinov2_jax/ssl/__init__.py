"""The method as pure functions of plain arrays: targets, losses and the objective."""

"""Where pictures come from; every source is a random-access list (see `source.Source`)."""

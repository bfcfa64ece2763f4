"""Reading what `evaluate` returns."""


def entry(found, protocol, data=""):
    """The result of a protocol, of its only data set or of a named one."""
    sets = found["results"][protocol]
    assert data or len(sets) == 1, sorted(sets)
    return sets[data] if data else next(iter(sets.values()))


def values(found, protocol, data=""):
    """Metric -> value."""
    return {name: m["value"] for name, m in entry(found, protocol, data)["metrics"].items()}

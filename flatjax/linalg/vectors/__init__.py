"""The ground of linear algebra: bases, probes, flat vectors, arguments."""

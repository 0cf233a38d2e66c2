"""The peers, each behind one small adapter of the same interface (`benchmarks.peers.adapter`)."""

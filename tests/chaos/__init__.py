"""The chaos test: a run of `leafe explore` under everything that can go wrong, held against a run
in which nothing did."""

"""Virtual time: the real agent on a seeded loop in which waiting costs nothing."""

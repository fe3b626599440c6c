"""The simulator: the policies that serve, driven in virtual time. Pure and seeded."""

"""Pools on real shared filesystems, with hostile clocks, and on mounts that hang. See guests, fleet, faultfs."""

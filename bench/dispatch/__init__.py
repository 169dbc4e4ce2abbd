"""How fast requests go through: the raw floor, Penstock directly and by HTTP, and the peers, side by side in one run."""

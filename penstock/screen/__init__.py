"""What `penstock top` draws: looks.py makes numbers of what a gateway said, top.py makes lines of them. All of it pure."""

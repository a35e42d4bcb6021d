"""What is made of a commit for those who install it: wheels, sdist, bill of materials, checksums."""

"""What runs inside the box. Standard library only: this folder, and nothing else of leafe, is
mounted into it."""

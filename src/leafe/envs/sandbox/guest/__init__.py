"""The code that runs inside the box. It imports the standard library alone: only this folder of
leafe is mounted."""

"""The user-mode network stack: what a guest reaches the outside by. No I/O, no clock."""

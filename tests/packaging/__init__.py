"""What is built from this repository, looked at from outside."""

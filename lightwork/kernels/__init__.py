"""The hot loops, each with a plain torch reference that the fast ones are tested against."""

"""The programs of docs/examples, run as their users run them."""

"""What databases share: which tables there are, and the columns of a record."""

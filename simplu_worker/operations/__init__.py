"""What an operation is, how a record becomes one, and in which waves a batch is applied. Pure: no I/O, no clock."""

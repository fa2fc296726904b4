"""The lease table of the Kinesis Client Library, and the rules of taking leases."""

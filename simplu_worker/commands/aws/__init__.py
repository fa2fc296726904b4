"""`simplu-worker aws`: the resources in AWS that a configuration needs."""

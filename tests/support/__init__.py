"""What tests share: small models, made-up stores, real runs, the command line."""

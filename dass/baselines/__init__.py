"""What DaSS is compared with."""

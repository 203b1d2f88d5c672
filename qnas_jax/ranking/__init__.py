"""What ranks what: every score of a subnet against its accuracy after training."""

"""Parts that TRL's trainers are made of when Pawl drives them."""

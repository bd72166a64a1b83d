"""What runs inside an actor: rollout, verify, train. It does not know rounds."""

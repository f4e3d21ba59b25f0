"""What the cycle `auto` decides by: costs of passes, acceptance so far, and the policy that follows."""

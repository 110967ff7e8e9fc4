"""What was asked: arguments, parsing, the rules on values, who runs where, and the plan."""

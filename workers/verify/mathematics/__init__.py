"""Reading and comparing mathematical answers: text first, a process with sympy for what text alone cannot decide."""

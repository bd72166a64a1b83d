"""Several training workers as one."""

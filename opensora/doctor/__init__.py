"""`opensora doctor`: checks this machine and says what is wrong."""

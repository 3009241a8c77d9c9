//! The host agent (mayflyd) and the command line (mayfly).

//! Harness and whole-system tests: real agents, gateways and clients.

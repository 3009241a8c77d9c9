//! C table for plugins, host process and facade, guest macros, contract suites.

//! The language of the application socket; depends on none of our crates.
